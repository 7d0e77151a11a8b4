"""One part of embedded documents on disk: its vectors in NumPy's format, its documents in Parquet.

`<name>.npy` has (n, d) float16 or float32, `<name>.parquet` the columns id, title, text, one for
each key of the metadata, `_key`, a 64-bit hash of the id, and, unless every document has one
vector, `_points`, how many of the vectors are its. Once there, neither ever changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from farreach.data.text import Document
from farreach.errors import DataError
from farreach.index.files import written_aside

# Reading one document reads a group of rows of the Parquet file. With 1,024 that takes four times
# as long, and the file is 0.9 times as large.
ROWS_TOGETHER = 128
FIELDS = ("id", "title", "text")
KEY, POINTS = "_key", "_points"
_OWN = (KEY, POINTS)  # columns that say nothing of a document itself
_LONGEST, _COUNT = b"farreach.longest", b"farreach.points"
_AGAIN = "Embed its documents again."


@dataclass(frozen=True)
class Part:
    """What a manifest says about one part.

    Attributes:
        name: of its two files, without their ends.
        count: its documents.
        longest: the largest Euclidean norm of its vectors.
        points: its vectors; None: each document has one.
    """

    name: str
    count: int
    longest: float
    points: int | None = None

    @property
    def size(self) -> int:
        """Number of its vectors."""
        return self.count if self.points is None else self.points


def write(
    folder: Path,
    name: str,
    vectors: NDArray[Any],
    documents: Sequence[Document],
    points: Sequence[int] | None = None,
) -> Part:
    """Write both files of a part, the Parquet file last; what was there is replaced.

    Args:
        folder: for the files.
        name: of them, without their ends.
        vectors: (m, d), those of a document one after the other.
        documents: n, in the same order.
        points: vectors of each document, at least 1; None: each has one.

    Raises:
        DataError: the arguments do not fit together, a vector is not finite, a key of the metadata
            is taken, or the file system refuses the files.
    """
    where = folder / name
    if points is not None and all(count == 1 for count in points):
        points = None
    _check(where, vectors, documents, points)
    columns = _columns(where, documents)
    if points is not None:
        columns[POINTS] = pa.array(points, pa.uint32())
    table = pa.table(columns)
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    longest = float(np.sqrt(squares.max(initial=0.0)))
    with written_aside(_vectors_file(where)) as temporary, open(temporary, "wb") as file:
        np.save(file, np.ascontiguousarray(vectors))
    facts = {_LONGEST: repr(longest)} | ({} if points is None else {_COUNT: str(len(vectors))})
    table = table.replace_schema_metadata(facts)
    with written_aside(_documents_file(where)) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_TOGETHER, compression="zstd")
    return Part(name, len(documents), longest, None if points is None else len(vectors))


def is_there(folder: Path, name: str) -> bool:
    """Whether both files of a part are written."""
    where = folder / name
    return _vectors_file(where).is_file() and _documents_file(where).is_file()


def files(name: str) -> tuple[str, str]:
    """Names of the two files of a part."""
    return f"{name}.npy", f"{name}.parquet"


def described(folder: Path, name: str) -> Part:
    """The record of a part that was written.

    Raises:
        DataError: it is missing or damaged.
    """
    if not is_there(folder, name):
        raise DataError(f"{folder / name}: is missing or incomplete. {_AGAIN}")
    file = opened(folder, name)
    metadata = file.schema_arrow.metadata or {}
    if _LONGEST not in metadata:
        raise DataError(f"{folder / name}.parquet: was written by something else. {_AGAIN}")
    points = int(metadata[_COUNT]) if _COUNT in metadata else None
    return Part(name, file.metadata.num_rows, float(metadata[_LONGEST]), points)


def mapped(folder: Path, part: Part) -> NDArray[Any]:
    """(size, d) vectors of a part, memory-mapped.

    Raises:
        DataError: the file is missing, truncated or of another shape.
    """
    file = _vectors_file(folder / part.name)
    try:
        # Copy-on-write maps as reading does, and torch takes it without a warning. A plain array,
        # for slices of a memmap are slow to make.
        array = np.asarray(np.load(file, mmap_mode="c") if part.size else np.load(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}. {_AGAIN}") from error
    except (ValueError, EOFError) as error:  # NumPy's advice would be to unpickle it
        raise DataError(f"{file}: is damaged, or no file of vectors. {_AGAIN}") from error
    if array.ndim != 2 or len(array) != part.size or array.dtype not in (np.float16, np.float32):
        raise DataError(
            f"{file}: holds {array.dtype} of shape {array.shape}, and not {part.size} vectors in "
            f"float16 or float32. {_AGAIN}"
        )
    return array


def read_blocks(
    folder: Path, part: Part, begin: int, end: int, size: int
) -> Iterator[NDArray[np.float32]]:
    """(m, d) vectors, m ≤ size, of a part from the `begin`-th to the `end`-th, read and not mapped.

    Raises:
        DataError: the file cannot be read.
    """
    path = _vectors_file(folder / part.name)
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            (_, width), _, dtype = np.lib.format.read_array_header_1_0(file)
            file.seek(begin * width * dtype.itemsize, 1)
            for point in range(begin, end, size):
                block = np.fromfile(file, dtype, min(size, end - point) * width)
                yield block.reshape(-1, width).astype(np.float32, copy=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}. {_AGAIN}") from error


def opened(folder: Path, name: str) -> Any:
    """The pyarrow ParquetFile of a part's documents.

    Raises:
        DataError: it cannot be read.
    """
    path = _documents_file(folder / name)
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read: {error}. If something else has replaced it, open its folder "
            "again; else embed its documents again."
        ) from error


def points_of(folder: Path, part: Part) -> NDArray[np.int64]:
    """(count,) how many vectors each document of a part has.

    Raises:
        DataError: its file does not say so, or says something else than the manifest.
    """
    if part.points is None:
        return np.ones(part.count, np.int64)
    file = opened(folder, part.name)
    if POINTS in file.schema_arrow.names:
        counts = file.read([POINTS]).column(0).to_numpy().astype(np.int64)
        if len(counts) == part.count and counts.sum() == part.points:
            return np.asarray(counts)
    raise DataError(
        f"{folder / part.name}.parquet: does not say which of {part.points} vectors are of which "
        f"of {part.count} documents. {_AGAIN}"
    )


def told_of(names: Iterable[str]) -> set[str]:
    """Of the names of a table's columns, those of metadata."""
    return set(names) - {*_OWN, *FIELDS}


