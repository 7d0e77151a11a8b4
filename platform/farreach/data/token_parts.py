"""Parts of a token store: how a task writes one, and how it is known to be done.

```
part-00000.bin    token ids without special tokens, uint16 or uint32
part-00000.doc    .npy of uint64: where in the part each document begins
part-00000.json   what `Part` holds; written last, and removed once the manifest has it
```
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.data.text import Piece, Tally, documents
from farreach.data.wordpieces import WordPieces, normalised, one_thread
from farreach.disk import atomic_write, sync
from farreach.errors import DataError

# Vocabularies below this size fit into two bytes a token.
SMALL_VOCABULARY = 65_536
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Part:
    """What is known of a part.

    Attributes:
        made_from: names its pieces of text, and their files' sizes and times.
        vocabulary: fingerprint of the vocabulary.
        normalised: whether the text was.
        tokens: how many it has.
        documents: those with a token.
        skipped: documents that are blank or have no token.
        sha256: of its tokens, then of its documents' begins.
    """

    made_from: str
    vocabulary: str
    normalised: bool
    tokens: int
    documents: int
    skipped: int
    sha256: str


def part_file(store: Path, number: int, suffix: str) -> Path:
    """`part-00007.bin` of part 7."""
    return store / f"part-{number:05}{suffix}"


def token_type(size: int) -> np.dtype[Any]:
    """How the tokens of a vocabulary are stored."""
    return np.dtype(np.uint16 if size < SMALL_VOCABULARY else np.uint32)


def origin(pieces: Sequence[Piece]) -> str:
    """Another one if the pieces are others or their files have changed; hex."""
    content = hashlib.sha256()
    for piece in pieces:
        file = piece.path.stat()
        facts = (piece.name, piece.begin, piece.end, file.st_size, file.st_mtime_ns)
        content.update(repr(facts).encode())
    return content.hexdigest()


def write_part(
    store: Path,
    number: int,
    pieces: Sequence[Piece],
    words: WordPieces,
    normalise: bool,
    threads: bool,
) -> Part:
    """Tokenise some pieces into a part; its files appear at once, and whole.

    Args:
        store: a folder that exists.
        number: of the part.
        pieces: in the order of the part's tokens.
        words: the vocabulary.
        normalise: whether to normalise the text.
        threads: whether to take more threads than this one.

    Raises:
        DataError: the text is malformed, or the part cannot be written.
    """
    made_from, tally = origin(pieces), Tally()
    texts = _batches(pieces, tally, normalise=normalise)
    with nullcontext() if threads else one_thread():
        content, counts = _write_tokens(part_file(store, number, ".bin"), words, texts)
    counts = counts[counts > 0]
    begins = (np.cumsum(counts) - counts).astype(np.uint64)
    content.update(begins.data)
    packed = io.BytesIO()
    np.save(packed, begins)
    atomic_write(part_file(store, number, ".doc"), packed.getvalue())
    part = Part(
        made_from=made_from,
        vocabulary=words.fingerprint,
        normalised=normalise,
        tokens=int(counts.sum()),
        documents=len(counts),
        skipped=tally.skipped + tally.documents - len(counts),
        sha256=content.hexdigest(),
    )
    atomic_write(part_file(store, number, ".json"), json.dumps(asdict(part), indent=2) + "\n")
    return part


def read_part(store: Path, number: int, dtype: np.dtype[Any]) -> Part | None:
    """What a build has written of a part, or None if it is not there whole."""
    try:
        part = Part(**json.loads(part_file(store, number, ".json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return None if fault_of(store, number, part.tokens, part.documents, dtype) else part


def fault_of(
    store: Path, number: int, tokens: int, documents: int, dtype: np.dtype[Any]
) -> str | None:
    """What is wrong with the files of a part that should have so many tokens and documents."""
    binary, begins = (part_file(store, number, suffix) for suffix in (".bin", ".doc"))
    for file in (binary, begins):
        if not file.is_file():
            return f"{file}: is missing."
    size, expected = binary.stat().st_size, tokens * dtype.itemsize
    if size != expected:
        return f"{binary}: has {size} bytes, of {expected}."
    try:
        found = np.load(begins, mmap_mode="r").shape
    except (OSError, ValueError) as error:
        return f"{begins}: cannot be read: {error}."
    return None if found == (documents,) else f"{begins}: has the shape {found}, not {documents}."


def _batches(pieces: Sequence[Piece], tally: Tally, *, normalise: bool) -> Iterator[list[str]]:
    """Texts in lists of `BATCH_CHARACTERS` or a little more."""
    texts: list[str] = []
    characters = 0
    for piece in pieces:
        for document in documents(piece, tally):
            texts.append(normalised(document.whole) if normalise else document.whole)
            characters += len(texts[-1])
            if characters >= BATCH_CHARACTERS:
                yield texts
                texts, characters = [], 0
    if texts:
        yield texts


def _write_tokens(
    target: Path, words: WordPieces, batches: Iterable[list[str]]
) -> tuple[Any, NDArray[np.int64]]:
    """Write the tokens of all texts; a SHA-256 of them to go on with, and how many a text has."""
    content = hashlib.sha256()
    counts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for texts in batches:
                ids = words.encode(texts)
                counts.append(np.array([len(one) for one in ids], np.int64))
                stream = np.concatenate(ids).astype(token_type(words.size))
                content.update(stream.data)
                file.write(stream.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written: {error.strerror or error}. Free the disk, or choose "
            "another folder, and build again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return content, np.concatenate(counts)
