"""Indexes of documents with several vectors each, of which the best counts."""

import json

import numpy as np
import pytest

from farreach.data.text import Document
from farreach.errors import DataError
from farreach.index.compare import compare
from farreach.index.hits import Hits, of_owners
from farreach.index.kinds import IndexConfig
from farreach.index.points import best_documents, search_documents
from farreach.index.store import Index
from farreach.index.vectors import Vectors, finish, write_part

KINDS = ["flat", "ivf_flat", "hnsw", "sq8"]


def config(kind="flat", **settings):
    return IndexConfig.model_validate({"kind": kind, "lists": 10, "probes": 10, **settings})


def third(i):
    return {"third": str(i % 3)}


def drawn_points(documents, seed=0, most=6):
    return np.random.default_rng(seed).integers(1, most + 1, documents)


class Corpus:
    """Documents with vectors, and what a plain search among them finds."""

    def __init__(self, clustered, documents, seed=0, most=6):
        self.points = drawn_points(documents, seed, most)
        self.vectors = clustered(int(self.points.sum()), seed=seed)
        self.owners = np.repeat(np.arange(documents), self.points)

    def __add__(self, other):
        both = object.__new__(Corpus)
        both.points = np.concatenate([self.points, other.points])
        both.vectors = np.concatenate([self.vectors, other.vectors])
        both.owners = np.repeat(np.arange(len(both.points)), both.points)
        return both

    def best(self, queries, k, allowed=None):
        products = queries.astype(np.float64) @ self.vectors.astype(np.float64).T
        scores = np.full((len(queries), len(self.points)), -np.inf)
        for query in range(len(queries)):
            np.maximum.at(scores[query], self.owners, products[query])
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, 1).astype(np.float32), rows


@pytest.fixture
def built(embedded, tmp_path):
    """Builds an index over a corpus, named `name`; other arguments are settings."""

    def build(name, corpus, kind="flat", prefix="d", **settings):
        folder = embedded(
            f"{name}-vectors", corpus.vectors, meta=third, prefix=prefix, points=corpus.points
        )
        return Index.build(folder, tmp_path / name, config(kind, **settings))

    return build


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_document_is_found_once_by_its_best_vector(built, clustered, kind, count):
    corpus, queries = Corpus(clustered, 500), clustered(12, seed=1)
    index = built("a", corpus, kind, ef=400, shards=count)
    for one in (index, Index.open(index.path)):
        scores, rows = corpus.best(queries, 10)
        hits = one.search(queries, 10)
        np.testing.assert_array_equal(hits.rows, rows)
        np.testing.assert_allclose(hits.scores, scores, rtol=1e-5)
        np.testing.assert_array_equal(one.search_exactly(queries, 10).rows, rows)
    assert index.ids(hits.rows[0]) == [f"d{row}" for row in rows[0]]
    assert (index.count, index.state.rows, index.state.points) == (500, 500, len(corpus.vectors))


def test_one_document_with_nearly_all_of_the_vectors_hides_no_other(embedded, clustered, tmp_path):
    queries = clustered(6, seed=1)
    crowd = queries[0] + 0.01 * clustered(900, seed=2)
    others = clustered(20, seed=3)
    folder = embedded("v", np.concatenate([crowd, others]), points=[900, *([1] * 20)], parts=1)
    for kind in ("flat", "ivf_flat"):
        hits = Index.build(folder, tmp_path / kind, config(kind)).search(queries, 10)
        assert (hits.counts() == 10).all()
        scores = np.concatenate([(queries @ crowd.T).max(1, keepdims=True), queries @ others.T], 1)
        np.testing.assert_array_equal(hits.rows, np.argsort(-scores, axis=1)[:, :10])


