"""A look at a source before it is embedded: what is wrong with it shows before anything is lost."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farreach.console import warn
from farreach.data import text
from farreach.data.text import Piece
from farreach.errors import DataError
from farreach.index.parts import key_of
from farreach.index.vectors import refuse_repeated
from farreach.progress import Progress

# Megabytes of text from which on it is shown how far it is read.
LONG_MB = 64


def check_source(source: Path, pieces: Sequence[Piece]) -> None:
    """Read all documents of a source once; say how many are passed over.

    Args:
        source: for messages.
        pieces: all of it.

    Raises:
        DataError: a line is malformed, two documents share an id, or all are blank.
    """
    sizes = [piece.size / 1e6 for piece in pieces]
    tally, done = text.Tally(), 0.0
    keys: list[NDArray[np.uint64]] = []
    shown = Progress("check", sum(sizes), "MB") if sum(sizes) > LONG_MB else None
    with shown or contextlib.nullcontext():
        for piece, size in zip(pieces, sizes, strict=True):
            ids = (document.id for document in text.documents(piece, tally))
            keys.append(np.fromiter(map(key_of, ids), np.uint64))
            done += size
            if shown is not None:
                shown.update(done, {"documents": tally.documents})
    ordered = np.sort(np.concatenate(keys))
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if twice:
        suspects = Counter(
            document.id
            for piece in pieces
            for document in text.documents(piece)
            if key_of(document.id) in twice
        )
        refuse_repeated(source, sorted(name for name, n in suspects.items() if n > 1))
    if not tally.documents:
        raise DataError(f"{source}: holds blank documents alone. Give a source with text.")
    if tally.skipped:
        warn(f"warning: {source}: {tally.skipped:,} blank documents are passed over")
