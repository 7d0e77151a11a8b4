"""Two rankings of the same documents made one: by standardised scores, or by ranks alone.

Sources: reciprocal rank fusion, Cormack et al., SIGIR 2009; standardised scores, Montague and
Aslam, CIKM 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from farreach.errors import ConfigError, DataError
from farreach.index.gains import Floats, Grades, Rows, gains_of, ideal_of, ndcg
from farreach.index.hits import NO_ROW, Hits, best

Kind = Literal["z", "rrf"]

# What is added to ranks that count from 1, so that the first ones do not decide alone.
RANK_OFFSET = 60
TUNED_AT = 10
WEIGHTS = tuple(step / 10 for step in range(11))


def fused(dense: Hits, lexical: Hits, k: int, weight: float, kind: Kind = "z") -> Hits:
    """The k best of all documents that one of the sides found.

    A document's score is (1 - weight) × that of the dense side + weight × that of the lexical side.
    With "z" a side's score is standardised by the mean and the standard deviation of what the side
    found for the query, and a document that it did not find has the lowest of these scores. Where
    all that it found has the same score, such as the only document with a word, it counts 1 and
    what was not found -1. With "rrf" it is 1 / (60 + rank), and 0 for a document that was not
    found. A side without weight adds no documents.

    Args:
        dense: n queries and any number of candidates; a document at most once for each.
        lexical: the same queries and rows.
        k: how many to keep.
        weight: of the lexical side, from 0 to 1.
        kind: how.

    Returns:
        Of (n, k), of equal scores the lower row first.

    Raises:
        ConfigError: the weight is out of range.
        DataError: the sides have unequal numbers of queries.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight={weight:g}: the lexical side's weight is to be from 0 to 1.")
    if len(dense.rows) != len(lexical.rows):
        raise DataError(
            f"fusion: {len(dense.rows)} queries on the dense side and {len(lexical.rows)} on the "
            "lexical side. Search both for the same queries."
        )
    sides = [(dense, 1 - weight), (lexical, weight)]
    weighed = [(side.rows, *_weighed(side, share, kind)) for side, share in sides if share > 0]
    rows, scores = _joined(weighed)
    return best(scores.astype(np.float32), rows, k)


def weight_curve(
    dense: Hits,
    lexical: Hits,
    relevant: Grades,
    weights: Sequence[float] = WEIGHTS,
    kind: Kind = "z",
) -> dict[float, float]:
    """Mean nDCG@10 with each weight, over the queries that have a relevant document.

    Args:
        dense: of n queries that are used for nothing else.
        lexical: of the same.
        relevant: grades by row, of each query.
        weights: of the lexical side.
        kind: see `fused`.

    Raises:
        ConfigError: there are no weights, or one is out of range.
        DataError: the numbers of queries differ, or no query has a relevant document.
    """
    if not weights:
        raise ConfigError("weights: there are none to choose from. Give at least one.")
    if len(relevant) != len(dense.rows):
        raise DataError(
            f"fusion: {len(dense.rows)} queries were searched for and {len(relevant)} have "
            "judgements. Give the same ones in the same order."
        )
    ideal = ideal_of(relevant)
    if not ideal.size:
        raise DataError("fusion: no query has a relevant document. Give judgements above 0.")
    curve = {}
    for weight in weights:
        rows = fused(dense, lexical, TUNED_AT, weight, kind).rows
        curve[weight] = float(np.nanmean(ndcg(gains_of(rows, relevant), ideal, TUNED_AT)))
    return curve


def _weighed(side: Hits, share: float, kind: Kind) -> tuple[Floats, Floats]:
    """Each candidate's part of the score, (n, any), and that of what was not found, (n, 1)."""
    there = side.rows != NO_ROW
    if kind == "rrf":
        ranks = np.cumsum(there, axis=1)
        return share / (RANK_OFFSET + ranks), np.zeros((len(there), 1))
    scores = np.where(there, side.scores.astype(np.float64), 0)
    count = np.maximum(there.sum(1, keepdims=True), 1)
    mean = scores.sum(1, keepdims=True) / count
    centred = np.where(there, scores - mean, 0)
    deviation = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    is_flat = there.any(1, keepdims=True) & (deviation == 0)
    standard = np.where(is_flat, 1.0, centred / np.where(deviation > 0, deviation, 1))
    lowest = np.where(is_flat, -1.0, standard.min(1, keepdims=True, initial=0))
    return share * standard, share * lowest


def _joined(weighed: Sequence[tuple[Rows, Floats, Floats]]) -> tuple[Rows, Floats]:
    """All candidates by rising row, each once for a query, and their sums."""
    rows = np.concatenate([own for own, _, _ in weighed], 1)
    missing = sum(fill for _, _, fill in weighed)
    # What a candidate adds to the sum of what it would have if no side had found it.
    added = np.concatenate([part - fill for _, part, fill in weighed], 1)
    order = np.argsort(rows, axis=1, kind="stable")
    rows, added = np.take_along_axis(rows, order, 1), np.take_along_axis(added, order, 1)
    double: NDArray[np.bool_] = rows[:, 1:] == rows[:, :-1]
    added[:, :-1] += np.where(double, added[:, 1:], 0)
    valid = rows != NO_ROW
    valid[:, 1:] &= ~double
    return np.where(valid, rows, NO_ROW), missing + added
