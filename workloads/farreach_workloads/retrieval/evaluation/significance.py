"""Whether one ranking is better than another: a paired test and an interval, over the same queries.

Sources: Fisher's randomisation test as in Smucker et al., CIKM 2007; the percentile bootstrap of
Efron and Tibshirani, 1993.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farreach import seeding
from farreach.errors import DataError

Floats = NDArray[np.float64]

DRAWS = 10_000
# Numbers that are held at once.
TOGETHER = 1 << 22
# Sums of the same numbers in another order differ by no more, relative to the mean difference.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """How two rankings differ.

    Attributes:
        difference: mean of the first less that of the second.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p: probability of a difference at least as large, in either direction, if which of the two
            values of a query belongs to which ranking were chance.
        queries: how many there are.
    """

    difference: float
    low: float
    high: float
    p: float
    queries: int


def compared(first: Floats, second: Floats, seed: int = 0, draws: int = DRAWS) -> Comparison:
    """The difference of two rankings with its interval and the test.

    Args:
        first: a measure of each query, (n,).
        second: the same measure of the same queries.
        seed: of the draws.
        draws: see `randomisation_test` and `bootstrap_interval`.

    Raises:
        DataError: the queries do not belong together, there are none, or a value is not finite.
    """
    differences = _differences(first, second)
    interval = bootstrap_interval(differences, seed, draws)
    p = randomisation_test(first, second, seed, draws)
    return Comparison(float(differences.mean()), *interval, p, len(differences))


def randomisation_test(first: Floats, second: Floats, seed: int = 0, draws: int = DRAWS) -> float:
    """The two-sided p of the mean difference when the two values of each query may be swapped.

    If there are no more ways to swap than draws, all are counted and p is exact. Else p is
    (1 + draws that differ as much) / (1 + draws).

    Args:
        first: (n,).
        second: (n,).
        seed: of the draws.
        draws: how many ways to swap are tried.

    Raises:
        DataError: see `compared`.
    """
    differences = _differences(first, second)
    count = len(differences)
    exact = count < 63 and 2**count <= draws
    limit = abs(differences.sum()) - _ROUNDING * np.abs(differences).sum()
    extreme = total = 0
    for signs in _all_signs(count) if exact else _drawn_signs(count, seed, draws):
        extreme += int((np.abs(signs @ differences) >= limit).sum())
        total += len(signs)
    return extreme / total if exact else (1 + extreme) / (1 + total)


def bootstrap_interval(
    values: Floats, seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> tuple[float, float]:
    """The interval of a mean over queries, by the percentiles of means of queries drawn anew.

    Args:
        values: of each query, (n,); for two rankings their differences.
        seed: of the draws.
        draws: how many means.
        level: share of the means inside.

    Raises:
        DataError: there are no values, or one is not finite.
    """
    values = _finite(values)
    rng = seeding.generator(seed, "bootstrap")
    sizes = _sizes(draws, len(values))
    means = [values[rng.integers(len(values), size=(n, len(values)))].mean(1) for n in sizes]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _all_signs(count: int) -> Iterator[Floats]:
    numbers = np.arange(2**count, dtype=np.int64)
    for part in np.array_split(numbers, max(1, len(numbers) * count // TOGETHER)):
        yield np.where((part[:, None] >> np.arange(count)) & 1, -1.0, 1.0)


def _drawn_signs(count: int, seed: int, draws: int) -> Iterator[Floats]:
    rng = seeding.generator(seed, "randomisation")
    for size in _sizes(draws, count):
        yield np.where(rng.integers(2, size=(size, count), dtype=np.int8), -1.0, 1.0)


def _sizes(draws: int, width: int) -> list[int]:
    """Draws in parts that fit into memory."""
    most = max(1, TOGETHER // width)
    return [min(most, draws - begin) for begin in range(0, draws, most)]


def _differences(first: Floats, second: Floats) -> Floats:
    if np.shape(first) != np.shape(second):
        raise DataError(
            f"comparison: of {len(first)} and {len(second)} queries. Give the values of the same "
            "queries in the same order."
        )
    return _finite(np.asarray(first, np.float64) - second)


def _finite(values: Floats) -> Floats:
    if not len(values) or not np.isfinite(values).all():
        raise DataError(
            f"comparison: {len(values)} values, {int((~np.isfinite(values)).sum())} of them not "
            "finite. Give those of queries that have a relevant document."
        )
    return np.asarray(values, np.float64)
