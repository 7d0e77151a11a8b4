import numpy as np
import pytest
from pydantic import ValidationError

from farreach.errors import DataError
from farreach.index import kinds
from farreach.index.kinds import IndexConfig
from farreach.index.library import faiss


def config(kind, **settings):
    return IndexConfig.model_validate({"kind": kind, "lists": 20, **settings})


def filled(settings, vectors, block=1000):
    index = kinds.trained(settings, vectors, len(vectors))
    kinds.fill(index, [vectors[i : i + block] for i in range(0, len(vectors), block)])
    return index


def found(index, queries, k, settings, allowed=None):
    centres = kinds.centres_of(index)
    lists = None if centres is None else kinds.coarse(queries, centres, settings.probes)
    return kinds.search(index, queries, k, settings, allowed=allowed, lists=lists)


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


def test_lists_that_are_all_looked_at_give_exact_hits(clustered, truth):
    vectors, queries = clustered(3000), clustered(9, seed=1)
    settings = config("ivf_flat", probes=20)
    hits = found(filled(settings, vectors), queries, 10, settings)
    scores, rows = truth(vectors, queries, 10)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw", "sq8"])
def test_each_kind_finds_most_of_what_there_is(clustered, truth, kind):
    vectors, queries = clustered(3000), clustered(50, seed=1)
    settings = config(kind, probes=8)
    hits = found(filled(settings, vectors), queries, 10, settings)
    rows = truth(vectors, queries, 10)[1]
    assert (hits.rows[:, :, None] == rows[:, None, :]).any(2).mean() > 0.9
    assert (np.diff(hits.scores, axis=1) <= 0).all()


def test_codes_of_a_few_bytes_find_much_of_it(clustered, truth):
    vectors, queries = clustered(10_000, 8), clustered(50, 8, seed=1)
    settings = config("ivf_pq", probes=20, subquantizers=4)
    index = filled(settings, vectors)
    assert index.code_size == 4
    hits = found(index, queries, 50, settings)
    rows = truth(vectors, queries, 5)[1]
    assert (hits.rows[:, :, None] == rows[:, None, :]).any(1).mean() > 0.8


def test_vectors_are_added_to_the_list_that_faiss_would_choose(clustered):
    vectors = clustered(2000)
    settings = config("ivf_flat")
    index = filled(settings, vectors, block=300)
    other = kinds.trained(settings, vectors, len(vectors))
    other.add(vectors)
    for number in range(20):
        sizes = [one.invlists.list_size(number) for one in (index, other)]
        ids = [
            faiss.rev_swig_ptr(one.invlists.get_ids(number), size).tolist()
            for one, size in zip((index, other), sizes, strict=True)
        ]
        assert ids[0] == ids[1]


def test_centres_have_norm_one_and_each_is_the_mean_direction_of_what_it_owns(clustered):
    vectors = clustered(4000)
    centres = kinds.centres_of(kinds.trained(config("ivf_flat"), vectors, 4000))
    np.testing.assert_allclose(centres.norm(dim=1).numpy(), 1, rtol=1e-5)
    owners = kinds.nearest(vectors, centres)
    np.testing.assert_array_equal(owners, (vectors @ centres.numpy().T).argmax(1))
    # After a few rounds hardly a centre moves when it is computed once more.
    for number in range(20):
        mean = vectors[owners == number].mean(0)
        assert mean @ centres[number].numpy() > 0.97 * np.linalg.norm(mean)


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw", "sq8"])
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


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw", "sq8"])
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
