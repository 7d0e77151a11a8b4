"""Search among documents that are several points each: the score of one is that of its best point.

Such a search (MaxP; Dai and Callan, SIGIR 2019) finds a document by the passage that answers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from farreach.index.flat import search_flat, search_rows
from farreach.index.hits import Hits, of_owners
from farreach.index.vectors import Rows, Vectors

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
# Finds the best so many points for some queries.
Find = Callable[[Floats, int], Hits]

# Of less than this share of the points all are scored, one by one.
FEW = 0.01
# Points to look for first, for each document wanted; where they belong to fewer documents than are
# wanted, so many times as many are next.
_FIRST, _MORE = 3, 4


def search_documents(
    vectors: Vectors, queries: Floats, k: int, allowed: Mask | None = None
) -> Hits:
    """The best k rows for each of (n, d) queries, exactly.

    Args:
        vectors: to search.
        queries: (n, d).
        k: how many; where there are fewer, rows of -1 fill up.
        allowed: by point; only where it is True is searched. None: everywhere.
    """
    longest = vectors.longest
    if allowed is not None and is_few(allowed):
        points = np.flatnonzero(allowed)

        def find(queries: Floats, wanted: int) -> Hits:
            return search_rows(points, vectors.at, queries, wanted, longest=longest)
    else:
        pieces = vectors.pieces()

        def find(queries: Floats, wanted: int) -> Hits:
            return search_flat(pieces, queries, wanted, longest=longest, allowed=allowed)

    return best_documents(vectors.owners, find, queries, k)


def best_documents(owners: Rows | None, find: Find, queries: Floats, k: int) -> Hits:
    """The best k rows for each query, from as many of the best points as that takes.

    Args:
        owners: by point, its row, in rising order; None: rows are points.
        find: the best points for some of the queries; fewer than it is asked for if there are no
            more.
        queries: (n, d).
        k: how many.
    """
    if owners is None:
        return find(queries, k)
    result = Hits.none(len(queries), k)
    left, wanted = np.arange(len(queries)), min(_FIRST * k, len(owners))
    while len(left):
        points = find(queries[left], wanted)
        rows = of_owners(points, owners, k)
        result.scores[left], result.rows[left] = rows.scores, rows.rows
        lacks = (rows.counts() < k) & (points.counts() == wanted)
        left = left[lacks & (wanted < len(owners))]
        wanted = min(_MORE * wanted, len(owners))
    return result


def is_few(allowed: Mask) -> bool:
    """Whether so few points are searched that each is scored by itself."""
    return bool(np.count_nonzero(allowed) < FEW * len(allowed))
