import numpy as np
import pytest

from farreach.errors import ConfigError, DataError
from farreach.index.fusion import fused, weight_curve
from farreach.index.gains import gains_of, ideal_of, ndcg
from farreach.index.hits import Hits


def hits(*queries):
    """Of each query (row, score) pairs, the best first."""
    width = max(map(len, queries))
    found = Hits.none(len(queries), width)
    for number, pairs in enumerate(queries):
        for rank, (row, score) in enumerate(pairs):
            found.rows[number, rank], found.scores[number, rank] = row, score
    return found


def drawn(rng, queries=40, documents=30, most=12):
    """Rankings of unequal lengths, some empty, with equal scores among them."""
    lists = []
    for _ in range(queries):
        rows = rng.permutation(documents)[: rng.integers(0, most + 1)]
        scores = np.sort(rng.integers(0, 20, len(rows)) / 4)[::-1]
        lists.append(list(zip(rows.tolist(), scores.tolist(), strict=True)))
    return hits(*lists)


def fused_one_by_one(dense, lexical, weight, kind):
    """Of each query the score of each document that a side with weight has found."""
    results = []
    for query in range(len(dense)):
        totals = {}
        sides = [(dense, 1 - weight), (lexical, weight)]
        parts = []
        for side, share in sides:
            scores, rows = side.of(query)
            if kind == "rrf":
                own = {int(row): 1 / (61 + rank) for rank, row in enumerate(rows)}
                parts.append((own, 0.0, share))
            else:
                wide = scores.astype(float)
                is_flat = len(wide) > 0 and wide.std() == 0
                spread = wide.std() if len(wide) and not is_flat else 1.0
                standard = (wide - wide.mean()) / spread if len(wide) else wide
                own = {int(row): value + is_flat for row, value in zip(rows, standard, strict=True)}
                parts.append((own, -1.0 if is_flat else min(own.values(), default=0.0), share))
        for row in {row for own, _, share in parts if share for row in own}:
            totals[row] = sum(share * own.get(row, fill) for own, fill, share in parts)
        results.append(totals)
    return results


# Scores 3, 2 and 1 have the deviation √(2/3), so they become ±√1.5 and 0; 10 and 6 become ±1.
DENSE = hits([(0, 3.0), (1, 2.0), (2, 1.0)])
LEXICAL = hits([(2, 10.0), (3, 6.0)])


def test_standardised_scores_by_hand():
    found = fused(DENSE, LEXICAL, 5, 0.5)
    high = np.sqrt(1.5)
    assert found.rows.tolist() == [[0, 2, 1, 3, -1]]
    expected = [(high - 1) / 2, (-high + 1) / 2, (0 - 1) / 2, (-high - 1) / 2, -np.inf]
    assert found.scores[0] == pytest.approx(expected, abs=1e-6)
    quarter = fused(DENSE, LEXICAL, 2, 0.75)
    assert quarter.rows.tolist() == [[2, 0]]
    assert quarter.scores[0] == pytest.approx([0.75 - high / 4, high / 4 - 0.75], abs=1e-6)


