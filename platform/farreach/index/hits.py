"""What a search finds: the best rows of every query and their scores, and merging several such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Stands where a query has fewer hits than were asked for; its score is minus infinity.
NO_ROW = -1


@dataclass(frozen=True)
class Hits:
    """The best k rows of n queries, best first; of equal scores the smaller row comes first.

    Attributes:
        scores: (n, k) float32; minus infinity where there is no hit.
        rows: (n, k) int64; -1 where there is no hit, and only after the hits.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]

    @classmethod
    def none(cls, queries: int, k: int) -> Hits:
        """No hit at all for any query."""
        scores = np.full((queries, k), -np.inf, np.float32)
        return cls(scores, np.full((queries, k), NO_ROW, np.int64))

    def __len__(self) -> int:
        """How many queries there were."""
        return len(self.rows)

    def counts(self) -> NDArray[np.int64]:
        """(n,) how many hits each query has."""
        return np.count_nonzero(self.rows != NO_ROW, axis=1)

    def of(self, query: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of one query, only where there is a hit."""
        found = self.rows[query] != NO_ROW
        return self.scores[query, found], self.rows[query, found]


def best(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Hits:
    """The best k of the candidates of each query.

    Args:
        scores: (n, m), in any order; what stands where `rows` is -1 does not matter.
        rows: (n, m); none occurs twice for a query, except -1.
        k: columns of the result, also where m is smaller.
    """
    absent = rows == NO_ROW
    order = np.lexsort((rows, -scores, absent))[:, :k]
    chosen = np.take_along_axis(np.where(absent, -np.inf, scores), order, axis=1)
    result = Hits.none(len(rows), k)
    result.scores[:, : order.shape[1]] = chosen
    result.rows[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    return result


def of_owners(hits: Hits, owners: NDArray[np.int64], k: int) -> Hits:
    """The best k owners of what was found, each by the best that it owns.

    Args:
        hits: (n, m).
        owners: by row of `hits`, the row that it stands for; in rising order.
        k: columns of the result.
    """
    rows = np.where(hits.rows == NO_ROW, NO_ROW, owners[hits.rows])
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    again = np.zeros(rows.shape, bool)
    repeats = np.diff(ordered, axis=1, prepend=NO_ROW - 1) == 0
    np.put_along_axis(again, order, repeats, axis=1)
    return best(hits.scores, np.where(again, NO_ROW, rows), k)


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """The best k over several parts of a collection that have no row in common.

    Args:
        parts: the hits of the same queries in each; at least one.
        k: columns of the result.
    """
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    return best(scores, rows, k)