@pytest.mark.parametrize("kind", KINDS)
def test_more_hits_than_documents_give_each_document_once(built, clustered, kind):
    hits = built("a", Corpus(clustered, 40), kind, lists=1).search(clustered(3, seed=1), 100)
    for row in hits.rows:
        assert sorted(row[:40].tolist()) == list(range(40))
        assert (row[40:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_filters_and_deletions_are_of_documents(built, clustered, kind):
    corpus, queries = Corpus(clustered, 600), clustered(8, seed=1)
    index = built("a", corpus, kind, ef=400)
    left = np.arange(600) % 3 == 1
    hits = index.search(queries, 10, where="third = '1'")
    np.testing.assert_array_equal(hits.rows, corpus.best(queries, 10, left)[1])
    gone = np.unique(hits.rows[:, :2])
    index.delete([f"d{row}" for row in gone])
    left &= ~np.isin(np.arange(600), gone)
    for one in (index, Index.open(index.path)):
        found = one.search(queries, 10, where="third = '1'")
        np.testing.assert_array_equal(found.rows, corpus.best(queries, 10, left)[1])
        assert one.count == 600 - len(gone)
    rest = np.flatnonzero(left)[3:]
    index.delete([f"d{row}" for row in rest])
    assert index.search(queries, 10, where="third = '1'").counts().tolist() == [3] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_deleted_and_made_compact_is_found(built, embedded, clustered, kind):
    old, new = Corpus(clustered, 400), Corpus(clustered, 150, seed=2)
    corpus, queries = old + new, clustered(8, seed=1)
    index = built("a", old, kind, shards=2, ef=400)
    index.add(embedded("new", new.vectors, prefix="n", points=new.points))
    left = ~np.isin(np.arange(550), [5, 6, 399, 400, 549])
    index.delete(["d5", "d6", "d399", "n0", "n149"])
    before = index.search(queries, 10)
    np.testing.assert_array_equal(before.rows, corpus.best(queries, 10, left)[1])
    added = len(new.vectors) / len(corpus.vectors)
    assert index.waste == pytest.approx(added + 5 / 550)
    names = [index.ids(rows) for rows in before.rows]
    index.compact()
    after = index.search(queries, 10)
    assert [index.ids(rows) for rows in after.rows] == names
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-5)
    points = len(corpus.vectors) - int(corpus.points[~left].sum())
    assert (index.waste, index.state.rows, index.state.points) == (0, 545, points)
    assert index.documents(np.array([5, 6]))[1].id == "d8"


def test_documents_of_one_vector_go_with_those_of_several(built, embedded, clustered, tmp_path):
    plain, parted = Corpus(clustered, 300, most=1), Corpus(clustered, 200, seed=2)
    queries = clustered(8, seed=1)
    first, second = built("a", plain, shards=2), built("b", parted, prefix="n")
    second.delete(["n3"])
    index = Index.merge([first.path, second.path], tmp_path / "both")
    left = np.arange(500) != 303
    rows = (plain + parted).best(queries, 10, left)[1]
    np.testing.assert_array_equal(index.search(queries, 10).rows, rows)
    assert index.ids(np.array([299, 300])) == ["d299", "n0"]
    index = Index.merge([second.path, first.path], tmp_path / "turned")
    rows = (parted + plain).best(queries, 10, np.arange(500) != 3)[1]
    np.testing.assert_array_equal(index.search(queries, 10).rows, rows)


@pytest.mark.ray
def test_shards_in_actors_find_the_same(ray_local, built, clustered):
    corpus, queries = Corpus(clustered, 300), clustered(6, seed=1)
    index = built("a", corpus, "ivf_flat", shards=2)
    with index.serve() as remote:
        hits = remote.search(queries, 10)
    np.testing.assert_array_equal(hits.rows, corpus.best(queries, 10)[1])


def test_an_index_is_tuned_and_compared_by_documents(built, embedded, clustered):
    corpus, queries = Corpus(clustered, 500), clustered(50, seed=1)
    index = built("a", corpus, "ivf_flat", lists=20, probes=1)
    assert index.tune(queries, recall=0.9) >= 0.9
    found, truth = index.search(queries, 10).rows, corpus.best(queries, 10)[1]
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    assert np.mean(shared) >= 9
    folder = embedded("v", corpus.vectors, points=corpus.points)
    points = list(compare(folder, queries, kinds=("flat", "hnsw")))
    assert points[0].recall == 1
    assert points[-1].recall > 0.95


def test_parts_keep_how_many_vectors_a_document_has(embedded, clustered):
    corpus = Corpus(clustered, 50)
    folder = embedded("v", corpus.vectors, points=corpus.points, meta=third)
    vectors = Vectors.open(folder)
    assert (vectors.count, vectors.points) == (50, len(corpus.vectors))
    np.testing.assert_array_equal(vectors.owners, corpus.owners)
    np.testing.assert_array_equal(np.diff(vectors.begins), corpus.points)
    np.testing.assert_array_equal(vectors.at(np.arange(vectors.points)), corpus.vectors)
    assert vectors.columns == ["id", "title", "text", "third"]
    assert vectors.documents(np.array([7]))[0].meta == {"third": "1"}
    queries = clustered(4, seed=1)
    np.testing.assert_array_equal(
        search_documents(vectors, queries, 5).rows, corpus.best(queries, 5)[1]
    )


def test_a_manifest_that_knows_only_documents_of_one_vector_is_read(embedded, clustered, tmp_path):
    folder, queries = embedded("v", clustered(30)), clustered(4, seed=1)
    before = Index.build(folder, tmp_path / "i", config()).search(queries, 5)
    for place in (folder, tmp_path / "i"):
        manifest = json.loads((place / "manifest.json").read_text())
        for part in manifest["parts"]:
            assert part.pop("points") is None
        (place / "manifest.json").write_text(json.dumps(manifest))
    assert Vectors.open(folder).owners is None
    after = Index.open(tmp_path / "i").search(queries, 5)
    np.testing.assert_array_equal(after.rows, before.rows)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([2, 2], "3 vectors do not fit 2 documents, of which 2 have 4"),
        ([3], "3 vectors do not fit 2 documents, of which 1 have 3"),
        ([0, 3], "document 'd0' has no vector"),
    ],
)
def test_numbers_of_vectors_that_cannot_be_right_are_refused(tmp_path, clustered, points, message):
    documents = [Document(f"d{i}", "", "text", {}) for i in range(2)]
    with pytest.raises(DataError, match=message):
        write_part(tmp_path, 0, clustered(3), documents, points)


