import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test, ttest_rel

from farreach.errors import DataError
from farreach_workloads.retrieval.evaluation.significance import (
    bootstrap_interval,
    compared,
    randomisation_test,
)


def mean_difference(first, second, axis):
    return np.mean(first - second, axis=axis)


def test_few_queries_by_hand():
    """Of the 8 ways to give signs to 1, 2 and 3 two sum to 6 or -6, and none to more."""
    first, second = np.array([1.0, 2.0, 3.0]), np.zeros(3)
    assert randomisation_test(first, second) == 2 / 8
    # 1 and 3 against 2 is 2, which 1 + 2 - 3 = 0 does not reach: 6 of 8.
    assert randomisation_test(np.array([1.0, -2.0, 3.0]), second) == 6 / 8
    assert randomisation_test(second, second) == 1.0
    assert randomisation_test(np.array([0.3]), np.array([0.1])) == 1.0


@pytest.mark.parametrize(("count", "shift"), [(5, 0.3), (9, 0.0), (12, 0.2)])
def test_few_queries_are_those_of_scipy(count, shift):
    rng = np.random.default_rng(count)
    first, second = rng.random(count) + shift, rng.random(count)
    oracle = permutation_test(
        (first, second),
        mean_difference,
        permutation_type="samples",
        n_resamples=2**count,
        vectorized=True,
    )
    assert randomisation_test(first, second) == pytest.approx(oracle.pvalue, abs=1e-12)


def test_many_queries_come_near_those_of_scipy():
    rng = np.random.default_rng(0)
    first = rng.random(300) + 0.01
    second = rng.random(300)
    oracle = permutation_test(
        (first, second),
        mean_difference,
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    p = randomisation_test(first, second)
    assert 0.01 < p < 0.6
    assert p == pytest.approx(oracle.pvalue, abs=0.02)
    assert p == pytest.approx(ttest_rel(first, second).pvalue, abs=0.02)


def test_ties_in_another_order_of_sums_count():
    values = np.array([0.1, 0.2, 0.3, 0.7, 0.15, 0.25])
    once = randomisation_test(values, np.zeros(6))
    assert once == randomisation_test(values[::-1].copy(), np.zeros(6)) == 2 / 64


def test_a_clear_difference_has_the_smallest_p_that_draws_can_tell():
    assert randomisation_test(np.ones(200), np.zeros(200), draws=999) == 1 / 1000


def test_draws_depend_on_the_seed_alone():
    rng = np.random.default_rng(0)
    first, second = rng.random(100), rng.random(100)
    assert compared(first, second, seed=1) == compared(first, second, seed=1)
    assert compared(first, second, seed=1) != compared(first, second, seed=2)


def test_an_interval_comes_near_that_of_scipy_and_of_the_normal_distribution():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values)
    oracle = bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=0.05 * half)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high
    assert bootstrap_interval(np.full(10, 0.25)) == (0.25, 0.25)


def test_a_comparison_has_all_of_it():
    rng = np.random.default_rng(0)
    first, second = rng.random(50) + 0.2, rng.random(50)
    result = compared(first, second, seed=3)
    assert result.difference == pytest.approx((first - second).mean())
    assert (result.low, result.high) == bootstrap_interval(first - second, 3)
    assert result.p == randomisation_test(first, second, 3)
    assert result.queries == 50
    other = compared(second, first, seed=3)
    assert (other.difference, other.p) == (-result.difference, result.p)


def test_many_draws_of_many_queries_are_made_in_parts():
    rng = np.random.default_rng(0)
    result = compared(rng.random(9000), rng.random(9000), draws=1200)
    assert result.low < result.difference < result.high
    assert 0 < result.p <= 1


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="of 2 and 3 queries"):
        compared(np.ones(2), np.ones(3))
    with pytest.raises(DataError, match="2 values, 1 of them not finite"):
        compared(np.array([1, np.nan]), np.ones(2))
    with pytest.raises(DataError, match="0 values"):
        bootstrap_interval(np.array([]))
