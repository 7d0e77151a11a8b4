"""The words of an index beside its vectors: BM25 over the same rows.

Rows keep their meaning until an index is made compact, so words that were counted before documents
were added still belong to the rows they were counted for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from farreach.console import say, warn
from farreach.data.text import Document
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.index.lexical import Bm25
from farreach.index.store import Index

WORDS = "words.json"
_BLOCK = 4096


def build(index: Index, k1: float, b: float) -> None:
    """Count the words of all documents of an index, in place of what was counted before.

    Raises:
        DataError: no document has a word, or the folder cannot be written.
    """
    parts = [part.name for part in index.state.parts]
    key = hashlib.sha256(json.dumps([parts, k1, b]).encode()).hexdigest()[:12]
    folder = index.path / f"words-{key}"
    if not folder.is_dir():
        say(f"words     {index.path}: counting those of {index.state.rows:,} documents")
        Bm25.build(_documents(index), folder, k1, b)
    facts = {"folder": folder.name, "parts": parts}
    atomic_write(index.path / WORDS, json.dumps(facts, indent=1) + "\n")
    for other in index.path.glob("words-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def refresh(index: Index) -> None:
    """Count the words of all documents again, if the index had any, with the settings of before."""
    before = settings(index)
    if before is not None:
        build(index, *before)


def forget(index: Index) -> None:
    """Remove the words of an index, if there are any."""
    (index.path / WORDS).unlink(missing_ok=True)
    for folder in index.path.glob("words-*"):
        shutil.rmtree(folder, ignore_errors=True)


def settings(index: Index) -> tuple[float, float] | None:
    """k1 and b of the words of an index; None if they were never counted."""
    facts = _facts(index.path)
    if facts is None:
        return None
    found = Bm25.open(index.path / facts[0])
    return found.k1, found.b


def are_behind(index: Index) -> bool:
    """Whether words were counted, and not yet of all documents that the index has now."""
    facts = _facts(index.path)
    return facts is not None and [part.name for part in index.state.parts] != facts[1]


def opened(index: Index) -> Bm25 | None:
    """The words of an index; None if they were never counted, or before it was made compact.

    Raises:
        DataError: they are damaged.
    """
    facts = _facts(index.path)
    if facts is None:
        return None
    folder, parts = facts
    now = [part.name for part in index.state.parts]
    if now[: len(parts)] != parts:
        return None
    if len(now) > len(parts):
        warn(
            f"{index.path}: its words were counted before the last documents were added, so that "
            "those are found by their vectors alone. Add them again, as was interrupted, or run "
            "`farreach index compact`."
        )
    return Bm25.open(index.path / folder)


def _facts(folder: Path) -> tuple[str, list[str]] | None:
    """Folder of the words, and the parts they were counted in."""
    file = folder / WORDS
    try:
        facts = json.loads(file.read_text())
        return facts["folder"], facts["parts"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Build the index again.") from error


def _documents(index: Index) -> Iterator[Document]:
    for begin in range(0, index.state.rows, _BLOCK):
        yield from index.documents(np.arange(begin, min(begin + _BLOCK, index.state.rows)))
