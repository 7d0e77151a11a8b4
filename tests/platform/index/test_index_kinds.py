import numpy as np
import pytest
from pydantic import ValidationError

from farreach.errors import DataError
from farreach.index import kinds
from farreach.index.kinds import IndexConfig


def config(kind, **settings):
    return IndexConfig.model_validate({"kind": kind, "lists": 20, **settings})


def filled(settings, vectors):
    index = kinds.trained(settings, vectors, len(vectors))
    index.add(vectors)
    return index


def found(index, queries, k, settings, allowed=None):
    centres = kinds.centres_of(index)
    lists = None if centres is None else kinds.coarse(queries, centres, settings.probes)
    return kinds.search(index, queries, k, settings, allowed=allowed, lists=lists)


def test_more_is_looked_for_where_scores_are_approximate():
    kinds_of = ("flat", "hnsw", "ivf_flat", "ivf_pq", "ivf_fastscan", "sq8")
    assert [config(kind, rerank=3).candidates(10) for kind in kinds_of] == [10, 10, 18, 30, 30, 30]
    assert [config(kind, rerank=0).candidates(10) for kind in kinds_of] == [10, 10, 18, 10, 10, 10]


def test_lists_follow_the_square_root_of_the_number_of_vectors_and_can_all_be_trained():
    assert IndexConfig(kind="ivf_flat").lists_for(200_000) == 1789  # 4 · 447.2
    assert IndexConfig(kind="ivf_flat").lists_for(1000) == 25  # 1000 / 39
    assert IndexConfig(kind="ivf_flat").lists_for(5) == 1
    assert config("ivf_flat").lists_for(200_000) == 20
    assert IndexConfig(kind="ivf_flat").sample_for(200_000) == 64 * 1789
    assert config("ivf_pq").sample_for(200_000) == 64 * 256  # its codes need more than its lists


@pytest.mark.parametrize("setting", [{"kind": "ivf"}, {"probes": 0}, {"shards": 0}, {"probe": 3}])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(ValidationError):
        IndexConfig.model_validate(setting)


def test_lists_that_are_all_looked_at_leave_nothing_but_rounding(clustered, truth):
    vectors, queries = clustered(3000), clustered(9, seed=1)
    settings = config("ivf_flat", probes=20)
    hits = found(filled(settings, vectors), queries, 10, settings)
    scores, rows = truth(vectors.astype(np.float16), queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5)


def test_queries_are_looked_for_in_the_lists_whose_centres_are_nearest(clustered):
    vectors, queries = clustered(3000), clustered(9, seed=1)
    index = filled(config("ivf_flat"), vectors)
    centres = index.quantizer.reconstruct_n(0, 20)
    lists, products = kinds.coarse(queries, kinds.centres_of(index), 3)
    np.testing.assert_array_equal(lists, np.argsort(-queries @ centres.T, axis=1)[:, :3])
    np.testing.assert_allclose(products, -np.sort(-queries @ centres.T, axis=1)[:, :3], rtol=1e-5)
    assert kinds.coarse(queries, kinds.centres_of(index), 99)[0].shape == (9, 20)


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw", "sq8"])
def test_each_kind_finds_most_of_what_there_is(clustered, truth, kind):
    vectors, queries = clustered(3000), clustered(50, seed=1)
    settings = config(kind, probes=8)
    hits = found(filled(settings, vectors), queries, 10, settings)
    rows = truth(vectors, queries, 10)[1]
    assert (hits.rows[:, :, None] == rows[:, None, :]).any(2).mean() > 0.9
    assert (np.diff(hits.scores, axis=1) <= 0).all()


@pytest.mark.parametrize(("kind", "pieces", "size"), [("ivf_pq", 4, 4), ("ivf_fastscan", 8, 4)])
def test_codes_of_a_few_bytes_find_much_of_it(clustered, truth, kind, pieces, size):
    vectors, queries = clustered(10_000, 8), clustered(50, 8, seed=1)
    settings = config(kind, probes=20, subquantizers=pieces)
    index = filled(settings, vectors)
    assert index.code_size == size
    hits = found(index, queries, 50, settings)
    rows = truth(vectors, queries, 5)[1]
    assert (hits.rows[:, :, None] == rows[:, None, :]).any(1).mean() > 0.8


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fastscan", "hnsw", "sq8"])
def test_only_allowed_ids_are_found(clustered, kind):
    vectors, queries = clustered(2001), clustered(20, seed=1)
    settings = config(kind, probes=20, ef=200)
    allowed = np.arange(2001) % 3 == 0
    hits = found(filled(settings, vectors), queries, 10, settings, allowed)
    assert (hits.rows % 3 == 0).all()
    assert (hits.counts() == 10).all()


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw", "sq8"])
def test_where_there_are_fewer_vectors_than_hits_the_rest_is_marked(clustered, kind):
    vectors = clustered(60)
    settings = config(kind, lists=1)
    hits = found(filled(settings, vectors), vectors[:3], 70, settings)
    assert (hits.rows[:, -10:] == -1).all()
    assert np.isneginf(hits.scores[:, -10:]).all()


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_fastscan", "hnsw", "sq8"])
def test_an_index_read_from_its_mapped_file_finds_the_same(clustered, tmp_path, kind):
    vectors, queries = clustered(2000), clustered(20, seed=1)
    settings = config(kind)
    index = filled(settings, vectors)
    kinds.save(index, tmp_path / "a.faiss")
    again = kinds.load(tmp_path / "a.faiss", settings.kind)
    one, other = (found(i, queries, 10, settings) for i in (index, again))
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_settings_that_do_not_fit_the_vectors_are_refused(clustered):
    vectors = clustered(10_000)
    with pytest.raises(DataError, match="5 do not divide vectors of 32 numbers"):
        kinds.trained(config("ivf_pq", subquantizers=5), vectors, 10_000)
    with pytest.raises(DataError, match="needs at least 9984 vectors, and there are 300"):
        kinds.trained(config("ivf_pq"), vectors[:300], 300)


def test_a_file_that_is_no_index_is_named(tmp_path):
    (tmp_path / "a.faiss").write_bytes(b"nonsense")
    for kind in ("ivf_flat", "sq8"):
        with pytest.raises(DataError, match=r"a\.faiss: cannot be read by FAISS"):
            kinds.load(tmp_path / "a.faiss", kind)
    with pytest.raises(DataError, match=r"b\.faiss: cannot be read"):
        kinds.load(tmp_path / "b.faiss", "hnsw")
