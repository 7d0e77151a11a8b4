"""Documents of text in the layouts that people have them in, one after the other.

- `.txt`: one document a line;
- `.jsonl`: an object a line with `text` (or `contents`), and perhaps `_id` (or `id`) and `title`;
- `.tsv`: the same names in its first line, then a document a line; cells may be quoted;
- any of these packed, as `.jsonl.gz`;
- Parquet with columns of these names;
- BEIR's folder: `corpus.jsonl` alone is read, not the queries beside it;
- a folder with any of these at any depth, in the order of their names.

Lines end at LF or CRLF and are UTF-8. What has no id gets `<file>:<offset of the line in bytes>`,
in Parquet `<file>:<row>`, where the file is relative to the source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farreach.data.text_records import (
    ID_KEYS,
    TEXT_KEYS,
    TITLE_KEY,
    Record,
    cuts,
    layout,
    layouts,
    place_of,
    records,
)
from farreach.errors import DataError

CORPUS_FILES = ("corpus.jsonl", "corpus.jsonl.gz")
PIECE_BYTES = 16 << 20
# Of lists and what has names of its own nothing is kept.
_PLAIN = (str, int, float)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: as the source has it, else made from its place there.
        title: "" if it has none.
        text: without the title; blank only if there is a title.
        meta: what else the source says of it: texts, and numbers and truth values as texts.
    """

    id: str
    title: str
    text: str
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """Title and text, with a space between: what is tokenised and embedded."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Piece:
    """A part of a source that can be read alone, in any process.

    Attributes:
        path: the file.
        begin: first byte, where a line begins, or first row group of a Parquet file.
        end: one past the last; of a packed file its size, for it comes in one piece.
        name: the file relative to the source, for ids; "" stands for its own name.
        size: bytes that it takes, about.
    """

    path: Path
    begin: int
    end: int
    name: str = ""
    size: int = 0


@dataclass
class Tally:
    """What has been read so far: documents, and those passed over since they are blank."""

    documents: int = 0
    skipped: int = 0


def pieces(source: Path, most: int = PIECE_BYTES) -> list[Piece]:
    """All of a source in pieces, in a fixed order; only the places of the cuts are read.

    Args:
        source: a file or folder; see the module.
        most: bytes (of Parquet unpacked) after which a file is cut, at the next end of a line or
            before the row group that would pass them; at least 1.

    Raises:
        DataError: nothing is there, all is empty, or it is of no known layout.
    """
    found = []
    for file in _files(source):
        name = file.name if file == source else file.relative_to(source).as_posix()
        found += [Piece(file, begin, end, name, size) for begin, end, size in cuts(file, most)]
    if not found:
        raise DataError(f"{source}: is empty. Give a source with text.")
    return found


def documents(source: Path | Piece, tally: Tally | None = None) -> Iterator[Document]:
    """All documents of a source or a piece; those with neither text nor title are passed over.

    Args:
        source: a file or folder, see the module, or a piece of one.
        tally: counts along.

    Raises:
        DataError: as `pieces`; a source (not: a piece) has blank documents alone; or a line or row
            is not UTF-8, no JSON object, without text or of another number of columns.
    """
    tally = Tally() if tally is None else tally
    before = tally.documents
    for piece in [source] if isinstance(source, Piece) else pieces(source):
        for place, record in records(piece.path, piece.begin, piece.end):
            document = _document(piece, place, record)
            if _is_blank(document.text) and _is_blank(document.title):
                tally.skipped += 1
            else:
                tally.documents += 1
                yield document
    if isinstance(source, Path) and tally.documents == before:
        raise DataError(f"{source}: holds blank documents alone. Give a source with text.")


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _document(piece: Piece, place: int, record: Record) -> Document:
    text = next((key for key in TEXT_KEYS if key in record), None)
    if text is None:
        raise DataError(
            f"{place_of(piece.path, place)}: has no key 'text' or 'contents'; it has "
            f"{', '.join(record) or 'none'}. Rename the one with the text."
        )
    number = next((key for key in ID_KEYS if record.get(key) is not None), None)
    used = [_string(piece, place, key, record.get(key)) for key in (TITLE_KEY, text)]
    if number is None:
        name = f"{piece.name or piece.path.name}:{place}"
    elif type(record[number]) is int:
        name = str(record[number])
    else:
        name = _string(piece, place, number, record[number])
    taken = (number, TITLE_KEY, text)
    meta = {k: _as_text(v) for k, v in record.items() if isinstance(v, _PLAIN) and k not in taken}
    return Document(name, used[0], used[1], meta)


def _as_text(value: str | float) -> str:
    """As JSON writes it, but for the quotes of a text."""
    return value if isinstance(value, str) else json.dumps(value)


def _string(piece: Piece, place: int, key: str, value: object) -> str:
    """A value that must be a string; none is an empty one."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(
        f"{place_of(piece.path, place)}: {key!r} is {value!r:.50}. Write it as a string."
    )


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise DataError(f"{source}: there is nothing. Correct the path.")
    if source.is_dir():
        files = list(_files_below(source))
        if not files:
            raise DataError(f"{source}: holds no file of text ({layouts()}).")
        return files
    if not layout(source):
        raise DataError(
            f"{source}: is of no known layout. Give a file that is named {layouts()}, or a folder "
            "of such files."
        )
    return [source]


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of text, in the order of their names; hidden ones are passed over."""
    for name in CORPUS_FILES:
        if (folder / name).is_file():
            yield folder / name
            return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(entry)
        elif layout(entry):
            yield entry
