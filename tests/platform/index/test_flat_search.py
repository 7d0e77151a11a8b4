from itertools import pairwise

import numpy as np
import pytest

from farreach.index import flat
from farreach.index.flat import products, rescored, search_flat, search_rows
from farreach.index.hits import Hits, merged
from farreach.index.library import faiss


def cut(vectors, *edges):
    bounds = [0, *edges, len(vectors)]
    return [(a, vectors[a:b]) for a, b in pairwise(bounds)]


def longest(vectors):
    return float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())


@pytest.mark.parametrize("queries", [1, 2, 4, 16, 40])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_it_finds_what_double_precision_finds(clustered, truth, queries, k):
    vectors, asked = clustered(9000), clustered(queries, seed=1)
    found = search_flat(cut(vectors, 10, 5000), asked, k, longest=1.001)
    scores, rows = truth(vectors, asked, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)


def test_it_agrees_with_the_flat_index_of_faiss(clustered):
    vectors, asked = 30 * clustered(5000, 48), clustered(7, 48, seed=1)
    index = faiss.IndexFlatIP(48)
    index.add(vectors)
    scores, rows = index.search(asked, 20)
    found = search_flat([(0, vectors)], asked, 20, longest=longest(vectors))
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_neither_threads_nor_pieces_change_a_bit(clustered, threads):
    vectors, asked = clustered(20_000), clustered(5, seed=1)
    one = search_flat([(0, vectors)], asked, 30, longest=1.001, threads=1)
    other = search_flat(cut(vectors, 4095, 4096, 9001), asked, 30, longest=1.001, threads=threads)
    np.testing.assert_array_equal(other.rows, one.rows)
    np.testing.assert_array_equal(other.scores, one.scores)


def test_searching_pieces_apart_and_merging_is_the_same_to_the_bit(clustered):
    vectors, asked = clustered(9000), clustered(5, seed=1)
    whole = search_flat([(0, vectors)], asked, 10, longest=1.001)
    parts = [search_flat([p], asked, 10, longest=1.001) for p in cut(vectors, 1, 3000, 7777)]
    together = merged(parts, 10)
    np.testing.assert_array_equal(together.rows, whole.rows)
    np.testing.assert_array_equal(together.scores, whole.scores)


def test_of_many_equal_vectors_the_first_rows_are_found():
    vectors = np.tile(np.random.default_rng(0).standard_normal(24).astype(np.float32), (9000, 1))
    vectors[:50] *= 0.5
    found = search_flat(cut(vectors, 33), vectors[60:62], 12, longest=longest(vectors))
    assert found.rows.tolist() == 2 * [list(range(50, 62))]


def test_scores_that_single_precision_cannot_tell_apart_are_ordered_by_the_true_ones():
    # The large numbers cancel; what is left is lost in single precision and differs by row.
    rng = np.random.default_rng(0)
    vectors = np.zeros((5000, 6), np.float32)
    vectors[:, :5] = [1e4, -1e4, 3e3, -3e3, 0.0]
    vectors[:, 5] = rng.permutation(5000) * 2.0**-14
    query = np.array([[1.1, 1.1, 0.7, 0.7, 1.0, 1.0]], np.float32)
    found = search_flat([(0, vectors)], query, 10, longest=longest(vectors))
    assert found.rows[0].tolist() == np.argsort(-vectors[:, 5])[:10].tolist()


def test_only_allowed_rows_are_found(clustered, truth):
    vectors, asked = clustered(5000), clustered(3, seed=1)
    allowed = np.random.default_rng(2).random(5000) < 0.1
    found = search_flat(cut(vectors, 100), asked, 10, longest=1.001, allowed=allowed)
    np.testing.assert_array_equal(found.rows, truth(vectors, asked, 10, allowed)[1])
    few = np.flatnonzero(allowed)[:7]
    found = search_flat(
        cut(vectors, 100), asked, 10, longest=1.001, allowed=np.isin(np.arange(5000), few)
    )
    assert (found.counts() == 7).all()
    assert np.sort(found.rows[:, :7]).tolist() == 3 * [few.tolist()]
    assert (found.rows[:, 7:] == -1).all()


def test_some_rows_can_be_searched_alone(clustered, truth):
    vectors, asked = clustered(5000), clustered(3, seed=1)
    rows = np.arange(3, 5000, 7)
    found = search_rows(rows, lambda some: vectors[some], asked, 10, longest=1.001)
    allowed = np.isin(np.arange(5000), rows)
    np.testing.assert_array_equal(found.rows, truth(vectors, asked, 10, allowed)[1])


def test_half_precision_is_searched_as_the_numbers_it_holds(clustered, truth):
    vectors, asked = clustered(5000).astype(np.float16), clustered(3, seed=1)
    found = search_flat([(0, vectors)], asked, 10, longest=1.01)
    scores, rows = truth(vectors, asked, 10)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 15, 16, 17])
def test_fewer_vectors_than_hits_give_all_of_them(clustered, count):
    vectors = clustered(count)
    found = search_flat([(0, vectors)], vectors[:2], 20, longest=1.001)
    assert (found.counts() == count).all()
    assert np.sort(found.rows[0, :count]).tolist() == list(range(count))


def test_without_vectors_or_queries_there_are_no_hits(clustered):
    assert search_flat([], clustered(2), 3, longest=1.0).rows.tolist() == 2 * [[-1, -1, -1]]
    assert search_flat([(0, clustered(9))], clustered(0), 3, longest=1.0).rows.shape == (0, 3)


def test_many_queries_are_searched_a_share_at_a_time(clustered, truth, monkeypatch):
    monkeypatch.setattr(flat, "_MOST_KEPT", 1000)
    vectors, asked = clustered(3000), clustered(17, seed=1)
    found = search_flat([(0, vectors)], asked, 5, longest=1.001)
    np.testing.assert_array_equal(found.rows, truth(vectors, asked, 5)[1])


def test_candidates_are_ordered_by_their_exact_scores(clustered, truth):
    vectors, asked = clustered(500), clustered(4, seed=1)
    rows = np.argsort(np.random.default_rng(0).random((4, 500)), axis=1)[:, :40]
    rows[1, 5:] = -1
    rough = Hits(np.zeros((4, 40), np.float32), rows)
    found = rescored(rough, lambda some: vectors[some], asked, 6, longest=1.001)
    for i in range(4):
        allowed = np.isin(np.arange(500), rows[i])
        scores, expected = truth(vectors, asked[i : i + 1], min(6, allowed.sum()), allowed)
        assert found.of(i)[1].tolist() == expected[0].tolist()
        np.testing.assert_allclose(found.of(i)[0], scores[0], rtol=1e-6)


def test_a_vector_has_the_same_score_wherever_it_lies(clustered):
    vectors, query = clustered(1000, 77), clustered(1, 77, seed=1)[0]
    every = products(vectors, query)
    for rows in ([5], [999, 5], list(range(5, 900, 3))):
        np.testing.assert_array_equal(products(vectors[rows], query), every[rows])
