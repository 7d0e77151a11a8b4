"""Benchmarks in the layout of BEIR (arXiv:2104.08663): documents, queries and judgements.

```
<set>/
  corpus.jsonl         a document a line: {"_id": …, "title": …, "text": …}
  queries.jsonl        a query a line: {"_id": …, "text": …}
  qrels/<split>.tsv    a line of names, then query, document and grade, parted by tabs; or TREC's
                       lines of query, 0, document and grade
```
CQADupStack is a folder of twelve such sets; its result is the mean of theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farreach.data import text
from farreach.errors import DataError
from farreach_workloads.retrieval.half_characters import half_in

CORPUS_FILE, QUERIES_FILE, QRELS_FOLDER = "corpus.jsonl", "queries.jsonl", "qrels"
TEST = "test"
# Sets whose results are published on another split than the test set.
SPLITS = {"msmarco": "dev"}
_MEND = "Correct it, or download the set again."
_FIELDS = ("_id", "text")
_NOTHING = ("", "", 0)
_TREC_FIELDS = 4
# Number of a line, what it says, and what is wrong with it or nothing.
_Line = tuple[int, tuple[Any, ...], str]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BeirSet:
    """One split of a set.

    Attributes:
        path: its folder.
        split: its name.
        queries: text by id, of those that are judged.
        relevant: of each of these the grades of judged documents, by id.
        count: documents that there are.
        hashes: SHA-256 of the three files by name; a set may change under its name.
        unknown_queries: judgements that were left out because there is no such query.
        unknown_documents: those that were because there is no such document.
    """

    path: Path
    split: str
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]
    count: int
    hashes: dict[str, str]
    unknown_queries: int
    unknown_documents: int

    def documents(self) -> Iterator[text.Document]:
        """All documents, in the order of the file."""
        return text.documents(self.path / CORPUS_FILE)


def published_split(path: Path) -> str:
    """The split of a set on which results are published."""
    return SPLITS.get(path.name, TEST)


def files_of(path: Path, split: str) -> list[Path]:
    """The documents, queries and judgements of a split."""
    return [path / CORPUS_FILE, path / QUERIES_FILE, path / QRELS_FOLDER / f"{split}.tsv"]


def open_beir(path: Path, split: str | None = None) -> BeirSet:
    """Read the queries and judgements of a split; of the documents only the ids.

    Judgements of queries or documents that do not exist are left out, counted and logged.

    Args:
        path: the set's folder.
        split: None: that on which results are published, `dev` of MS MARCO and else `test`.

    Raises:
        DataError: a file is missing or a line of another form, or no judgement above 0 is left.
    """
    split = split or published_split(path)
    files = files_of(path, split)
    corpus, queries, qrels = digests = [hashlib.sha256() for _ in files]
    judged: dict[str, dict[str, int]] = {}
    for query, document, grade in _read(files[2], _judgements(files[2], qrels)):
        judged.setdefault(query, {})[document] = grade
    texts = dict(_read(files[1], _records(files[1], queries)))
    named = {document for grades in judged.values() for document in grades}
    known: set[str] = set()
    count = 0
    for name, _ in _read(files[0], _records(files[0], corpus)):
        count += 1
        if name in named:
            known.add(name)
    relevant = {query: _only(judged[query], known) for query in texts if query in judged}
    relevant = {query: grades for query, grades in relevant.items() if grades}
    if not any(grade > 0 for grades in relevant.values() for grade in grades.values()):
        raise DataError(
            f"{files[2]}: has no grade above 0 for a document of {CORPUS_FILE} and a query of "
            f"{QUERIES_FILE}. Give files that belong together."
        )
    strange = sum(len(grades) for query, grades in judged.items() if query not in texts)
    missing = sum(len(grades) - len(_only(grades, known)) for grades in judged.values())
    for number, what in ((strange, "queries"), (missing, "documents")):
        if number:
            _log.warning("%s: %d judgements of unknown %s are left out.", files[2], number, what)
    names = [file.relative_to(path).as_posix() for file in files]
    hashes = {name: own.hexdigest() for name, own in zip(names, digests, strict=True)}
    own_texts = {query: texts[query] for query in relevant}
    return BeirSet(path, split, own_texts, relevant, count, hashes, strange, missing)


def parts_of(path: Path) -> dict[str, list[Path]]:
    """The sets in a folder by name: itself, or its sub-folders.

    A sub-folder of several sets, such as CQADupStack, counts as one, whose result is the mean of
    theirs.

    Raises:
        DataError: there is none.
    """
    if (path / CORPUS_FILE).is_file():
        return {path.name: [path]}
    parts: dict[str, list[Path]] = {}
    for file in sorted([*path.glob(f"*/{CORPUS_FILE}"), *path.glob(f"*/*/{CORPUS_FILE}")]):
        name = file.relative_to(path).parts[0]
        if parts.get(name) != [path / name]:  # else it is a set itself, whatever it holds besides
            parts.setdefault(name, []).append(file.parent)
    if not parts:
        raise DataError(
            f"{path}: holds no {CORPUS_FILE}, nor do its folders or theirs. Give a set's folder."
        )
    return parts


def macro_average(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over parts, whatever number of queries they have.

    Args:
        results: measures by part.

    Raises:
        DataError: there are no parts, or they have not the same measures.
    """
    names = {frozenset(measures) for measures in results.values()}
    if len(names) != 1:
        raise DataError(
            f"average: over {len(results)} parts with {len(names)} sets of measures. Give the same "
            "measures of each part."
        )
    first = next(iter(results.values()))
    return {name: sum(own[name] for own in results.values()) / len(results) for name in first}


