"""Checkpoints that are whole or absent: written aside, renamed once, verified when read.

A checkpoint is a folder `step_000000123456` with one `<part>.msgpack` per part and a
`manifest.json` that was written last and lists size and SHA-256 of every file. A store has one
writer at a time and any number of readers. Beside them one process may measure scores, and only
touches two files of their own in a checkpoint's folder:

- `held`: saving leaves this checkpoint alone, however old it is, until it is released.
- `score.json`: what was found out after the checkpoint had been saved, sealed as the manifest is
  and of no account beside another manifest.

Names that the writer uses on the way:

- `.tmp-*`: being written or being removed; readers ignore it, the next save removes it.
- `step_*.old`: the folder that a second save of the same step replaces. Readers take it as long as
  it is there, so that at no moment there is no valid checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farreach import messages
from farreach.checkpoint_files import (
    FALL_BACK,
    SCHEMA,
    FileRecord,
    check,
    manifest,
    measure,
    number,
    read_bytes,
    seal_of,
    sealed,
    write_file,
    write_part,
)
from farreach.disk import atomic_write, sync
from farreach.errors import CheckpointError

MANIFEST = "manifest.json"
SCORE = "score.json"
HELD = "held"

# Puts files into a folder; file name → what it looks like.
More = Callable[[Path], Mapping[str, FileRecord]]

FOLDER = re.compile(r"step_(\d{12,})(\.old)?")
_MENDS = {
    errno.ENOSPC: "Free space on that file system, then resume.",
    errno.EDQUOT: "Free space within your quota, then resume.",
    errno.EROFS: "Choose a folder on a writable file system.",
    errno.EACCES: "Make that folder writable.",
}


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk.

    Attributes:
        path: its folder.
        step: what it was saved under; environment steps or updates, as the writer counts.
        score: what `CheckpointStore.best` compares, higher is better; None if it was not measured.
        info: what was noted beside the parts, as JSON gives it back.
        files: file name → what it must look like.
        seal: SHA-256 of the manifest's content, in hex.
    """

    path: Path
    step: int
    score: float | None
    info: Mapping[str, Any]
    files: Mapping[str, FileRecord] = field(repr=False)
    seal: str = field(repr=False)

    def parts(self) -> dict[str, Any]:
        """Every part by name; raises CheckpointError as `part` does."""
        return {name.removesuffix(".msgpack"): self._read(name) for name in self.files}

    def part(self, name: str) -> Any:
        """One part, as `messages.unpack` gives it.

        Raises:
            CheckpointError: there is no such part, or its file is missing, truncated or altered.
        """
        file = f"{name}.msgpack"
        if file not in self.files:
            known = ", ".join(sorted(self.files))
            raise CheckpointError(f"{self.path}: holds no {file}. It holds: {known}.")
        return self._read(file)

    def verify(self) -> None:
        """Raise CheckpointError unless every file has the size and checksum of the manifest."""
        for name, record in self.files.items():
            check(self.path / name, record, measure(self.path / name))

    def _read(self, name: str) -> Any:
        path = self.path / name
        data = read_bytes(path)
        check(path, self.files[name], FileRecord(len(data), hashlib.sha256(data).hexdigest()))
        try:
            return messages.unpack(data)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


