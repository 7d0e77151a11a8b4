import numpy as np
import pytest

from farreach.data.text import Document
from farreach.figures import rendered
from farreach.index.compare import compare, drawn
from farreach.index.vectors import finish, write_part


@pytest.fixture
def vectors(tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    rows = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    documents = [Document(str(row), "", "text", {}) for row in range(len(rows))]
    write_part(folder, 0, rows, documents)
    finish(folder, parts=1, model="of the tests", normalised=False)
    return folder, rows


def test_more_effort_finds_more_and_exact_search_all(vectors):
    folder, rows = vectors
    points = list(compare(folder, rows[:40], kinds=("flat", "ivf_flat", "hnsw")))
    by_kind = {kind: [p for p in points if p.kind == kind] for kind in ("flat", "ivf_flat", "hnsw")}
    assert [p.recall for p in by_kind["flat"]] == [1.0]
    for kind in ("ivf_flat", "hnsw"):
        recalls = [p.recall for p in by_kind[kind]]
        assert recalls[0] < recalls[-1]
        assert recalls[-1] > 0.95
    assert by_kind["ivf_flat"][0].effort == "probes 1"
    assert all(p.rate > 0 for p in points)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["vectors"]
    picture = rendered(drawn(points, "3,000 vectors"))
    assert picture.ndim == 3
    assert picture.std() > 0
