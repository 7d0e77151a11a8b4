"""Runs and judgements in the files of TREC, which trec_eval and pytrec_eval read.

A line of a run is `query Q0 document rank score name`, one of judgements (qrels) is
`query 0 document grade`; fields are parted by spaces or tabs, so ids must have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.index.hits import Hits

# Scores by query and document.
Run = dict[str, dict[str, float]]


def run_of(
    queries: Sequence[str], hits: Hits, ids: Callable[[NDArray[np.int64]], list[str]]
) -> Run:
    """What was found, by ids.

    Args:
        queries: ids of n queries.
        hits: of these.
        ids: the ids of rows, such as the method of an index.
    """
    return {
        query: dict(zip(ids(hits.of(number)[1]), hits.of(number)[0].tolist(), strict=True))
        for number, query in enumerate(queries)
    }


def ranked(run: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Documents in the order in which trec_eval counts them, whatever ranks a file names.

    That is by falling score in single precision, of equal ones by falling id.
    """
    return {
        query: sorted(scores, key=lambda name: (np.float32(scores[name]), name), reverse=True)
        for query, scores in run.items()
    }


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], name: str = "farreach") -> None:
    """Write a run, the documents of each query as `ranked` has them.

    Raises:
        DataError: an id or the name is empty or has white space, or a score is not finite.
    """
    _check_field(name, "the run's name")
    lines = []
    for query, names in ranked(run).items():
        _check_field(query, "a query's id")
        for rank, document in enumerate(names, 1):
            _check_field(document, f"a document's id, found by query {query},")
            score = float(run[query][document])
            if not math.isfinite(score):
                raise DataError(
                    f"query {query}: document {document} has the score {score}. Leave it out."
                )
            lines.append(f"{query} Q0 {document} {rank} {score!r} {name}\n")
    atomic_write(path, "".join(lines))


def read_run(path: Path) -> Run:
    """The scores of a run; `ranked` gives the order.

    Raises:
        DataError: the file cannot be read, a line is of another form, a document is there twice.
    """
    run: Run = {}
    for where, (query, _, document, _, score, _) in _lines(path, 6):
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: the score {score!r} is no finite number. Correct it.")
        if document in run.setdefault(query, {}):
            raise DataError(f"{where}: query {query} has document {document} twice. Remove one.")
        run[query][document] = value
    return run


def write_qrels(path: Path, judgements: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgements.

    Raises:
        DataError: an id is empty or has white space.
    """
    lines = []
    for query, grades in judgements.items():
        _check_field(query, "a query's id")
        for document, grade in grades.items():
            _check_field(document, f"a document's id, judged for query {query},")
            lines.append(f"{query} 0 {document} {grade}\n")
    atomic_write(path, "".join(lines))


def _lines(path: Path, fields: int) -> Iterator[tuple[str, list[str]]]:
    """Where each line is, and its fields; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Give a file of TREC's form.") from error
    for number, line in enumerate(lines, 1):
        found = line.split()
        if not found:
            continue
        if len(found) != fields:
            raise DataError(
                f"{path}, line {number}: has {len(found)} fields, not {fields}. A run has 6 and "
                "judgements have 4, without spaces in ids."
            )
        yield f"{path}, line {number}", found


def _check_field(text: str, what: str) -> None:
    if text.split() != [text]:
        raise DataError(
            f"{text!r}: {what} is empty or has white space, which parts the fields. Rename it."
        )