def test_reciprocal_ranks_by_hand():
    found = fused(DENSE, LEXICAL, 4, 0.5, "rrf")
    # Documents 1 and 3 are both second on one side.
    assert found.rows.tolist() == [[2, 0, 1, 3]]
    expected = [0.5 / 63 + 0.5 / 61, 0.5 / 61, 0.5 / 62, 0.5 / 62]
    assert found.scores[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("kind", ["z", "rrf"])
@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_fusion_is_that_of_one_query_after_the_other(kind, weight):
    rng = np.random.default_rng(0)
    dense, lexical = drawn(rng), drawn(rng)
    found = fused(dense, lexical, 20, weight, kind)
    expected = fused_one_by_one(dense, lexical, weight, kind)
    for query, totals in enumerate(expected):
        scores, rows = found.of(query)
        assert len(rows) == min(20, len(totals))
        assert scores == pytest.approx([totals[row] for row in rows.tolist()], abs=1e-6)
        order = [(-score, row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]
        assert order == sorted(order)
        left = [totals[row] for row in totals.keys() - set(rows.tolist())]
        assert max(left, default=-np.inf) <= min(scores, default=np.inf) + 1e-6


@pytest.mark.parametrize("kind", ["z", "rrf"])
def test_all_weight_on_one_side_leaves_its_order(kind):
    rng = np.random.default_rng(1)
    dense, lexical = drawn(rng), drawn(rng)
    for weight, side in ((0.0, dense), (1.0, lexical)):
        found = fused(dense, lexical, 12, weight, kind)
        for query in range(len(side)):
            scores, rows = side.of(query)
            ordered = rows[np.lexsort((rows, -scores))] if kind == "z" else rows
            assert found.of(query)[1].tolist() == ordered.tolist()


@pytest.mark.parametrize("kind", ["z", "rrf"])
def test_who_is_better_on_both_sides_is_better(kind):
    rng = np.random.default_rng(2)
    rows = np.stack([rng.permutation(15) for _ in range(30)])
    scores = np.sort(rng.random((2, 30, 15)).astype(np.float32))[:, :, ::-1]
    other = np.stack([rng.permutation(15) for _ in range(30)])
    dense, lexical = Hits(scores[0], rows), Hits(scores[1], other)
    found = fused(dense, lexical, 15, 0.4, kind)
    for ranks in zip(rows.tolist(), other.tolist(), found.rows.tolist(), strict=True):
        first, second, both = ([own.index(row) for row in range(15)] for own in ranks)
        for a in range(15):
            for b in range(15):
                if first[a] < first[b] and second[a] < second[b]:
                    assert both[a] < both[b]


def test_units_of_scores_do_not_matter():
    rng = np.random.default_rng(3)
    dense, lexical = drawn(rng), drawn(rng)
    other = Hits(np.float32(8) * lexical.scores + np.float32(16), lexical.rows)
    expected, found = fused(dense, lexical, 10, 0.5), fused(dense, other, 10, 0.5)
    assert np.array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("found", [[20], [20, 30]])
def test_the_only_documents_with_a_word_rise_above_those_without(found):
    """They have one score, and its deviation is 0; that others were not found counts all the same.

    Vectors alone have twenty others before them, of standardised scores from 1.0 to 1.7.
    """
    dense = hits([(row, 1 - row / 100) for row in range(100)])
    lexical = hits([(row, 14.25) for row in found])
    both = fused(dense, lexical, 100, 0.5)
    assert both.rows[0, : len(found)].tolist() == found
    deviation = np.std(np.arange(100) / 100)
    expected = (0.495 - found[0] / 100) / deviation
    assert both.scores[0, 0] == pytest.approx((expected + 1) / 2, abs=1e-6)
    assert both.scores[0, len(found)] == pytest.approx((0.495 / deviation - 1) / 2, abs=1e-6)


def test_a_side_that_finds_nothing_adds_nothing():
    nothing = Hits.none(1, 3)
    for kind in ("z", "rrf"):
        assert fused(DENSE, nothing, 3, 0.5, kind).rows.tolist() == [[0, 1, 2]]
        assert fused(nothing, LEXICAL, 3, 0.5, kind).rows.tolist() == [[2, 3, -1]]
        assert fused(nothing, nothing, 2, 0.5, kind).rows.tolist() == [[-1, -1]]


def test_gains_and_ndcg_by_hand():
    rows = np.array([[7, 3, -1], [5, 2, 9]])
    relevant = [{3: 2, 7: 0, 8: 1, 4: -1}, {}]
    gains, ideal = gains_of(rows, relevant), ideal_of(relevant)
    assert gains.tolist() == [[0, 2, 0], [0, 0, 0]]
    assert ideal.tolist() == [[2, 1], [0, 0]]
    first, second = ndcg(gains, ideal, 3)
    assert first == pytest.approx(2 / np.log2(3) / (2 + 1 / np.log2(3)))
    assert np.isnan(second)
    assert ndcg(gains, ideal, 1)[0] == 0
    assert gains_of(rows, [{}, {}]).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_weight_is_that_of_the_best_ranking():
    """The second query has nothing relevant; document 2 is first from a weight near 0.55 on."""
    dense = hits([(0, 3.0), (1, 2.0), (2, 1.0)], [(0, 1.0)])
    lexical = hits([(2, 10.0), (3, 6.0)], [(1, 1.0)])
    weights = (0.0, 0.5, 0.6, 1.0)
    curve = weight_curve(dense, lexical, [{2: 1}, {}], weights)
    assert curve == pytest.approx({0.0: 1 / 2, 0.5: 1 / np.log2(3), 0.6: 1.0, 1.0: 1.0})
    ranks = weight_curve(dense, lexical, [{2: 1}, {}], (0.0, 1.0), "rrf")
    assert ranks == pytest.approx({0.0: 1 / 2, 1.0: 1.0})


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ConfigError, match=r"weight=1\.5"):
        fused(DENSE, LEXICAL, 3, 1.5)
    with pytest.raises(DataError, match="2 queries on the dense side and 1 on the lexical"):
        fused(Hits.none(2, 3), LEXICAL, 3, 0.5)
    with pytest.raises(DataError, match="1 queries were searched for and 2 have judgements"):
        weight_curve(DENSE, LEXICAL, [{0: 1}, {}])
    with pytest.raises(DataError, match="no query has a relevant document"):
        weight_curve(DENSE, LEXICAL, [{0: 0}])
    with pytest.raises(ConfigError, match="none to choose from"):
        weight_curve(DENSE, LEXICAL, [{0: 1}], ())