class CheckpointStore:
    """The checkpoints of one run, in one folder.

    ```
    store = CheckpointStore(run_dir / "checkpoints")
    store.save({"learner": state}, step=1000, info={"env_steps": 1000}, score=0.7)
    checkpoint = store.newest()
    state = checkpoint.part("learner")
    ```

    Attributes:
        is_in_directory: whether checkpoints lie in the folder, where other processes may add parts.
        skipped: what the last `newest` or `best` passed over, one message per checkpoint.
    """

    is_in_directory = True

    def __init__(self, directory: Path, keep: int = 2) -> None:
        """A store in `directory`, which the first save makes.

        Args:
            directory: holds the checkpoints and nothing else.
            keep: how many of the newest checkpoints stay; the best one stays besides.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}.")
        self.directory = Path(directory)
        self.keep = keep
        self.skipped: list[str] = []
        # Folders that this store wrote or verified, so that pruning need not read them again.
        self._sound: set[Path] = set()

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
        """Write one checkpoint, then remove those that are neither new nor best.

        Args:
            parts: name → tree that `messages.pack` takes, or `Packed`; each becomes a file.
            step: number of the checkpoint, at least 0; saving it again replaces the older one.
            info: notes that JSON takes.
            score: higher is better; NaN counts as not measured.
            held: keep it until it is released or `add_score` has given it a score.
            more: puts further files into the folder, before it is sealed.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: it could not be written; older checkpoints are as they were.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, not {step}.")
        target = self.directory / f"step_{step:012d}"
        working = self.directory / f".tmp-{target.name}-{os.getpid()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            working.mkdir()
            files = {f"{name}.msgpack": write_part(working, name, parts[name]) for name in parts}
            if more is not None:
                files |= more(working)
            if held:
                write_file(working / HELD, b"")
            write_file(working / MANIFEST, manifest(step, score, info, files))
            sync(working)
            self._put(working, target)
            self._sound.add(target)
            self._prune(target)
        except OSError as error:
            mend = _MENDS.get(error.errno or 0, "Check that folder and its file system.")
            raise CheckpointError(
                f"{target}: could not write the checkpoint: {error.strerror or error}. {mend}"
            ) from error
        finally:
            shutil.rmtree(working, ignore_errors=True)  # gone already unless something failed
        return target

    def newest(self) -> Checkpoint | None:
        """The valid checkpoint of the largest step, or None; see `skipped`."""
        return self._first_valid(lambda _: self._paths())

    def best(self) -> Checkpoint | None:
        """The valid checkpoint of the highest score, the newest of equals; None if none has one."""
        return self._first_valid(self._by_score)

    def held(self) -> list[Path]:
        """Folders of the checkpoints that are held, newest first."""
        return [path for path in self._paths() if (path / HELD).exists()]

    def hold(self, path: Path) -> None:
        """Keep a checkpoint, while nobody saves."""
        atomic_write(path / HELD, b"")

    def release(self, path: Path) -> None:
        """Let a checkpoint go the way of the others."""
        (path / HELD).unlink(missing_ok=True)

    def release_all(self) -> None:
        """Let all go, where nobody is left to give them scores."""
        for path in self.held():
            self.release(path)

    def add_score(
        self, checkpoint: Checkpoint, score: float | None, info: Mapping[str, Any]
    ) -> None:
        """Note down what a held checkpoint was found to be worth, and release it.

        Its other files stay as they are. One that was replaced or removed by hand is passed over.

        Args:
            checkpoint: as it was loaded.
            score: higher is better; None or NaN if there is none.
            info: more notes that JSON takes.

        Raises:
            RunDirectoryError: the disk refuses it; the checkpoint is as it was.
        """
        try:
            found = read_manifest(checkpoint.path)
        except CheckpointError:
            return
        if found.seal == checkpoint.seal:
            atomic_write(checkpoint.path / SCORE, score_note(found.seal, score, info))
            self.release(checkpoint.path)

    def named(self, name: str) -> Checkpoint:
        """The checkpoint in the folder of that name; raises as `load` does."""
        return self.load(self.directory / name)

    def chosen(self, name: str) -> Checkpoint:
        """The same without looking at its files, which another process has verified just now.

        They are verified when they are read.
        """
        return read_manifest(self.directory / name)

    def tidy(self) -> None:
        """Remove what a save would remove, where nobody saves any more."""
        with suppress(OSError):  # leftovers do no harm
            self._prune(None)

    @staticmethod
    def load(path: Path) -> Checkpoint:
        """The checkpoint in one folder, verified.

        Raises:
            CheckpointError: missing, truncated, altered, foreign, or of an unknown schema version.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: there is no such folder; name one like step_0000….")
        checkpoint = read_manifest(folder)
        checkpoint.verify()
        return checkpoint

    def _paths(self) -> list[Path]:
        """Folders of checkpoints, newest first; a replaced one after the one that replaces it."""
        if not self.directory.is_dir():
            return []
        found = [(FOLDER.fullmatch(path.name), path) for path in self.directory.iterdir()]
        matches = [(int(match[1]), not match[2], path) for match, path in found if match]
        return [path for _, _, path in sorted(matches, reverse=True)]

    def _by_score(self, unreadable: list[str]) -> list[Path]:
        """Folders with a score, best first; what cannot be read goes to `unreadable`."""
        scored: list[tuple[float, Path]] = []
        for path in self._paths():
            try:
                score = read_manifest(path).score
            except CheckpointError as error:
                unreadable.append(str(error))
                continue
            if score is not None:
                scored.append((score, path))
        # sorted() is stable: of equal scores the newest stays first.
        return [path for _, path in sorted(scored, key=lambda entry: entry[0], reverse=True)]

    def _first_valid(self, order: Callable[[list[str]], list[Path]]) -> Checkpoint | None:
        self.skipped = []
        for path in order(self.skipped):
            before = _identity(path)
            try:
                checkpoint = self.load(path)
            except CheckpointError as error:
                if _identity(path) != before:
                    # The writer removed or replaced it while it was read: look at what is there.
                    return self._first_valid(order)
                self.skipped.append(str(error))
                continue
            self._sound.add(path)
            return checkpoint
        return None

    def _clear_leftovers(self) -> None:
        """Remove what a writer that died left behind, and undo a replacement it did not finish."""
        for path in self.directory.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        for old in self.directory.glob("step_*.old"):
            target = old.with_suffix("")
            if target.exists():
                self._remove(old)
            else:
                os.rename(old, target)

    def _put(self, working: Path, target: Path) -> None:
        """Rename a finished folder into place; a folder that is there moves aside meanwhile."""
        if not target.exists():
            os.rename(working, target)
            sync(self.directory)
            return
        old = target.with_suffix(".old")
        os.rename(target, old)
        try:
            os.rename(working, target)
        except OSError:
            os.rename(old, target)
            raise
        sync(self.directory)
        self._remove(old)

    def _prune(self, written: Path | None) -> None:
        """Remove old ones, but never one just written or held, the best or the last valid."""
        # Looked up before the scores: one that is given its score meanwhile is in either.
        spared = {written, *self.held()}
        best = next((path for path in self._by_score([]) if self._is_sound(path)), None)
        kept = 0
        for path in self._paths():
            # An invalid checkpoint does not count, and stays to be looked at until it is old.
            if kept < self.keep:
                kept += self._is_sound(path)
            elif path != best and path not in spared:
                self._remove(path)

    def _is_sound(self, path: Path) -> bool:
        if path not in self._sound:
            try:
                self.load(path)
            except CheckpointError:
                return False
            self._sound.add(path)
        return True

    def _remove(self, path: Path) -> None:
        """Rename first, so that no reader ever meets half a folder; leftovers go with a save."""
        self._sound.discard(path)
        aside = self.directory / f".tmp-removed-{path.name}-{os.getpid()}"
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def score_note(seal: str, score: float | None, info: Mapping[str, Any]) -> bytes:
    """Content of `score.json` for the manifest of that seal."""
    return sealed({"of": seal, "score": number(score), "info": dict(info)})


def read_manifest(folder: Path) -> Checkpoint:
    """The checkpoint that a manifest describes; its files are not looked at.

    Raises:
        CheckpointError: the manifest is missing, altered, foreign or of an unknown schema version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON: {error}. {FALL_BACK}") from error
    if not isinstance(content, dict) or not {"schema", "step", "sha256"} <= content.keys():
        raise CheckpointError(f"{path}: was not written by farreach. {FALL_BACK}")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path}: schema version {content['schema']}, but this farreach reads {SCHEMA}. "
            f"Use the farreach that wrote it. {FALL_BACK}"
        )
    found, expected = content.pop("sha256"), seal_of(content)
    if found != expected:
        raise CheckpointError(
            f"{path}: was altered: its own sha256 is {found}, its content gives {expected}. "
            f"{FALL_BACK}"
        )
    # Written by this schema, as the seal shows, so its fields need no further checks.
    files = {name: FileRecord(**record) for name, record in content["files"].items()}
    added = _added(folder / SCORE, found)
    score, info = added.get("score", content["score"]), content["info"] | added.get("info", {})
    return Checkpoint(folder, content["step"], score, info, files, found)


def _added(path: Path, seal: str) -> dict[str, Any]:
    """What `add_score` wrote for the manifest of that seal; nothing if it is not sound."""
    try:
        content = json.loads(path.read_bytes())
        is_sound = content.pop("sha256") == seal_of(content) and content["of"] == seal
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
    return content if is_sound else {}


def _identity(path: Path) -> int | None:
    """The folder's inode, or None if there is no such folder."""
    try:
        return path.stat().st_ino
    except OSError:
        return None
