import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.copies import (
    Whitening,
    average_precision,
    gem,
    mean_average_precision,
    micro_average_precision,
    recall_at_1,
    rmac,
    rmac_regions,
    rmac_vectors,
    similarity,
)


def maps_of(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_regions_of_a_square_map_by_hand():
    """7 x 7: sides 7, floor(14 / 3) = 4 and floor(14 / 4) = 3."""
    expected = [(0, 0, 7)]
    expected += [(top, left, 4) for top in (0, 3) for left in (0, 3)]
    expected += [(top, left, 3) for top in (0, 2, 4) for left in (0, 2, 4)]
    assert rmac_regions(7, 7) == expected


def test_regions_of_a_longer_map_by_hand():
    """10 x 7: two squares at level 1 overlap by 4/7, three by 5.5/7; 4/7 is nearer to 0.4.

    So there are 2, 3 and 4 along the longer side: 7/3 between those of level 3, rounded down.
    """
    expected = [(0, 0, 7), (3, 0, 7)]
    expected += [(top, left, 4) for top in (0, 3, 6) for left in (0, 3)]
    expected += [(top, left, 3) for top in (0, 2, 4, 7) for left in (0, 2, 4)]
    assert rmac_regions(10, 7) == expected
    turned = {(left, top, side) for top, left, side in expected}
    assert set(rmac_regions(7, 10)) == turned


def test_longer_maps_have_more_squares():
    """14 x 4: overlaps -1/4 (3), 1/6 (4), 3/8 (5), 1/2 (6): five."""
    assert rmac_regions(14, 4, 1) == [(top, 0, 4) for top in (0, 2, 5, 7, 10)]
    # 11 x 3: five overlap by 1/3 and six by 7/15, which are equally near.
    assert rmac_regions(11, 3, 1) == [(top, 0, 3) for top in (0, 1, 3, 4, 6, 8)]


def test_small_maps_leave_out_squares_without_a_side():
    assert rmac_regions(1, 1) == [(0, 0, 1)]
    assert [side for *_, side in rmac_regions(2, 2)] == [2, 1, 1, 1, 1] + [1] * 9


@pytest.mark.parametrize(("height", "width"), [(7, 7), (10, 7), (5, 9)])
def test_rmac_is_that_of_a_loop(height, width):
    maps = maps_of(2, 5, height, width)
    for image, vector in zip(maps.numpy(), rmac(maps).numpy(), strict=True):
        total = np.zeros(5)
        for top, left, side in rmac_regions(height, width):
            region = np.array(
                [
                    max(
                        image[channel, y, x]
                        for y in range(top, top + side)
                        for x in range(left, left + side)
                    )
                    for channel in range(5)
                ]
            )
            total += region / math.sqrt((region**2).sum())
        np.testing.assert_allclose(vector, total / math.sqrt((total**2).sum()), atol=1e-6)


def test_rmac_does_not_depend_on_the_strength_of_activations():
    maps = maps_of(2, 5, 7, 7)
    torch.testing.assert_close(rmac(3 * maps), rmac(maps))


def test_whitened_regions_are_normalised_before_they_are_summed():
    maps = maps_of(30, 5, 7, 7)
    vectors = rmac_vectors(maps)
    assert vectors.shape == (30, 14, 5)
    whitening = Whitening.fit(vectors.flatten(0, 1), 3)
    expected = F.normalize(F.normalize(whitening.apply(vectors), dim=2).sum(1), dim=1)
    torch.testing.assert_close(rmac(maps, whitening=whitening), expected)
    assert expected.shape == (30, 3)


def test_whitened_features_have_no_correlation_and_keep_the_largest_variances():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    spread = torch.tensor([5.0, 0.1, 2.0, 0.5])
    rows = torch.randn(500, 4, generator=generator) * spread @ turn + 7
    whitening = Whitening.fit(rows, 2)
    white = whitening.apply(rows)
    np.testing.assert_allclose(np.cov(white.T), np.eye(2), atol=1e-5)
    torch.testing.assert_close(white.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    kept = F.normalize(whitening.matrix.float(), dim=0).t() @ turn.t()
    np.testing.assert_allclose(kept[0].abs(), [1, 0, 0, 0], atol=0.1)
    np.testing.assert_allclose(kept[1].abs(), [0, 0, 1, 0], atol=0.1)


def test_directions_without_variance_stay_finite():
    rows = torch.cat([maps_of(50, 3), torch.ones(50, 2)], 1)
    white = Whitening.fit(rows, 5).apply(rows)
    assert torch.isfinite(white).all()
    assert float(white[:, 3:].abs().max()) < 1e-3


def test_more_directions_than_vectors_span_are_refused():
    rows = maps_of(10, 30)
    assert Whitening.fit(rows, 9).apply(rows).shape == (10, 9)
    with pytest.raises(DataError, match="10 dimensions are asked of 10 vectors of 30 numbers"):
        Whitening.fit(rows, 10)
    with pytest.raises(DataError, match="span 4 at most"):
        Whitening.fit(maps_of(100, 4), 5)
    with pytest.raises(DataError, match="all 10 vectors are equal"):
        Whitening.fit(torch.ones(10, 4), 2)


def test_gem_goes_from_the_mean_to_the_maximum():
    maps = maps_of(2, 5, 4, 3)
    torch.testing.assert_close(gem(maps, 1), F.normalize(maps.mean((2, 3)), dim=1))
    torch.testing.assert_close(
        gem(maps, 500), F.normalize(maps.amax((2, 3)), dim=1), atol=6e-3, rtol=0
    )
    by_hand = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])  # (14)^(1/3) and 2
    torch.testing.assert_close(
        gem(by_hand), F.normalize(torch.tensor([[14 ** (1 / 3), 2.0]]), dim=1)
    )


SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])


def test_precision_of_one_ranking_by_hand():
    """Right at the ranks 1, 3 and 5: precisions 1, 2/3 and 3/5; just before 1, 1/2 and 2/4."""
    right = np.array([True, False, True, False, True])
    steps = (1 + 2 / 3 + 3 / 5) / 3
    assert average_precision(SCORES, right, 3) == pytest.approx(steps)
    trapezoids = (1 + (2 / 3 + 1 / 2) / 2 + (3 / 5 + 1 / 2) / 2) / 3
    assert average_precision(SCORES, right, 3, "trapezoids") == pytest.approx(trapezoids)
    # A fourth that is not ranked is never found.
    assert average_precision(SCORES, right, 4) == pytest.approx(steps * 3 / 4)


@pytest.mark.parametrize(
    ("rank", "steps", "trapezoids"), [(1, 1, 1), (2, 1 / 2, 1 / 4), (4, 1 / 4, 1 / 8)]
)
def test_a_single_original_by_hand(rank, steps, trapezoids):
    right = np.arange(1, 6) == rank
    assert average_precision(SCORES, right, 1) == pytest.approx(steps)
    assert average_precision(SCORES, right, 1, "trapezoids") == pytest.approx(trapezoids)


@pytest.mark.parametrize("seed", range(3))
def test_area_under_a_random_ranking_by_its_definition(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.random(40), rng.random(40) < 0.3
    order = sorted(range(40), key=lambda row: -scores[row])
    recall, area = 0.0, {"steps": 0.0, "trapezoids": 0.0}
    previous = 1.0
    for taken in range(1, 41):
        found = sum(right[row] for row in order[:taken])
        gain, precision = found / right.sum() - recall, found / taken
        area["steps"] += gain * precision
        area["trapezoids"] += gain * (precision + previous) / 2
        recall, previous = found / right.sum(), precision
    for rule, expected in area.items():
        found = average_precision(scores, right, int(right.sum()), rule)
        assert found == pytest.approx(expected)


def test_equal_scores_count_against_what_is_right():
    equal = np.ones(4)
    assert average_precision(equal, np.array([True, False, False, False]), 1) == 0.25
    similarities, relevant = torch.ones(1, 4), torch.tensor([[True, False, False, False]])
    assert recall_at_1(similarities, relevant) == 0.0


def test_queries_by_hand_and_those_without_an_original_left_out():
    similarities = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.2, 0.1], [0.1, 0.5, 0.6]])
    relevant = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
    assert mean_average_precision(similarities, relevant) == pytest.approx((1 + 1 / 2) / 2)
    assert mean_average_precision(similarities, relevant, "trapezoids") == pytest.approx(
        (1 + 1 / 4) / 2
    )
    assert recall_at_1(similarities, relevant) == 0.5
    # One ranking: 0.9 right, 0.6, 0.5, 0.3 wrong, then 0.2 wrong before 0.2 right: 6th.
    micro = micro_average_precision(similarities, relevant, 2)
    assert micro == pytest.approx((1 + 2 / 6) / 2)
    assert micro_average_precision(similarities, relevant, 4) == pytest.approx(micro / 2)


def test_all_originals_may_be_the_whole_database():
    assert recall_at_1(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)) == 1.0


def test_similarity_is_the_cosine():
    found = similarity(
        torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 5.0], [2.0, 0.0]])
    )
    torch.testing.assert_close(found, torch.tensor([[math.sqrt(0.5), 0.0, 1.0]]))


def test_what_does_not_fit_together_is_refused():
    none = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(DataError, match="0 originals"):
        mean_average_precision(torch.rand(2, 3), none)
    with pytest.raises(DataError, match="Give an original"):
        recall_at_1(torch.rand(2, 4), ~none)
    with pytest.raises(DataError, match="positives: is 1, but 6 of the pairs"):
        micro_average_precision(torch.rand(2, 3), ~none, 1)
