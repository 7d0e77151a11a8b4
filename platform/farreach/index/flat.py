"""Exact search by inner product over vectors as they lie in memory or in mapped files.

All rows are scored in blocks that several threads take in turn, so that one query alone keeps all
of them busy; FAISS divides the queries among threads, not the vectors. Of every few rows only the
largest score is kept. Rows that may be among the best, given how far single precision can be off,
are scored again in double precision: the result depends neither on blocks nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farreach.index.hits import NO_ROW, Hits, best
from farreach.index.vectors import Piece, Rows

# Rows of a product that a core computes in about a millisecond.
BLOCK = 4096
# Rows of which the largest score is kept, where few hits are wanted.
GROUP = 16
QUERIES_TOGETHER = 256
# Scores kept at once, 128 MiB, whatever the number of rows.
_MOST_KEPT = 1 << 25
_UNIT = 2.0**-24  # half the distance from 1 to the next number in single precision

Floats = NDArray[np.float32]
Block = tuple[int, NDArray[Any]]


def search_flat(
    pieces: Sequence[Piece],
    queries: Floats,
    k: int,
    *,
    longest: float,
    allowed: NDArray[np.bool_] | None = None,
    threads: int | None = None,
) -> Hits:
    """The best k rows of every query, exactly.

    Args:
        pieces: first row and (m, d) float32 or float16 vectors of each, in the order of the rows;
            memory that may be written to, as torch wants it, and is not.
        queries: (n, d).
        k: how many.
        longest: at least the largest Euclidean norm of the vectors.
        allowed: by row, from 0: only rows where it is True are found; by default all.
        threads: by default as many as torch uses.

    Returns:
        Scores are inner products in double precision, rounded once.
    """
    blocks = [
        (first + begin, array[begin : begin + BLOCK])
        for first, array in pieces
        for begin in range(0, len(array), BLOCK)
    ]
    if not blocks or not len(queries):
        return Hits.none(len(queries), k)
    # Of few hits a large group costs less; of many, all of their groups are scored again.
    group = GROUP if k <= 2 * GROUP else GROUP // 4
    together = max(1, min(QUERIES_TOGETHER, _MOST_KEPT // sum(_groups(blocks, group))))
    many = threads or torch.get_num_threads()
    found = [
        _Search(blocks, queries[i : i + together], allowed, longest, group, many).best(k)
        for i in range(0, len(queries), together)
    ]
    return Hits(
        np.concatenate([hits.scores for hits in found]),
        np.concatenate([hits.rows for hits in found]),
    )


def search_rows(
    rows: Rows, gather: Callable[[Rows], Floats], queries: Floats, k: int, *, longest: float
) -> Hits:
    """The best k of some rows, exactly.

    Args:
        rows: (m,) in rising order.
        gather: gives the (i, d) vectors of rows.
        queries: (n, d).
        k: how many.
        longest: at least the largest Euclidean norm of these vectors.
    """
    result = Hits.none(len(queries), k)
    for begin in range(0, len(rows), 16 * BLOCK):
        some = rows[begin : begin + 16 * BLOCK]
        hits = search_flat([(0, gather(some))], queries, k, longest=longest)
        numbers = np.where(hits.rows == NO_ROW, NO_ROW, some[hits.rows])
        result = best(
            np.concatenate([result.scores, hits.scores], axis=1),
            np.concatenate([result.rows, numbers], axis=1),
            k,
        )
    return result


def rescored(
    hits: Hits, gather: Callable[[Rows], Floats], queries: Floats, k: int, *, longest: float
) -> Hits:
    """The best k of candidates by their exact scores.

    Args:
        hits: (n, m) candidates.
        gather: gives the (i, d) vectors of rows.
        queries: (n, d).
        k: how many to keep.
        longest: at least the largest Euclidean norm of the vectors.
    """
    result = Hits.none(len(queries), k)
    together = max(1, BLOCK // max(1, hits.rows.shape[1]))
    slack = _slack(queries, longest)

    def rescore(begin: int) -> None:
        here = slice(begin, begin + together)
        exact = _exact(hits.rows[here], gather, queries[here], k, slack[here])
        found = best(exact, hits.rows[here], k)
        result.scores[here], result.rows[here] = found.scores, found.rows

    _side_by_side(rescore, range(0, len(queries), together), torch.get_num_threads())
    return result


def products(vectors: NDArray[Any], queries: Floats) -> Floats:
    """(m,) inner products of (m, d) vectors with (m, d) queries, or one (d,), in double precision.

    The sum of a row runs in an order that only d decides, so a vector has the same score wherever
    it lies.
    """
    return (vectors.astype(np.float64) * queries.astype(np.float64)).sum(axis=1).astype(np.float32)


def _groups(blocks: Sequence[Block], group: int) -> list[int]:
    """Number of groups of each block; the last one may be shorter."""
    return [-(-len(array) // group) for _, array in blocks]


def _slack(queries: Floats, longest: float) -> NDArray[np.float64]:
    """(n,) how far below the best a score in single precision may be that is as good in truth.

    A sum of d products is off by at most this times both norms, whatever its order (Higham, 2002,
    §3.1), and the best score may be off as well.
    """
    width = queries.shape[1]
    off = width * _UNIT / (1 - width * _UNIT)
    return 2 * off * longest * np.linalg.norm(queries.astype(np.float64), axis=1)


def _exact(
    rows: Rows,
    gather: Callable[[Rows], Floats],
    queries: Floats,
    k: int,
    slack: NDArray[np.float64],
) -> Floats:
    """(n, m) exact scores of candidates, minus infinity for those not among the best k."""
    scores: Floats = np.full(rows.shape, -np.inf, np.float32)
    places, columns = np.nonzero(rows != NO_ROW)
    vectors = gather(rows[places, columns])
    scores[places, columns] = np.einsum("md,md->m", vectors, queries[places])
    rank = max(scores.shape[1] - k, 0)
    lowest = np.partition(scores, rank, axis=1)[:, rank] - slack
    kept = scores[places, columns] >= lowest[places]
    scores[:] = -np.inf
    places, columns = places[kept], columns[kept]
    scores[places, columns] = products(vectors[kept], queries[places])
    return scores


class _Search:
    """One search for a few queries."""

    def __init__(
        self,
        blocks: Sequence[Block],
        queries: Floats,
        allowed: NDArray[np.bool_] | None,
        longest: float,
        group: int,
        threads: int,
    ) -> None:
        self.blocks, self.queries, self.allowed = blocks, queries, allowed
        self.group, self.threads = group, threads
        self.firsts = np.array([first for first, _ in blocks])
        self.ends = np.array([first + len(array) for first, array in blocks])
        self.offsets = np.cumsum([0, *_groups(blocks, group)])
        self.slack = _slack(queries, longest)

    def best(self, k: int) -> Hits:
        maxima = self._maxima()
        result = Hits.none(len(self.queries), k)
        kept = min(k, maxima.shape[1])
        # k groups have a row that scores at least this.
        lowest = torch.topk(maxima, kept).values[:, -1].double().numpy()
        if kept < k:
            lowest[:] = -np.inf

        def finish(query: int) -> None:
            scores = maxima[query].numpy()
            groups = np.flatnonzero(
                (scores >= lowest[query] - self.slack[query]) & (scores > -np.inf)
            )
            rows, exact = self._exactly(groups, query, k)
            order = np.lexsort((rows, -exact))[:k]
            result.scores[query, : len(order)] = exact[order]
            result.rows[query, : len(order)] = rows[order]

        _side_by_side(finish, range(len(self.queries)), self.threads)
        return result

    def _maxima(self) -> Tensor:
        """(n, groups) the largest score of every group."""
        queries = torch.from_numpy(np.array(self.queries, np.float32))
        if len(queries) == 1:
            # A product with a matrix runs faster than one with a vector, which uses one core.
            queries = queries.expand(2, -1).contiguous()
        maxima = torch.empty(int(self.offsets[-1]), len(queries))

        def score(number: int) -> None:
            first, array = self.blocks[number]
            scores = torch.mm(torch.from_numpy(array).float(), queries.T)
            if self.allowed is not None:
                barred = torch.from_numpy(~self.allowed[first : first + len(array)])
                scores.masked_fill_(barred[:, None], -torch.inf)
            out = maxima[self.offsets[number] : self.offsets[number + 1]]
            whole = len(array) // self.group
            full = scores[: whole * self.group].view(whole, self.group, len(queries))
            torch.amax(full, 1, out=out[:whole])
            if whole < len(out):
                torch.amax(scores[whole * self.group :], 0, out=out[whole])

        _side_by_side(score, range(len(self.blocks)), self.threads)
        return maxima[:, : len(self.queries)].T.contiguous()

    def _exactly(self, groups: Rows, query: int, k: int) -> tuple[Rows, Floats]:
        """Rows of the groups that may be among the best, and their scores."""
        rows, vectors = self._members(groups)
        # einsum, as a BLAS would begin threads of its own below each of ours.
        roughly = np.einsum("md,d->m", vectors, self.queries[query])
        if self.allowed is not None:
            roughly[~self.allowed[rows]] = -np.inf
        lowest = np.partition(roughly, -k)[-k] if len(rows) > k else -np.inf
        kept = (roughly >= lowest - self.slack[query]) & (roughly > -np.inf)
        return rows[kept], products(vectors[kept], self.queries[query])

    def _members(self, groups: Rows) -> tuple[Rows, Floats]:
        """(m,) rows of the groups, in rising order, and their (m, d) vectors."""
        owners = np.searchsorted(self.offsets, groups, "right") - 1
        begins = self.firsts[owners] + self.group * (groups - self.offsets[owners])
        rows = begins[:, None] + np.arange(self.group)
        rows = rows[rows < self.ends[owners, None]]
        vectors = np.empty((len(rows), self.queries.shape[1]), np.float32)
        present = np.unique(owners)
        cuts = np.searchsorted(rows, [self.firsts[present], self.ends[present]]).T
        for owner, (begin, end) in zip(present.tolist(), cuts.tolist(), strict=True):
            first, array = self.blocks[owner]
            vectors[begin:end] = array[rows[begin:end] - first]
        return rows, vectors


def _side_by_side(work: Callable[[int], None], numbers: Sequence[int], threads: int) -> None:
    """Do some work for every number, in threads that take the next one as soon as they can."""
    claims = iter(list(numbers))

    def take() -> None:
        for number in claims:
            work(number)

    if threads == 1 or len(numbers) == 1:
        take()
        return
    helpers = [_pool(threads).submit(take) for _ in range(threads)]
    for helper in helpers:
        helper.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "search")
