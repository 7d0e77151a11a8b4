"""The searcher of an index as it is now, for programs that stay open while others change it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from farreach.console import warn
from farreach.errors import FarreachError
from farreach.index import state as states
from farreach.index.store import Index
from farreach.index.vectors import MANIFEST
from farreach_workloads.retrieval import words
from farreach_workloads.retrieval.indexes import FUSION
from farreach_workloads.retrieval.searcher import Searcher

# Seconds between two looks at whether the index has changed.
LOOK_EVERY_S = 1.0

# Of each file on which a search depends: when it was written, and its size and number.
_Seen = tuple[tuple[int, ...] | None, ...]


class Live:
    """Gives the searcher of an index; another one once the index has changed.

    ```
    live = Live(Searcher.open(folder))
    while True:
        show(live.now().search([asked()], 10))
    ```
    A change is taken over when it is complete: while the words of added documents are still being
    counted, searches go on as before. One thread opens the new state, and the others search what
    they have. A searcher whose shards are in actors stays as it is.
    """

    def __init__(self, searcher: Searcher) -> None:
        """Begin with a searcher that has just been opened."""
        self._searcher = searcher
        self._seen = _seen(searcher.index.path)
        if states.read(searcher.index.path).generation != searcher.index.state.generation:
            self._seen = ()
        self._looked_s = time.monotonic()
        self._turning = threading.Lock()

    def now(self) -> Searcher:
        """The searcher of the present state; of the one before, where the new one cannot be read.

        Any number of threads may call it.
        """
        is_fixed = not isinstance(self._searcher.index, Index)
        if is_fixed or time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return self._searcher
        if self._turning.acquire(blocking=False):
            try:
                self._look()
                self._looked_s = time.monotonic()
            finally:
                self._turning.release()
        return self._searcher

    def _look(self) -> None:
        folder = self._searcher.index.path
        seen = _seen(folder)
        if seen == self._seen or seen[0] is None:  # None: it is being put in place
            return
        try:
            index = Index.open(folder)
            if self._searcher.lexical is not None and words.are_behind(index):
                return
            self._searcher = self._searcher.renewed()
        except FarreachError as error:
            warn(f"warning: {error} Searching goes on with what was read before.")
        self._seen = seen


def _seen(folder: Path) -> _Seen:
    return tuple(_stamp(folder / name) for name in (MANIFEST, words.WORDS, FUSION))


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
