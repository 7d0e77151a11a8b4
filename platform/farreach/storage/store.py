"""A checkpoint store of workers on any machine, whose checkpoints lie at a URI."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from farreach.checkpoint import (
    HELD,
    MANIFEST,
    SCORE,
    Checkpoint,
    CheckpointStore,
    More,
    score_note,
)
from farreach.console import warn
from farreach.errors import CheckpointError, StorageError
from farreach.storage.checkpoints import RemoteCheckpoints, Which, folders_of
from farreach.storage.remote import Remote

# How long a store goes on trying to bring a checkpoint to a storage that fails.
PATIENCE_S, AGAIN_S = 180.0, 5.0


class RemoteStore(CheckpointStore):
    """A store whose checkpoints count when they are at a URI, for workers of any machine.

    Held checkpoints are held, released and given their scores at the URI, too: who evaluates may
    have another folder than who saves.
    """

    def __init__(self, remote: Remote, directory: Path, keep: int = 2) -> None:
        """As `CheckpointStore`; `remote` is the folder `checkpoints` of the run."""
        super().__init__(directory, keep)
        self._remote = RemoteCheckpoints(remote, directory)

    def save(
        self,
        parts: Mapping[str, Any],
        *,
        step: int,
        info: Mapping[str, Any],
        score: float | None = None,
        held: bool = False,
        more: More | None = None,
    ) -> Path:
        """Save here, and return when it is there; a storage that fails is given three minutes.

        Raises:
            CheckpointError: it could not be written here.
            StorageError: it could not be written there.
        """
        end = time.monotonic() + PATIENCE_S
        self._until(end, self._hear)
        path = super().save(parts, step=step, info=info, score=score, held=held, more=more)
        self._until(end, self._remote.push)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest at the URI, copied here; local ones that are not there are removed."""
        return self._fetched("newest")

    def best(self) -> Checkpoint | None:
        """The best at the URI, likewise; the newest if none has a score."""
        return self._fetched("best")

    def named(self, name: str) -> Checkpoint:
        """That of a name at the URI, copied here."""
        return self._remote.named(name)

    def chosen(self, name: str) -> Checkpoint:
        """The same: what another process has verified may lie on another machine."""
        return self.named(name)

    def held(self) -> list[Path]:
        """Where those that are held at the URI would lie here, newest first."""
        folders = folders_of(self._remote.remote.list())
        names = [name for name, files in folders.items() if {HELD, MANIFEST} <= set(files)]
        return [self.directory / name for name in sorted(names, reverse=True)]

    def hold(self, path: Path) -> None:
        """Keep a checkpoint at the URI."""
        self._remote.remote.write(f"{path.name}/{HELD}", b"")

    def release(self, path: Path) -> None:
        """Let it go; the store that saves hears of it before it saves again."""
        self._remote.remote.delete([f"{path.name}/{HELD}"])

    def add_score(
        self, checkpoint: Checkpoint, score: float | None, info: Mapping[str, Any]
    ) -> None:
        """As that of `CheckpointStore`, at the URI."""
        name = checkpoint.path.name
        try:
            found = self._remote.named(name)
        except CheckpointError:
            return
        if found.seal == checkpoint.seal:
            note = score_note(found.seal, score, info)
            self._remote.remote.write(f"{name}/{SCORE}", note)
            self.release(checkpoint.path)

    def tidy(self) -> None:
        """Remove at the URI what a save would remove."""
        self._remote.trim(self.keep)

    def _fetched(self, which: Which) -> Checkpoint | None:
        found, self.skipped = self._remote.fetch(which, ours=False)
        return found

    def _hear(self) -> None:
        """Take over scores, and let go what was released at the URI."""
        mine = super().held()
        if not mine:
            return
        folders = folders_of(self._remote.remote.list())
        for path in mine:
            files = folders.get(path.name, {})
            if MANIFEST not in files or HELD in files:
                continue
            if SCORE in files:
                self._remote.remote.pull([f"{path.name}/{SCORE}"], self.directory)
            super().release(path)

    def _until(self, end: float, work: Callable[[], object]) -> None:
        while True:
            try:
                work()
                return
            except StorageError as error:
                if time.monotonic() > end:
                    raise
                warn(f"note      {error} Trying again.")
            time.sleep(AGAIN_S)
