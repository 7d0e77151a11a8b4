import json

from farreach_workloads.retrieval.corpora.aligned import write_aligned
from farreach_workloads.retrieval.corpora.layout import TRAIN, Shares, part_of

SHARES = Shares()


def folder(path, texts):
    path.mkdir(parents=True)
    lines = [
        json.dumps({"_id": name, "title": "", "text": text, "source": family})
        for name, (family, text) in texts.items()
    ]
    (path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return path


def families(name, count):
    """Names of families that are in a part."""
    names = (f"family{i}" for i in range(1000))
    return [n for n in names if (part_of(n, SHARES) == TRAIN) == (name == TRAIN)][:count]


def test_translations_of_one_id_are_pairs_unless_they_are_asked_for(tmp_path):
    one, two = families(TRAIN, 2)
    (kept,) = families("test", 1)
    own = folder(
        tmp_path / "de" / "own",
        {"1": (one, "ein Spiel"), "2": (kept, "ein Editor"), "3": (two, "eine Bibliothek")},
    )
    english = folder(
        tmp_path / "de" / "english",
        {"3": (two, "a library"), "2": (kept, "an editor"), "1": (one, "a game")},
    )
    file = write_aligned(tmp_path, [(own, english)], SHARES)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [
        {"question": "ein Spiel", "positive_ctxs": [{"text": "a game"}]},
        {"question": "eine Bibliothek", "positive_ctxs": [{"text": "a library"}]},
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["aligned.jsonl"]


def test_a_description_without_its_original_is_no_pair(tmp_path):
    (one,) = families(TRAIN, 1)
    own = folder(tmp_path / "own", {"1": (one, "ein Spiel")})
    english = folder(tmp_path / "english", {"2": (one, "a game")})
    assert write_aligned(tmp_path, [(own, english)], SHARES).read_text() == ""