def problems_in(path: Path) -> list[str]:
    """All that is wrong with a set, one line for each kind of problem in each file.

    Besides what `open_beir` refuses or counts these are ids that occur twice or have white space,
    documents and queries without text, and documents with two grades for a query.

    Args:
        path: the folder of one set.

    Returns:
        Empty if nothing is wrong.
    """
    found = _Problems()
    documents = _checked_ids(path / CORPUS_FILE, found)
    queries = _checked_ids(path / QUERIES_FILE, found)
    tables = sorted((path / QRELS_FOLDER).glob("*.tsv"))
    if not tables:
        found.add(path / QRELS_FOLDER, 0, "has no judgements: there is to be a file <split>.tsv")
    for file in tables:
        grades: dict[tuple[str, str], int] = {}
        for line, (query, document, grade), problem in found.through(file, _judgements(file)):
            if problem:
                continue
            if query not in queries:
                found.add(file, line, "judges for a query that does not exist")
            if document not in documents:
                found.add(file, line, "judges a document that does not exist")
            if grades.setdefault((query, document), grade) != grade:
                found.add(file, line, "grades a document again and otherwise")
        if max(grades.values(), default=0) < 1:
            found.add(file, 0, "has no grade above 0")
    return found.lines()


def _only(grades: dict[str, int], known: set[str]) -> dict[str, int]:
    return {document: grade for document, grade in grades.items() if document in known}


class _Problems:
    """The first place and the number of each kind of problem in each file."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[Path, str]] = Counter()
        self._first: dict[tuple[Path, str], int] = {}

    def add(self, file: Path, line: int, problem: str) -> None:
        """Of a line, or of a whole file at line 0."""
        self._counts[file, problem] += 1
        self._first.setdefault((file, problem), line)

    def through(self, file: Path, lines: Iterator[_Line]) -> Iterator[_Line]:
        """The lines, while their problems are noted and that the file cannot be read."""
        try:
            for line in lines:
                if line[2]:
                    self.add(file, line[0], line[2])
                yield line
        except OSError as error:
            self.add(file, 0, f"cannot be read: {error.strerror}")

    def lines(self) -> list[str]:
        texts = []
        for (file, problem), count in self._counts.items():
            first = self._first[file, problem]
            where = f"{file}, line {first}" if first else str(file)
            more = f" (as do {count - 1} other lines)" if count > 1 else ""
            texts.append(f"{where}: {problem}{more}.")
        return texts


def _checked_ids(file: Path, found: _Problems) -> set[str]:
    known: set[str] = set()
    for line, (name, content, *_), problem in found.through(file, _records(file)):
        if problem:
            continue
        if name in known:
            found.add(file, line, "has an id that was there before")
        if name.split() != [name]:
            found.add(file, line, "has an id that is empty or has white space")
        if not content.strip():
            found.add(file, line, "has no text")
        known.add(name)
    return known


def _records(file: Path, digest: Any = None) -> Iterator[_Line]:
    """Line, (id, text), and what is wrong or nothing, of documents or queries."""
    for number, line in _lines(file, digest):
        try:
            record = json.loads(line)
        except ValueError:  # no UTF-8 either
            yield number, _NOTHING, "is no JSON"
            continue
        is_object = isinstance(record, dict)
        fields: list[Any] = [record.get(key) for key in _FIELDS] if is_object else []
        if not fields or not all(isinstance(field, str) for field in fields):
            yield number, _NOTHING, f"is to be an object with the texts {' and '.join(_FIELDS)}"
            continue
        if half := half_in(*fields):
            yield number, _NOTHING, f"has half a character, {half}"
            continue
        yield number, tuple(fields), ""


def _judgements(file: Path, digest: Any = None) -> Iterator[_Line]:
    """Line, (query, document, grade), and what is wrong or nothing.

    In the form of BEIR, or in that of TREC, which has no line of names and four fields.
    """
    is_trec = False
    for number, line in _lines(file, digest):
        text = line.decode(errors="replace").rstrip("\r\n")
        fields = text.split()
        if number == 1:
            is_trec = len(fields) == _TREC_FIELDS and _is_whole(fields[3])
        if is_trec:
            if len(fields) == _TREC_FIELDS and _is_whole(fields[3]):
                yield number, (fields[0], fields[2], int(fields[3])), ""
            else:
                yield number, _NOTHING, "is to be a query, 0, a document and a whole number"
            continue
        cells = text.split("\t")
        grade = cells[2].strip() if len(cells) == 3 else ""
        is_number = _is_whole(grade)
        if number == 1 and not is_number:
            continue
        if number == 1:
            yield number, _NOTHING, "is to be a line of names, query-id, corpus-id and score"
        elif not is_number:
            yield number, _NOTHING, "is to be a query, a document and a whole number, between tabs"
        else:
            yield number, (cells[0], cells[1], int(grade)), ""


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _lines(file: Path, digest: Any) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, by number; all of them go into the digest."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if digest is not None:
                digest.update(line)
            if line.strip():
                yield number, line


def _read(file: Path, lines: Iterator[_Line]) -> Iterator[tuple[Any, ...]]:
    """The contents of lines; raises DataError at the first one of another form."""
    try:
        for number, content, problem in lines:
            if problem:
                raise DataError(f"{file}, line {number}: {problem}. {_MEND}")
            yield content
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}. {_MEND}") from error
