"""Records in files of text: lines, JSON, tables with tabs and Parquet; and where to cut the files.

A record is a mapping of names to values, at a place: the offset of its line in bytes, unpacked, or
the number of its row in a Parquet file. What documents are made of them is told in `text`.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from farreach.errors import DataError

Record = dict[str, Any]

PACKED = ".gz"
PARQUET = ".parquet"
ID_KEYS = ("_id", "id")
TEXT_KEYS = ("text", "contents")
TITLE_KEY = "title"
ROWS_AT_ONCE = 1024
BLOCK_BYTES = 1 << 20


def layout(file: Path) -> str:
    """`.jsonl` of a.jsonl and of A.JSONL.gz; "" if it is none of these layouts."""
    suffix = Path(file.name.lower().removesuffix(PACKED)).suffix
    return suffix if suffix in _READERS else ""


def layouts() -> str:
    """The layouts, for errors."""
    return f"{', '.join(_READERS)}, packed with {PACKED} or not"


def records(file: Path, begin: int, end: int) -> Iterator[tuple[int, Record]]:
    """Place and content of each record of a part of a file.

    Args:
        file: of a layout.
        begin: offset where a line begins, or number of a row group.
        end: one past the last; a packed file is read from 0 to its end whatever it is.

    Raises:
        DataError: the file cannot be read, or a line or row is malformed.
    """
    return _READERS[layout(file)](file, begin, end)


def place_of(file: Path, place: int) -> str:
    """How errors name a record: by its line, counted from 1, or its row, counted from 0."""
    if layout(file) == PARQUET:
        return f"{file}, row {place}"
    number = 1
    with _opened(file) as lines:
        while place > 0 and (block := lines.read(min(place, BLOCK_BYTES))):
            number += block.count(b"\n")
            place -= len(block)
    return f"{file}, line {number}"


def cuts(file: Path, most: int) -> Iterator[tuple[int, int, int]]:
    """Begin, end and bytes of parts of a file, of which only the places of the cuts are read.

    Args:
        file: of a layout; an empty one has no parts, a packed one has one.
        most: bytes (of Parquet unpacked) after which to cut, at the next end of a line or before
            the row group that would pass them; at least 1.

    Raises:
        DataError: it is no readable Parquet file.
    """
    return _cut_row_groups(file, most) if layout(file) == PARQUET else _cut_lines(file, most)


def _cut_lines(file: Path, most: int) -> Iterator[tuple[int, int, int]]:
    size = file.stat().st_size
    if _is_packed(file):
        most = size
    begin = 0
    with open(file, "rb") as lines:
        while begin < size:
            end = size
            if begin + most < size:
                lines.seek(begin + most - 1)
                lines.readline()
                end = lines.tell()
            yield begin, end, end - begin
            begin = end


def _cut_row_groups(file: Path, most: int) -> Iterator[tuple[int, int, int]]:
    try:
        metadata = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise _no_parquet(file, error) from error
    begin, size = 0, 0
    groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    for number, group in enumerate(groups):
        if size and size + group > most:
            yield begin, number, size
            begin, size = number, 0
        size += group
    if metadata.num_rows:
        yield begin, len(groups), size


def _is_packed(file: Path) -> bool:
    return file.name.lower().endswith(PACKED)


def _opened(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if _is_packed(file) else open(file, "rb")


def _lines(file: Path, begin: int, end: int) -> Iterator[tuple[int, str]]:
    """Offset and content of each line that begins in [begin, end)."""
    offset = begin
    last = math.inf if _is_packed(file) else end
    try:
        with _opened(file) as lines:
            lines.seek(begin)
            while offset < last and (raw := lines.readline()):
                yield offset, _decoded(file, offset, raw)
                offset += len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}. Fetch it again.") from error


def _decoded(file: Path, offset: int, raw: bytes) -> str:
    if offset == 0:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place_of(file, offset)}: is not UTF-8: {error.reason} at byte {error.start} of the "
            "line. Convert the file, or remove the line."
        ) from error


def _of_plain(file: Path, begin: int, end: int) -> Iterator[tuple[int, Record]]:
    for offset, line in _lines(file, begin, end):
        yield offset, {"text": line}


def _of_json(file: Path, begin: int, end: int) -> Iterator[tuple[int, Record]]:
    for offset, line in _lines(file, begin, end):
        if not line.strip():
            yield offset, {"text": ""}
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place_of(file, offset)}: has half a character, "
                f"{error.object[error.start]!a}. Mend or remove the line."
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place_of(file, offset)}: is no JSON: {error}. Mend or remove the line."
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{place_of(file, offset)}: is no JSON object. Write one a line, with a key 'text'."
            )
        yield offset, record


def _of_tsv(file: Path, begin: int, end: int) -> Iterator[tuple[int, Record]]:
    _, header = next(_lines(file, 0, 1), (0, ""))
    names = header.split("\t")
    if not set(names) & set(TEXT_KEYS):
        raise DataError(
            f"{file}, line 1: names no column 'text'. Write the names of the columns into the "
            "first line, with tabs between: id, text, title."
        )
    for offset, line in _lines(file, begin, end):
        if offset == 0:
            continue
        if not line.strip():
            yield offset, {"text": ""}
            continue
        cells = [_unquoted(cell) for cell in line.split("\t")]
        if len(cells) != len(names):
            raise DataError(
                f"{place_of(file, offset)}: has {len(cells)} columns, the first line {len(names)}. "
                "Write tabs and ends of lines within a text as spaces."
            )
        yield offset, dict(zip(names, cells, strict=True))


def _unquoted(cell: str) -> str:
    """A cell without the quotes that CSV puts around it, if those in it are doubled as there."""
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _of_parquet(file: Path, begin: int, end: int) -> Iterator[tuple[int, Record]]:
    try:
        with pq.ParquetFile(file) as table:
            row = sum(table.metadata.row_group(i).num_rows for i in range(begin))
            names, groups = _columns(file, table.schema_arrow), list(range(begin, end))
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=names):
                yield from enumerate(_rows(file, batch, row), row)
                row += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise _no_parquet(file, error) from error


def _rows(file: Path, batch: Any, first: int) -> list[Record]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}, rows {first} to {first + len(batch) - 1}: one is not UTF-8: {error}. Write "
            "the file again from what it was made of."
        ) from error


def _columns(file: Path, schema: Any) -> list[str]:
    """The columns of strings, numbers and truth values; those of texts must be of strings."""
    strings = {column.name for column in schema if _is_string(column.type)}
    for name in (*TEXT_KEYS, TITLE_KEY):
        if name in schema.names and name not in strings:
            raise DataError(
                f"{file}: column {name!r} holds {schema.field(name).type}. Write it as strings."
            )
    if not strings & set(TEXT_KEYS):
        raise DataError(
            f"{file}: has no column 'text'; it has {', '.join(schema.names)}. Rename the one with "
            "the text."
        )
    return [column.name for column in schema if column.name in strings or _is_plain(column.type)]


def _is_plain(kind: Any) -> bool:
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_string(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _no_parquet(file: Path, error: Exception) -> DataError:
    return DataError(f"{file}: is no readable Parquet file: {error}. Fetch it again.")


_READERS: dict[str, Callable[[Path, int, int], Iterator[tuple[int, Record]]]] = {
    ".txt": _of_plain,
    ".jsonl": _of_json,
    ".tsv": _of_tsv,
    PARQUET: _of_parquet,
}
