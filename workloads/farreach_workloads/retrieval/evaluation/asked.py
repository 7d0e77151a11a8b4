"""Judged queries asked of an index: what vectors and words find, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farreach.console import warn
from farreach.errors import DataError
from farreach.index.fusion import Kind, weight_curve
from farreach.index.hits import NO_ROW, Hits, best
from farreach.index.reader import Reader
from farreach.progress import Progress
from farreach_workloads.retrieval.evaluation.beir import BeirSet
from farreach_workloads.retrieval.searcher import Mode, Searcher, Sides

_TOGETHER = 256


@dataclass(frozen=True)
class Asked:
    """Queries with the rows of an index.

    Attributes:
        names: ids of n queries.
        texts: of them.
        relevant: grade by row of each.
        own: (n,) the row of a document with the query's own id, which is no answer; else -1.
        missing: judged documents that the index has not.
    """

    names: list[str]
    texts: list[str]
    relevant: list[dict[int, int]]
    own: NDArray[np.int64]
    missing: int

    @classmethod
    def of(cls, given: BeirSet, index: Reader) -> Asked:
        """The queries of a split.

        Raises:
            DataError: the index has none of the documents that are relevant.
        """
        judged = list({name for grades in given.relevant.values() for name in grades})
        row_of = _rows(index, judged)
        relevant = [
            {row_of[name]: grade for name, grade in grades.items() if name in row_of}
            for grades in given.relevant.values()
        ]
        if not any(grade > 0 for grades in relevant for grade in grades.values()):
            raise DataError(
                f"{index.path}: has none of the documents that {given.path} finds relevant. Give "
                "the queries of what is indexed."
            )
        missing = len(judged) - len(row_of)
        if missing:
            lack = f"lacks {missing:,} of the {len(judged):,} judged documents"
            warn(f"warning: {index.path}: {lack}")
        names = list(given.queries)
        rows = _rows(index, names)
        own = np.array([rows.get(name, NO_ROW) for name in names], np.int64)
        return cls(names, list(given.queries.values()), relevant, own, missing)

    def without_own(self, hits: Hits, k: int) -> Hits:
        """The best k without the queries themselves."""
        is_own = (hits.rows == self.own[:, None]) & (hits.rows != NO_ROW)
        return best(hits.scores, np.where(is_own, NO_ROW, hits.rows), k)

    def ask(self, searcher: Searcher, depth: int, mode: Mode) -> Sides:
        """The best `depth` documents of each side that a mode asks."""
        found = ask(searcher, self.texts, depth + 1, mode)
        return Sides(
            *(
                None if side is None else self.without_own(side, depth)
                for side in (found.dense, found.lexical)
            )
        )


def ask(searcher: Searcher, texts: Sequence[str], depth: int, mode: Mode) -> Sides:
    """The best `depth` documents of each side that a mode asks, with progress."""
    found = []
    with Progress("search", len(texts), "queries") as progress:
        for begin in range(0, len(texts), _TOGETHER):
            some = texts[begin : begin + _TOGETHER]
            found.append(searcher.sides(some, depth, mode))
            progress.update(begin + len(some), {})
    return Sides(
        _stacked([side.dense for side in found]), _stacked([side.lexical for side in found])
    )


def curve(asked: Asked, sides: Sides, kind: Kind) -> dict[float, float]:
    """Mean nDCG@10 by weight of the words; see `farreach.index.fusion.weight_curve`."""
    assert sides.dense is not None
    assert sides.lexical is not None
    return weight_curve(sides.dense, sides.lexical, asked.relevant, kind=kind)


def _stacked(parts: Sequence[Hits | None]) -> Hits | None:
    there = [part for part in parts if part is not None]
    if not there:
        return None
    return Hits(
        np.concatenate([part.scores for part in there]),
        np.concatenate([part.rows for part in there]),
    )


def _rows(index: Reader, ids: list[str]) -> dict[str, int]:
    places, rows = index.alive(ids)
    return {ids[place]: row for place, row in zip(places.tolist(), rows.tolist(), strict=True)}