def document(row: Mapping[str, Any]) -> Document:
    """The document in a row of the table."""
    names = told_of(name for name, value in row.items() if value is not None)
    meta = {name: value for name, value in row.items() if name in names}
    return Document(row["id"], row["title"], row["text"], meta)


def key_of(name: str) -> int:
    """A 64-bit hash of an id, for looking it up."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _check(
    where: Path,
    vectors: NDArray[Any],
    documents: Sequence[Document],
    points: Sequence[int] | None,
) -> None:
    if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
        raise DataError(
            f"{where}: vectors are {vectors.dtype} of shape {vectors.shape}; they should be "
            "float16 or float32 of shape (vectors, width)."
        )
    counts = np.ones(len(documents), np.int64) if points is None else np.array(points, np.int64)
    if len(counts) != len(documents) or counts.sum() != len(vectors):
        raise DataError(
            f"{where}: {len(vectors)} vectors do not fit {len(documents)} documents"
            + ("." if points is None else f", of which {len(counts)} have {counts.sum()}.")
        )
    if (counts < 1).any():
        name = documents[int(np.argmin(counts))].id
        raise DataError(f"{where}: document {name!r} has no vector. Give each at least one.")
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        owner = int(np.searchsorted(np.cumsum(counts), broken[0], "right"))
        raise DataError(
            f"{where}: {len(broken)} vectors are not finite, such as one of document "
            f"{documents[owner].id!r}. Mend the model that made them, or use float32."
        )


def _columns(where: Path, documents: Sequence[Document]) -> dict[str, Any]:
    """Name → values of what is kept of documents."""
    names = sorted({name for document in documents for name in document.meta})
    taken = {*_OWN, *FIELDS}.intersection(names)
    if taken:
        raise DataError(f"{where}: metadata cannot be called {min(taken)!r}. Rename that key.")
    texts: dict[str, list[str | None]] = {
        "id": [document.id for document in documents],
        "title": [document.title for document in documents],
        "text": [document.text for document in documents],
    }
    texts |= {name: [document.meta.get(name) for document in documents] for name in names}
    keys = np.array([key_of(document.id) for document in documents], np.uint64)
    return {name: pa.array(values, pa.string()) for name, values in texts.items()} | {
        KEY: pa.array(keys)
    }


def _vectors_file(where: Path) -> Path:
    return where.with_name(f"{where.name}.npy")


def _documents_file(where: Path) -> Path:
    return where.with_name(f"{where.name}.parquet")
