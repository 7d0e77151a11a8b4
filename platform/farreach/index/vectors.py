"""A folder of embedded documents: their vectors, memory-mapped, and their text beside them.

```
vectors/
  part-00000.npy   part-00000.parquet   …   see `parts`
  manifest.json    written last
```
Row r is the r-th document over all parts. A document is one point of the space, or several, such as
one for each of its passages; point p is the p-th vector over all parts, and those of a row lie one
after the other.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from farreach.data.text import Document
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.index import parts as files
from farreach.index.parts import Part
from farreach.registry import near_match

MANIFEST = "manifest.json"
SCHEMA = 1
NAMED = 5  # how many ids an error names
# Of documents that were read lately, kept decoded for the next search.
KEPT_BYTES = 64 << 20

Rows = NDArray[np.int64]
# First point, and (m, d) vectors of the points from there on.
Piece = tuple[int, NDArray[Any]]


class Vectors:
    """Vectors and documents of a list of parts; picklable, for it opens its files again.

    Attributes:
        path: their folder.
        parts: the parts in the order of the rows.
        count: number of rows.
        points: number of points.
        width: numbers of a vector.
        model: hash of the model that made them.
        normalised: whether every vector has norm 1.
    """

    def __init__(self, path: Path, records: Sequence[Part], model: str, normalised: bool) -> None:
        """The given parts in a folder.

        Raises:
            DataError: a file is missing, truncated or of another shape.
        """
        self.path, self.parts = path, tuple(records)
        self.model, self.normalised = model, normalised
        self._arrays = [files.mapped(path, part) for part in self.parts]
        _check_widths(path, self.parts, self._arrays)
        self._rows = _Spread([part.count for part in self.parts])
        self._points = _Spread([part.size for part in self.parts])
        self.count, self.points = self._rows.total, self._points.total
        self.width = self._arrays[0].shape[1] if self._arrays else 0
        self._files: dict[int, Any] = {}
        self._columns: dict[tuple[int, str], Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._kept_bytes, self._reading = 0, threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Vectors:
        """The folder that `finish` completed.

        Raises:
            DataError: there is none, it is incomplete or damaged.
        """
        file = path / MANIFEST
        try:
            raw = json.loads(file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{path}: has no {MANIFEST}, so it holds no vectors, or not all of them yet. "
                "Run the embedding to its end, or name another folder."
            ) from None
        except ValueError as error:
            raise DataError(f"{file}: is damaged: {error}. Run the embedding again.") from error
        if not isinstance(raw, dict) or raw.get("vectors") != SCHEMA:
            raise DataError(f"{file}: describes no vectors that this version reads. Embed again.")
        records = [Part(**part) for part in raw["parts"]]
        return cls(path, records, raw["model"], raw["normalised"])

    def __reduce__(self) -> tuple[Any, ...]:
        """What it is made from."""
        return Vectors, (self.path, self.parts, self.model, self.normalised)

    @property
    def longest(self) -> float:
        """The largest Euclidean norm of all vectors."""
        return max((part.longest for part in self.parts), default=0.0)

    @cached_property
    def columns(self) -> list[str]:
        """What documents have: id, title, text, then the keys of their metadata."""
        names = {name for i in range(len(self.parts)) for name in self._file(i).schema_arrow.names}
        return [*files.FIELDS, *sorted(files.told_of(names))]

    @cached_property
    def owners(self) -> Rows | None:
        """(points,) the row of each point; None if every row is one point."""
        if self.points == self.count:
            return None
        return np.repeat(np.arange(self.count), np.diff(self.begins))

    @cached_property
    def begins(self) -> Rows:
        """(count + 1,) the first point of each row, and the number of points."""
        counts = [files.points_of(self.path, part) for part in self.parts]
        return np.concatenate([np.zeros(1, np.int64), *counts]).cumsum()

    def pieces(self, begin: int = 0, end: int | None = None) -> list[Piece]:
        """The memory-mapped vectors of the points from `begin` to `end`, a piece for each part."""
        return [
            (point, self._arrays[part][local : local + length])
            for part, point, local, length in self._points.ranges(begin, end)
        ]

    def blocks(
        self, size: int, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First point and (m, d) vectors, m ≤ size, of the points from `begin` to `end`, in order.

        They are read and not mapped: memory holds one block at a time.
        """
        for part, point, local, length in self._points.ranges(begin, end):
            record = self.parts[part]
            for block in files.read_blocks(self.path, record, local, local + length, size):
                yield point, block
                point += len(block)

    def at(self, points: Rows) -> NDArray[np.float32]:
        """(m, d) vectors of the given points.

        Raises:
            DataError: there is no such point.
        """
        self._refuse_beyond(points, self.points, "point")
        result = np.empty((len(points), self.width), np.float32)
        for part, places, local in self._points.places(points):
            result[places] = self._arrays[part][local]
        return result

    def ids(self, rows: Rows) -> list[str]:
        """Ids of the documents in the given rows; raises DataError as `at` does."""
        self._refuse_beyond(rows, self.count, "row")
        found = np.empty(len(rows), object)
        for part, places, local in self._rows.places(rows):
            found[places] = self._column(part, "id").take(pa.array(local)).to_pylist()
        return found.tolist()

    def documents(self, rows: Rows) -> list[Document]:
        """The documents in the given rows; raises DataError as `at` does."""
        self._refuse_beyond(rows, self.count, "row")
        found = np.empty(len(rows), object)
        for part, places, local in self._rows.places(rows):
            together = self._file(part).metadata.row_group(0).num_rows
            groups = local // together
            for group in np.unique(groups).tolist():
                here = groups == group
                table, within = self._group(part, group), local[here] - group * together
                taken = table.take(pa.array(within)).to_pylist()
                for place, row in zip(places[here].tolist(), taken, strict=True):
                    found[place] = files.document(row)
        return found.tolist()

    def row_of(self, name: str) -> int | None:
        """The first row of the document whose id this is."""
        _, rows = self.find([name])
        return int(rows[0]) if len(rows) else None

    def find(self, ids: Sequence[str]) -> tuple[Rows, Rows]:
        """All places in `ids` and rows that have this id, ordered by place, then by row."""
        order, ordered = self._by_key
        keys = np.array([files.key_of(name) for name in ids], np.uint64)
        begins, ends = np.searchsorted(ordered, keys), np.searchsorted(ordered, keys, "right")
        counts = ends - begins
        places = np.repeat(np.arange(len(ids)), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[begins[places] + within]
        found = zip(places.tolist(), self.ids(rows), strict=True)
        same = np.array([ids[place] == name for place, name in found], bool)
        return places[same], rows[same]

    def repeated(self, alive: NDArray[np.bool_] | None = None) -> list[str]:
        """Ids that several rows have, of those that are True in `alive` (count,); sorted."""
        order, ordered = self._by_key
        if alive is not None:
            order, ordered = order[alive[order]], ordered[alive[order]]
        twice = ordered[1:] == ordered[:-1]
        suspects = self.ids(order[np.r_[twice, False] | np.r_[False, twice]])
        return sorted(name for name, times in Counter(suspects).items() if times > 1)

    def column(self, name: str) -> Any:
        """A column of the documents as a pyarrow ChunkedArray of text; null where one lacks it.

        Raises:
            DataError: no document has it.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path}: documents have nothing called {name!r}. "
                f"{near_match(name, self.columns)}"
            )
        return pa.chunked_array(
            [self._column(part, name) for part in range(len(self.parts))], pa.string()
        )

    @cached_property
    def _by_key(self) -> tuple[Rows, NDArray[np.uint64]]:
        """All rows, ordered by the keys of their ids, and these keys."""
        read = [self._file(part).read([files.KEY]).column(0) for part in range(len(self.parts))]
        keys = np.concatenate([np.empty(0, np.uint64), *(column.to_numpy() for column in read)])
        order = np.argsort(keys, kind="stable")
        return order, keys[order]

    def _file(self, part: int) -> Any:
        if part not in self._files:
            self._files[part] = files.opened(self.path, self.parts[part].name)
        return self._files[part]

    def _group(self, part: int, group: int) -> Any:
        """The pyarrow table of a group of rows of a part."""
        key = part, group
        with self._reading:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            # One thread: so few rows are read faster than other threads are told of them.
            table = self._file(part).read_row_group(group, use_threads=False)
            self._groups[key] = table
            self._kept_bytes += table.nbytes
            while self._kept_bytes > KEPT_BYTES and len(self._groups) > 1:
                self._kept_bytes -= self._groups.popitem(last=False)[1].nbytes
            return table

    def _column(self, part: int, name: str) -> Any:
        """One column of one part as a pyarrow array of text."""
        if (part, name) not in self._columns:
            file = self._file(part)
            if name in file.schema_arrow.names:
                column = file.read([name]).column(0).combine_chunks()
            else:
                column = pa.nulls(self.parts[part].count, pa.string())
            self._columns[part, name] = column
        return self._columns[part, name]

    def _refuse_beyond(self, numbers: Rows, count: int, what: str) -> None:
        wrong = numbers[(numbers < 0) | (numbers >= count)]
        if len(wrong):
            raise DataError(
                f"{self.path}: there is no {what} {wrong[0]}; {what}s are 0 to {count - 1}. "
                f"Leave out the {what}s of -1, where a search found less than was asked for."
            )


class _Spread:
    """Numbers from 0 on that are spread over parts, so many in each."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._begins = np.cumsum([0, *counts])
        self.total = int(self._begins[-1])

    def ranges(self, begin: int, end: int | None) -> Iterator[tuple[int, int, int, int]]:
        """Part, first number, the same within the part, and length of what parts have between."""
        end = self.total if end is None else end
        firsts = self._begins.tolist()
        for part, (first, after) in enumerate(pairwise(firsts)):
            lower, upper = max(begin, first), min(end, after)
            if lower < upper:
                yield part, lower, lower - first, upper - lower

    def places(self, numbers: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """Part, places in `numbers` and the numbers within the part, for each that has some."""
        owners = np.searchsorted(self._begins, numbers, "right") - 1
        for part in np.unique(owners).tolist():
            places = np.flatnonzero(owners == part)
            yield part, places, numbers[places] - self._begins[part]


def write_part(
    folder: Path,
    number: int,
    vectors: NDArray[Any],
    documents: Sequence[Document],
    points: Sequence[int] | None = None,
) -> None:
    """Write one part of a folder; writing it again replaces it.

    Args:
        folder: is made if it is missing.
        number: of the part, from 0.
        vectors: (m, d) float16 or float32, those of a document one after the other.
        documents: n, in the same order.
        points: vectors of each document, at least 1; None: each has one.

    Raises:
        DataError: see `parts.write`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder, _name(number), vectors, documents, points)


def is_part_done(folder: Path, number: int) -> bool:
    """Whether a part is written, whole."""
    return files.is_there(folder, _name(number))


def finish(folder: Path, *, parts: int, model: str, normalised: bool) -> Vectors:
    """Complete a folder whose parts 0 to `parts` - 1 are written; may be done again.

    Args:
        folder: with the parts.
        parts: how many there are.
        model: hash of the model that made the vectors.
        normalised: whether each of them has norm 1.

    Raises:
        DataError: a part is missing, widths differ, there is no document, or two share an id.
    """
    records = [files.described(folder, _name(number)) for number in range(parts)]
    vectors = Vectors(folder, records, model, normalised)
    if not vectors.count:
        raise DataError(f"{folder}: holds no document at all. Look at what was embedded.")
    refuse_repeated(folder, vectors.repeated())
    manifest = {
        "vectors": SCHEMA,
        "model": model,
        "normalised": normalised,
        "width": vectors.width,
        "count": vectors.count,
        "points": vectors.points,
        "parts": [asdict(part) for part in records],
    }
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return vectors


def refuse_repeated(where: Path, ids: Sequence[str]) -> None:
    """Raise DataError, which names some, if there are ids that several documents have."""
    if ids:
        raise DataError(
            f"{where}: {len(ids)} ids belong to several documents: {some(ids)}. Give every "
            "document an id of its own."
        )


def some(ids: Sequence[str]) -> str:
    """The first few ids, for messages."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(map(repr, ids[:NAMED])) + more


def _name(number: int) -> str:
    return f"part-{number:05d}"


def _check_widths(path: Path, records: Sequence[Part], arrays: Sequence[NDArray[Any]]) -> None:
    for record, array in zip(records, arrays, strict=True):
        if array.shape[1] != arrays[0].shape[1]:
            raise DataError(
                f"{path / record.name}: has vectors of {array.shape[1]} numbers, and "
                f"{records[0].name} of {arrays[0].shape[1]}. Embed all parts with one model."
            )
