"""Grades of what was found, and nDCG.

Source: Järvelin and Kekäläinen, ACM TOIS 2002, with linear gains as in trec_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
# Of each query: the grade of each document that is judged, by its row.
Grades = Sequence[Mapping[int, float]]


def gains_of(rows: Rows, relevant: Grades) -> Floats:
    """What each found document is worth.

    Args:
        rows: (n, k), -1 where there is none.
        relevant: of n queries.

    Returns:
        (n, k): grades; 0 for what is not judged, or judged below 0.
    """
    gains = np.zeros(rows.shape)
    sizes = [len(own) for own in relevant]
    judged = np.fromiter((row for own in relevant for row in own), np.int64, sum(sizes))
    if not len(judged) or not rows.size:
        return gains
    grades = np.fromiter((grade for own in relevant for grade in own.values()), np.float64)
    span = max(int(judged.max()), int(rows.max())) + 1
    keys = np.repeat(np.arange(len(sizes)), sizes) * span + judged
    order = np.argsort(keys)
    keys, grades = keys[order], np.maximum(grades[order], 0)
    wanted = np.arange(len(rows))[:, None] * span + rows
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((rows >= 0) & (keys[at] == wanted), grades[at], gains)


def ideal_of(relevant: Grades) -> Floats:
    """The grades above 0 of each query, the highest first, then zeros: (n, the most there are)."""
    kept = [
        sorted((grade for grade in own.values() if grade > 0), reverse=True) for own in relevant
    ]
    ideal = np.zeros((len(kept), max(map(len, kept), default=0)))
    for number, grades in enumerate(kept):
        ideal[number, : len(grades)] = grades
    return ideal


def ndcg(gains: Floats, ideal: Floats, k: int) -> Floats:
    """The discounted gain of the first k, relative to that of the best k that there could be.

    Args:
        gains: (n, any), in the order of the ranks.
        ideal: (n, any), falling; see `ideal_of`.
        k: where it is cut.

    Returns:
        (n,), NaN where nothing is relevant.
    """
    best = _discounted(ideal, k)
    return _discounted(gains, k) / np.where(best > 0, best, np.nan)


def _discounted(gains: Floats, k: int) -> Floats:
    """The sum over ranks r of gain / log2(r + 1)."""
    first = gains[:, :k]
    return first @ (1 / np.log2(np.arange(2, first.shape[1] + 2)))
