"""Brings what a driver writes into its local copy of a run to the run's URI, from a thread.

Order: files, then checkpoints (see `storage.checkpoints`), then `result.json`. Small files of
facts come at once; metrics and TensorBoard's files, which grow and must be written whole each
time, every 15 s or, where they are large, as seldom as to take 1 MB/s at most. All of them come
before a new checkpoint, so that who continues from it has the metrics until there.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from farreach.console import say, warn
from farreach.errors import StorageError
from farreach.storage.checkpoints import RemoteCheckpoints
from farreach.storage.remote import Remote

RESULT = "result.json"
EVENTS = "events.jsonl"
CHECKPOINTS = "checkpoints"
# What says that there is a run, and what comes with it when it is opened.
CORE = (
    "manifest.json",
    "config.yaml",
    "config.previous.yaml",
    "metrics.jsonl",
    EVENTS,
    "error.log",
    RESULT,
)
AT_ONCE = frozenset(CORE) - {"metrics.jsonl"}
# Made by one machine for itself.
OWN_FOLDERS = ("ray", "features", CHECKPOINTS)

LOOK_EVERY_S = 1.0
METRICS_EVERY_S = 15.0
BYTES_PER_S = 1e6
# How long the end of a run tries to bring what is left.
PATIENCE_S, AGAIN_S = 120.0, 5.0

Stamp = tuple[int, int]  # size in bytes, time of change in ns
# Of no file: whatever is here differs from it.
NOWHERE: Stamp = (-1, -1)


def stamps(folder: Path) -> dict[str, Stamp]:
    """The files of a run that are mirrored, checkpoints aside; hidden ones are passed over."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or name.parts[0] in OWN_FOLDERS:
            continue
        with suppress(OSError):
            if path.is_file():
                facts = path.stat()
                found[name.as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return found


class Mirror:
    """The thread, and what it has done.

    ```
    mirror = Mirror(folder, remote, checkpoints, known, lost_to=lambda: None)
    mirror.start()
    …
    mirror.stop()        # brings the rest
    ```
    """

    def __init__(
        self,
        folder: Path,
        remote: Remote,
        checkpoints: RemoteCheckpoints,
        known: Mapping[str, Stamp],
        lost_to: Callable[[], str | None],
    ) -> None:
        """Nothing is brought yet.

        Args:
            folder: the local copy of the run.
            remote: the run.
            checkpoints: of both.
            known: files that are there as they are here.
            lost_to: who else writes to the run now, if somebody does; then nothing is brought.
        """
        self._folder, self._remote, self._checkpoints = folder, remote, checkpoints
        self._known, self._lost_to = dict(known), lost_to
        self._pushed_s: dict[str, float] = {}
        self._fault: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self) -> None:
        """Raise StorageError if somebody else writes to the run."""
        other = self._lost_to()
        if other is not None:
            raise StorageError(
                f"{self._remote.uri}: {other} has taken the run over, for this process could not "
                f"be heard of for a minute. What it wrote since then is in {self._folder} alone."
            )

    def stop(self) -> None:
        """Bring the rest, and end.

        Raises:
            StorageError: the storage failed for two minutes; the local copy has everything.
        """
        self._ended.set()
        self._thread.join()
        end = time.monotonic() + PATIENCE_S
        while True:
            self.check()
            try:
                self._bring(everything=True)
                return
            except (StorageError, OSError) as error:
                if time.monotonic() > end:
                    raise StorageError(
                        f"{error} What could not be brought there is in {self._folder}; on this "
                        f"machine `farreach resume {shlex.quote(self._remote.uri)}` brings it."
                    ) from error
                self._tell(error)
            time.sleep(AGAIN_S)

    def _work(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            if self._lost_to() is not None:
                return
            try:
                self._bring(everything=False)
                if self._fault is not None:
                    say(f"note      {self._remote.uri} can be written again")
                self._fault = None
            except (StorageError, OSError) as error:
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Say what fails, once."""
        if self._fault is None:
            warn(f"note      {error} Trying again; everything is kept in {self._folder}.")
        self._fault = str(error)

    def _bring(self, *, everything: bool) -> None:
        here = stamps(self._folder)
        changed = [name for name in here if self._known.get(name) != here[name]]
        everything = everything or RESULT in changed or self._checkpoints.has_news()
        # First of all, for the result of a run that trains on says that there is nothing to do.
        gone = [name for name in self._known if name not in here]
        self._remote.delete(gone)
        for name in gone:
            del self._known[name]
        for name in changed:
            if name != RESULT and (everything or self._is_due(name, here[name][0])):
                self._push(name, here[name])
        self._checkpoints.push()
        if RESULT in changed:
            self._push(RESULT, here[RESULT])

    def _is_due(self, name: str, size: int) -> bool:
        pause_s = 0.0 if name in AT_ONCE else max(METRICS_EVERY_S, size / BYTES_PER_S)
        return time.monotonic() - self._pushed_s.get(name, float("-inf")) >= pause_s

    def _push(self, name: str, stamp: Stamp) -> None:
        with suppress(FileNotFoundError):  # gone already: looked at again in a second
            self._remote.push({name: self._folder / name})
            self._known[name], self._pushed_s[name] = stamp, time.monotonic()