def test_a_vector_that_is_not_finite_is_put_down_to_its_document(tmp_path, clustered):
    documents = [Document(f"d{i}", "", "text", {}) for i in range(3)]
    vectors = clustered(6)
    vectors[4, 0] = np.nan
    with pytest.raises(DataError, match="such as one of document 'd2'"):
        write_part(tmp_path, 0, vectors, documents, [1, 3, 2])


def test_a_truncated_file_of_vectors_is_named(embedded, clustered):
    corpus = Corpus(clustered, 10)
    folder = embedded("v", corpus.vectors, points=corpus.points, parts=1)
    np.save(folder / "part-00000.npy", corpus.vectors[:-1])
    with pytest.raises(DataError, match=rf"and not {len(corpus.vectors)} vectors"):
        finish(folder, parts=1, model="m", normalised=True)


def test_documents_that_do_not_say_which_vectors_are_theirs_are_refused(embedded, clustered):
    corpus = Corpus(clustered, 10)
    folder = embedded("v", corpus.vectors, points=corpus.points, parts=1)
    turned = embedded("w", corpus.vectors, points=[len(corpus.vectors) - 8, *([1] * 8)], parts=1)
    plain = embedded("x", corpus.vectors[:10], parts=1)
    for other in (turned, plain):  # another number of documents; no numbers of vectors at all
        content = (other / "part-00000.parquet").read_bytes()
        (folder / "part-00000.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"part-00000\.parquet: does not say which of"):
            search_documents(Vectors.open(folder), clustered(2, seed=1), 3)


def test_of_owners_keeps_the_best_of_each_and_the_order():
    hits = Hits(
        np.array([[9, 8, 8, 7, -np.inf]], np.float32), np.array([[4, 0, 2, 1, -1]], np.int64)
    )
    found = of_owners(hits, np.array([0, 0, 1, 1, 1]), 3)
    assert found.rows.tolist() == [[1, 0, -1]]
    assert found.scores.tolist() == [[9, 8, -np.inf]]


def test_points_are_looked_for_until_there_are_enough_documents():
    owners = np.repeat(np.arange(4), [50, 1, 1, 1])
    asked = []

    def find(queries, wanted):
        asked.append((len(queries), wanted))
        # The first query finds the points in order, the second in the opposite one.
        rows = np.stack([np.arange(53), np.arange(53)[::-1]])[queries[:, 0].astype(int)]
        scores = np.broadcast_to(53 - np.arange(53, dtype=np.float32), rows.shape)
        return Hits(np.array(scores[:, :wanted]), rows[:, :wanted])

    hits = best_documents(owners, find, np.array([[0], [1]], np.float32), 2)
    assert hits.rows.tolist() == [[0, 1], [3, 2]]
    assert asked == [(2, 6), (1, 24), (1, 53)]
