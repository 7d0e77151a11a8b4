import numpy as np

from farreach.index.hits import NO_ROW, Hits, best, merged


def hits(scores, rows):
    return Hits(np.array(scores, np.float32), np.array(rows, np.int64))


def test_the_best_come_first_and_of_equal_scores_the_smaller_row():
    found = best(np.array([[1.0, 3.0, 3.0, 2.0]], np.float32), np.array([[7, 9, 4, 1]]), 3)
    assert found.rows.tolist() == [[4, 9, 1]]
    assert found.scores.tolist() == [[3.0, 3.0, 2.0]]


def test_fewer_candidates_than_asked_for_leave_rows_of_minus_one_at_the_end():
    scores = np.array([[5.0, -2.0]], np.float32)
    found = best(scores, np.array([[NO_ROW, 3]]), 4)
    assert found.rows.tolist() == [[3, -1, -1, -1]]
    assert found.scores.tolist() == [[-2.0, -np.inf, -np.inf, -np.inf]]
    assert found.counts().tolist() == [1]
    assert [values.tolist() for values in found.of(0)] == [[-2.0], [3]]


def test_merging_parts_is_the_same_as_looking_at_all_of_them_at_once():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (5, 40)).astype(np.float32)  # with many ties
    rows = np.stack([rng.permutation(40) for _ in range(5)])
    whole = best(scores, rows, 8)
    parts = [best(scores[:, i::4], rows[:, i::4], 8) for i in range(4)]
    for order in (parts, parts[::-1]):
        together = merged(order, 8)
        np.testing.assert_array_equal(together.rows, whole.rows)
        np.testing.assert_array_equal(together.scores, whole.scores)


def test_a_part_without_hits_changes_nothing():
    one = hits([[2.0, 1.0]], [[5, 3]])
    together = merged([Hits.none(1, 2), one], 2)
    assert together.rows.tolist() == [[5, 3]]
    assert len(Hits.none(3, 2)) == 3
