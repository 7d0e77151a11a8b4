"""Parts of a checkpoint that several processes write, on a disk that all of them see.

One of them saves the checkpoint; the others only write their parts beside it, and say by a small
file that a part is complete. No process talks to another, so that all of it can happen beside
training.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from farreach.checkpoint import More
from farreach.checkpoint_files import FileRecord, Packed, write_part
from farreach.disk import atomic_write, sync
from farreach.errors import CheckpointError

PREFIX = ".joint-"
POLL_S = 0.02


class JointParts:
    """What the processes of one session write for the checkpoints of one store.

    ```
    parts = JointParts(store.directory, session)
    parts.write(1000, "rows-1", packed)  # every process its own
    store.save({…}, step=1000, info={}, more=parts.collect(1000, ["rows-0", "rows-1"]))  # one
    ```
    """

    def __init__(self, directory: Path, session: str) -> None:
        """As one of the processes that have agreed on a name for their session."""
        self._directory, self._session = directory, session
        self._abandoned = threading.Event()

    def clear(self) -> None:
        """Remove what sessions of before have left behind; for one process, at its beginning."""
        for folder in self._directory.glob(f"{PREFIX}*"):
            if not folder.name.startswith(f"{PREFIX}{self._session}-"):
                shutil.rmtree(folder, ignore_errors=True)

    def write(self, step: int, name: str, packed: Packed) -> None:
        """Write a part of the checkpoint of a step.

        Raises:
            CheckpointError: the disk refuses it.
        """
        folder = self._folder(step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record = write_part(folder, name, packed)
            sync(folder)
            atomic_write(folder / f"{name}.json", json.dumps(vars(record)))
        except OSError as error:
            raise CheckpointError(
                f"{folder}: could not write {name}: {error.strerror or error}. Check that folder "
                "and its file system."
            ) from error

    def collect(self, step: int, names: Sequence[str]) -> More:
        """What moves these parts into the checkpoint's folder as soon as all are complete."""

        def move(target: Path) -> Mapping[str, FileRecord]:
            folder, records = self._folder(step), {}
            for name in names:
                file = f"{name}.msgpack"
                records[file] = self._wait_for(folder / f"{name}.json")
                os.rename(folder / file, target / file)
            shutil.rmtree(folder, ignore_errors=True)
            return records

        return move

    def abandon(self) -> None:
        """Wait for no more parts: others of the session have ended."""
        self._abandoned.set()

    def _wait_for(self, note: Path) -> FileRecord:
        while not note.exists():
            if self._abandoned.wait(POLL_S):
                raise CheckpointError(
                    f"{note.with_suffix('')}: the process that was to write it has ended."
                )
        return FileRecord(**json.loads(note.read_bytes()))

    def _folder(self, step: int) -> Path:
        return self._directory / f"{PREFIX}{self._session}-{step:012d}"
