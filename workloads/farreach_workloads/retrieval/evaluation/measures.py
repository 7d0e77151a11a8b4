"""Measures of rankings at any cut-offs, for each query and on average.

With the grades of the first k documents, R documents of grade above 0 and P(r) the share of these
among the first r ranks:

    ndcg            Σ grade / log2(rank + 1) over the first k, relative to the best order
    map             Σ P(r) over the ranks r up to k of relevant documents, divided by R
    recall          relevant among the first k, divided by R
    capped_recall   the same, divided by min(R, k)
    precision       the same, divided by k
    mrr             1 / rank of the first relevant one, 0 if it is not among the first k
    hit             whether there is one: the recall of open-domain question answering
    hole            share of the k places that hold a document which is judged for no query

Documents without a judgement count as not relevant. Sources: trec_eval for all but capped_recall
and hole, which are BEIR's, arXiv:2104.08663.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farreach.errors import ConfigError, DataError
from farreach.index.gains import Floats, Grades, Rows, gains_of, ideal_of, ndcg

CUTS = (1, 3, 5, 10, 100, 1000)
NAMES = ("ndcg", "map", "recall", "capped_recall", "precision", "mrr", "hit", "hole")
# Cut-offs of each measure.
Wanted = Mapping[str, Sequence[int]]
WANTED: Wanted = dict.fromkeys(NAMES, CUTS)


def measured(
    rows: Rows, relevant: Grades, wanted: Wanted = WANTED, own: Rows | None = None
) -> dict[str, Floats]:
    """Measures of each query, of a ranking by rows.

    Args:
        rows: (n, any), the best first, -1 where there is none. Where fewer documents were found
            than a cut-off asks for, the places that are left count as not relevant.
        relevant: of n queries, the grade of each judged row.
        wanted: cut-offs, from 1 on, by name of the measure.
        own: (n,) the row of the query itself where it is one of the documents, else -1. It is no
            answer: it is taken out before any cut, and out of `relevant`. Ask an index for one
            document more than the largest cut-off.

    Returns:
        By name and cut-off, such as "ndcg@10": (n,); NaN for a query without a relevant document.

    Raises:
        ConfigError: there is no such measure or cut-off.
        DataError: the numbers of queries differ, or a query found a document twice.
    """
    _check_wanted(wanted)
    if len(rows) != len(relevant) or (own is not None and len(own) != len(rows)):
        raise DataError(
            f"ranking: of {len(rows)} queries, with judgements of {len(relevant)}. Give the same "
            "queries in the same order."
        )
    _check_once(rows)
    return _measured(rows, relevant, wanted, own)


def measured_run(
    run: Mapping[str, Sequence[str]],
    relevant: Mapping[str, Mapping[str, float]],
    wanted: Wanted = WANTED,
) -> dict[str, Floats]:
    """Measures of each query, of a ranking by ids.

    Args:
        run: of each query its documents, the best first. Queries that are not in `relevant` do not
            count; those that are missing found nothing.
        relevant: of each query the grades of documents. A document that has the query's own id is
            no answer: it is taken out of both.
        wanted: see `measured`.

    Returns:
        As `measured`, the queries in the order of `relevant`.

    Raises:
        ConfigError: there is no such measure or cut-off.
        DataError: a query found a document twice.
    """
    _check_wanted(wanted)
    judged = dict.fromkeys(name for grades in relevant.values() for name in grades)
    numbers = {name: number for number, name in enumerate(judged | dict.fromkeys(relevant))}
    other = len(numbers)
    found = [run.get(query, ()) for query in relevant]
    rows = np.full((len(found), max(map(len, found), default=0)), -1, np.int64)
    for row, query, names in zip(rows, relevant, found, strict=True):
        if len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"query {query}: found document {name} twice. Keep the better of the two ranks."
            )
        row[: len(names)] = [numbers.get(name, other) for name in names]
    grades = [{numbers[name]: grade for name, grade in own.items()} for own in relevant.values()]
    own = np.array([numbers[query] for query in relevant], np.int64)
    return _measured(rows, grades, wanted, own)


def wanted(names: Sequence[str]) -> Wanted:
    """Cut-offs by measure, of names such as "ndcg@10", which is always among them.

    Raises:
        ConfigError: there is no such measure or cut-off.
    """
    found: dict[str, list[int]] = {"ndcg": [10]}
    for name in names:
        measure, _, cut = name.partition("@")
        if not cut.isdecimal():
            raise ConfigError(
                f"measures: {name!r} has no rank. Write it as measure@rank, such as recall@100."
            )
        cuts = found.setdefault(measure, [])
        if int(cut) not in cuts:
            cuts.append(int(cut))
    _check_wanted(found)
    return found


def means(values: Mapping[str, Floats]) -> dict[str, float]:
    """The mean of each measure over the queries that have a relevant document.

    Raises:
        DataError: none has one.
    """
    results = {}
    for name, own in values.items():
        counted = own[~np.isnan(own)]
        if not len(counted):
            raise DataError(
                f"{name}: none of {len(own)} queries has a relevant document. Give the judgements "
                "of these queries."
            )
        results[name] = float(counted.mean())
    return results


def _measured(rows: Rows, relevant: Grades, wanted: Wanted, own: Rows | None) -> dict[str, Floats]:
    if own is not None:
        rows, relevant = _without(rows, relevant, own)
    sums = _Sums.of(rows, relevant)
    return {f"{name}@{k}": sums.at(name, k) for name, cuts in wanted.items() for k in cuts}


@dataclass(frozen=True)
class _Sums:
    """Running sums over ranks, (n, depth + 1): the column k is that of the first k."""

    gains: Floats
    ideal: Floats
    found: Floats
    precisions: Floats
    holes: Floats
    first: Floats  # (n,) rank of the first relevant document, infinite without one
    total: Floats  # (n,) relevant documents that there are, NaN without one

    @classmethod
    def of(cls, rows: Rows, relevant: Grades) -> _Sums:
        gains, ideal = gains_of(rows, relevant), ideal_of(relevant)
        judged = np.array(sorted({row for grades in relevant for row in grades}), np.int64)
        is_relevant = gains > 0
        ranks = np.arange(1, rows.shape[1] + 1)
        found = _running(is_relevant)
        total = (ideal > 0).sum(1)
        return cls(
            gains,
            ideal,
            found,
            precisions=_running(is_relevant * found[:, 1:] / ranks),
            holes=_running((rows >= 0) & ~np.isin(rows, judged)),
            first=np.where(is_relevant, ranks, np.inf).min(1, initial=np.inf),
            total=np.where(total > 0, total, np.nan),
        )

    def at(self, name: str, k: int) -> Floats:
        """A measure, (n,)."""
        if name == "ndcg":
            return ndcg(self.gains, self.ideal, k)
        last = min(k, self.gains.shape[1])
        one = self.total / self.total
        values = {
            "map": self.precisions[:, last] / self.total,
            "recall": self.found[:, last] / self.total,
            "capped_recall": self.found[:, last] / np.minimum(self.total, k),
            "precision": one * self.found[:, last] / k,
            "mrr": one * np.where(self.first <= k, 1 / self.first, 0),
            "hit": one * (self.first <= k),
            "hole": one * self.holes[:, last] / k,
        }
        return values[name]


def _running(values: NDArray[np.generic]) -> Floats:
    return np.pad(np.cumsum(values, axis=1, dtype=np.float64), ((0, 0), (1, 0)))


def _without(rows: Rows, relevant: Grades, own: Rows) -> tuple[Rows, Grades]:
    """The rankings and the judgements without the rows of the queries themselves."""
    is_own = (rows == own[:, None]) & (rows >= 0)
    order = np.argsort(is_own, axis=1, kind="stable")
    left = np.take_along_axis(np.where(is_own, -1, rows), order, 1)
    grades = [
        {row: grade for row, grade in judged.items() if row != itself}
        for judged, itself in zip(relevant, own.tolist(), strict=True)
    ]
    return left, grades


def _check_once(rows: Rows) -> None:
    ordered = np.sort(rows, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        query, at = (int(places[0]) for places in np.nonzero(twice))
        raise DataError(
            f"ranking: query {query} found document {ordered[query, at]} twice. Keep the better "
            "of the two ranks."
        )


def _check_wanted(wanted: Wanted) -> None:
    for name, cuts in wanted.items():
        if name not in NAMES:
            raise ConfigError(f"measure {name!r}: there is none. Choose of {', '.join(NAMES)}.")
        if min(cuts, default=1) < 1:
            raise ConfigError(f"{name}@{min(cuts)}: cuts off everything. Give numbers from 1 on.")
