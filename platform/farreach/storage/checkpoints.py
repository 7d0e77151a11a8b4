"""Checkpoints at a URI: brought there whole or not at all, fetched one by one and verified.

They lie below `checkpoints/` as in a run directory. The manifest of each is written last and
deleted first, so that whoever sees it sees a checkpoint whose files are there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from farreach.checkpoint import (
    FOLDER,
    HELD,
    MANIFEST,
    SCORE,
    Checkpoint,
    CheckpointStore,
    read_manifest,
)
from farreach.errors import CheckpointError, StorageError
from farreach.storage.remote import Entry, Remote

Which = Literal["best", "newest"]

OLD = ".old"
# Listings that may be out of date before their reader gives up.
LOOKS = 3
# Age in s of a half-made copy that nobody works at any more.
ABANDONED_S = 3600.0


class RemoteCheckpoints:
    """The checkpoints of a run at a URI, beside those of a local folder.

    Attributes:
        remote: the folder `checkpoints` of the run.
        directory: the local one.
    """

    def __init__(self, remote: Remote, directory: Path) -> None:
        """Nothing is looked at yet."""
        self.remote, self.directory = remote, directory
        # The thread that pushes, and whoever fetches.
        self._one = threading.RLock()
        # Those that are whole at the URI, by their folders' names; None until it was looked at.
        self._known: dict[str, Checkpoint] | None = None
        self._seen: set[tuple[str, int]] = set()
        self._scores: dict[str, int] = {}

    # ------------------------------------------------------------------ from there

    def fetch(self, which: Which, *, ours: bool) -> tuple[Checkpoint | None, list[str]]:
        """The newest or best whole checkpoint, in the local folder.

        Without any score the best one is the newest. Only files that are not here are copied.

        Args:
            which: of them.
            ours: whether the local folder is that of the driver that wrote last, and may have
                checkpoints that are not there yet; of another one, they are removed.

        Returns:
            The checkpoint, verified, or None; and what was passed over, a message for each.
        """
        for _ in range(LOOKS):
            with self._one, suppress(FileNotFoundError):  # replaced meanwhile: look again
                return self._first_of(which, ours)
        raise StorageError(
            f"{self.remote.uri}: checkpoints come and go faster than they can be copied. Try again."
        )

    def _first_of(self, which: Which, ours: bool) -> tuple[Checkpoint | None, list[str]]:
        skipped: list[str] = []
        there = self._there(skipped)
        found = dict(there)
        for name, one in self._here().items():
            is_same = name in there and there[name].seal == one.seal
            if not is_same and not ours:
                shutil.rmtree(one.path, ignore_errors=True)
            elif not is_same or one.score is not None:
                found[name] = one
        for one in _ordered(list(found.values()), which):
            try:
                return self._brought(one, there.get(one.path.name)), skipped
            except CheckpointError as error:  # noqa: PERF203
                skipped.append(str(error))
        return None, skipped

    def named(self, name: str) -> Checkpoint:
        """The checkpoint of one folder, which is copied if it is not here; CheckpointError."""
        faults: list[str] = []
        there = self._there(faults).get(name)
        if there is None:
            raise CheckpointError(f"{self.remote.uri}/{name}: is not there. {' '.join(faults)}")
        try:
            return self._brought(there, there)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.remote.uri}/{name}: was removed meanwhile.") from error

    def forget_others(self) -> None:
        """Remove local checkpoints that are not those at the URI."""
        there = self._there([])
        for name, one in self._here().items():
            if name not in there or there[name].seal != one.seal:
                shutil.rmtree(one.path, ignore_errors=True)

    def _there(self, faults: list[str]) -> dict[str, Checkpoint]:
        """Those with a manifest, by name; as if they lay in the local folder."""
        folders = folders_of(self.remote.list())
        names = [f"{name}/{MANIFEST}" for name, files in folders.items() if MANIFEST in files]
        names += [f"{name}/{SCORE}" for name, files in folders.items() if SCORE in files]
        found: dict[str, Checkpoint] = {}
        with tempfile.TemporaryDirectory(prefix="farreach-") as place:
            for name in names:
                with suppress(FileNotFoundError):
                    self.remote.pull([name], Path(place))
            for name in sorted(folders):
                if not (Path(place) / name / MANIFEST).exists():
                    continue
                try:
                    one = read_manifest(Path(place) / name)
                except CheckpointError as error:
                    faults.append(str(error).replace(place, self.remote.uri))
                    continue
                # One that is being replaced counts under its own name until the new one is there.
                own = name.removesuffix(OLD)
                found.setdefault(own, replace(one, path=self.directory / own))
        self._known = dict(found)
        return found

    def _here(self) -> dict[str, Checkpoint]:
        found = {}
        for path in sorted(self.directory.glob("step_*")):
            if FOLDER.fullmatch(path.name) and not path.name.endswith(OLD):
                with suppress(CheckpointError):
                    found[path.name] = read_manifest(path)
        return found

    def _brought(self, one: Checkpoint, there: Checkpoint | None) -> Checkpoint:
        """A checkpoint in the local folder; what is damaged there is copied again."""
        if one.path.is_dir():
            try:
                found = CheckpointStore.load(one.path)
            except CheckpointError:
                if there is None:
                    raise
            else:
                if found.seal == one.seal:
                    return self._scored(found, there)
        assert there is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=self.directory) as place:
            self._pull(there, Path(place))
            target = Path(place) / one.path.name
            try:
                whole = CheckpointStore.load(target)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(place, self.remote.uri)) from error
            if whole.seal != there.seal:
                raise FileNotFoundError(one.path.name)
            shutil.rmtree(one.path, ignore_errors=True)
            with suppress(OSError):  # another process of this machine was faster
                os.rename(target, one.path)
        return CheckpointStore.load(one.path)

    def _scored(self, found: Checkpoint, there: Checkpoint | None) -> Checkpoint:
        """A local checkpoint, with the score that it was given at the URI since it was copied."""
        if there is None or (found.path / SCORE).exists():
            return found
        if (found.score, found.info) == (there.score, there.info):
            return found
        self.remote.pull([f"{found.path.name}/{SCORE}"], self.directory)
        return read_manifest(found.path)

    def _clear_leftovers(self) -> None:
        """Remove what processes left behind that were killed while they copied."""
        for path in self.directory.glob(".pull-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(path, ignore_errors=True)

    def _pull(self, one: Checkpoint, place: Path) -> None:
        name = one.path.name
        files = self.remote.list(name)
        source = name if f"{name}/{MANIFEST}" in files else name + OLD
        wanted = [f"{source}/{file}" for file in (*one.files, MANIFEST)]
        self.remote.pull(wanted, place)
        if f"{name}/{SCORE}" in files:
            self.remote.pull([f"{name}/{SCORE}"], place)
        if source != name:
            os.rename(place / source, place / name)

    # ------------------------------------------------------------------ to there

    def has_news(self) -> bool:
        """Whether the local folder holds what `push` has not looked at yet; asks nobody."""
        return any(key not in self._seen for key in self._keys()) or bool(self._new_scores())

    def push(self) -> None:
        """Bring new checkpoints, newest first, and scores; remove what they supersede.

        New are those that are no older than what is there, and any with a higher score: others
        were left out on purpose. A checkpoint that is pruned here on the way comes there whole.
        """
        with self._one:
            if self.has_news():
                self._push_all()

    def _push_all(self) -> None:
        if self._known is None:
            self._known = self._there([])
        known, before = self._known, dict(self._known)
        for path in self.directory.glob(".push-*"):
            shutil.rmtree(path, ignore_errors=True)
        while news := [key for key in self._keys() if key not in self._seen]:
            key = news[0]
            try:
                one = read_manifest(self.directory / key[0])
                if _is_new(one, before):
                    self._push_one(one, known)
            except (CheckpointError, FileNotFoundError):
                pass  # damaged, or pruned before it was looked at
            self._seen.add(key)
        for name, changed in self._new_scores().items():
            with suppress(FileNotFoundError):
                self.remote.push({f"{name}/{SCORE}": self.directory / name / SCORE})
                known[name] = read_manifest(self.directory / name)
            self._scores[name] = changed

    def trim(self, keep: int) -> None:
        """Remove all but the newest, the best and those that are held."""
        there = self._there([])
        held = {name for name, files in folders_of(self.remote.list()).items() if HELD in files}
        kept = {one.path.name for one in _ordered(list(there.values()), "newest")[:keep]}
        kept |= {one.path.name for one in _ordered(list(there.values()), "best")[:1]}
        for name in there.keys() - kept - held:
            self._remove(name)

    def _keys(self) -> list[tuple[str, int]]:
        """Name and time of change of the manifest of each, newest first."""
        found = []
        for path in sorted(self.directory.glob("step_*"), reverse=True):
            if FOLDER.fullmatch(path.name) and not path.name.endswith(OLD):
                with suppress(OSError):
                    found.append((path.name, (path / MANIFEST).stat().st_mtime_ns))
        return found

    def _new_scores(self) -> dict[str, int]:
        """Times of change of scores that are not there, of checkpoints that are."""
        found = {}
        for name in self._known or {}:
            with suppress(OSError):
                changed = (self.directory / name / SCORE).stat().st_mtime_ns
                if self._scores.get(name) != changed:
                    found[name] = changed
        return found

    def _push_one(self, one: Checkpoint, known: dict[str, Checkpoint]) -> None:
        name = one.path.name
        with self._linked(one) as place:
            if self.remote.read(f"{name}/{MANIFEST}") == (place / MANIFEST).read_bytes():
                known[name] = one
                return
            if self.remote.list(name):
                self._make_way(name, known)
            files = [*one.files, *([HELD] if (place / HELD).exists() else [])]
            self.remote.push({f"{name}/{file}": place / file for file in files})
            self.remote.push({f"{name}/{MANIFEST}": place / MANIFEST})
        known[name] = one
        self._prune(name, known)

    @contextmanager
    def _linked(self, one: Checkpoint) -> Iterator[Path]:
        """A folder with the checkpoint's files that pruning does not take away."""
        place = self.directory / f".push-{one.path.name}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            for file in (*one.files, MANIFEST, HELD):
                source = one.path / file
                if file == HELD and not source.exists():
                    continue
                try:
                    os.link(source, place / file)
                except FileNotFoundError:
                    raise
                except OSError:  # a file system without links
                    shutil.copyfile(source, place / file)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _make_way(self, name: str, known: dict[str, Checkpoint]) -> None:
        """Remove another of the same step, which stays as a copy if there is nothing else."""
        if name in known and len(known) == 1:
            files = {f"{name}/{file}": f"{name}{OLD}/{file}" for file in known[name].files}
            with suppress(StorageError):  # too large to be copied there
                self.remote.copy(files)
                self.remote.copy({f"{name}/{MANIFEST}": f"{name}{OLD}/{MANIFEST}"})
        self._remove(name)
        known.pop(name, None)

    def _prune(self, pushed: str, known: dict[str, Checkpoint]) -> None:
        """Remove what the local store has removed, or would have, and what writers left behind."""
        for name, one in list(known.items()):
            others = [other for other in known.values() if other is not one]
            is_older = any(other.step > one.step for other in others)
            best = max((o.score for o in others if o.score is not None), default=None)
            is_best = one.score is not None and (best is None or one.score > best)
            if is_older and not is_best and not (self.directory / name).exists():
                self._remove(name)
                del known[name]
        for name, files in folders_of(self.remote.list()).items():
            if name != pushed and (MANIFEST not in files or name.endswith(OLD)):
                self._remove(name)

    def _remove(self, name: str) -> None:
        self.remote.delete([f"{name}/{MANIFEST}"])
        self.remote.delete_folder(name)


def folders_of(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """Folders of checkpoints → their files."""
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        folder, _, file = name.partition("/")
        if FOLDER.fullmatch(folder):
            found.setdefault(folder, {})[file] = entry
    return found


def _ordered(checkpoints: list[Checkpoint], which: Which) -> list[Checkpoint]:
    """Newest first, or best first and of equals the newest; those without a score at the end."""
    newest = sorted(checkpoints, key=lambda one: one.step, reverse=True)
    if which == "newest":
        return newest
    scored = [one for one in newest if one.score is not None]
    best = sorted(scored, key=lambda one: one.score or 0.0, reverse=True)
    return [*best, *(one for one in newest if one.score is None)]


def _is_new(one: Checkpoint, known: Mapping[str, Checkpoint]) -> bool:
    """Whether a local checkpoint is to be brought to those that are there."""
    if any(one.seal == other.seal for other in known.values()):
        return False
    best = max((o.score for o in known.values() if o.score is not None), default=None)
    is_better = one.score is not None and (best is None or one.score > best)
    return is_better or all(one.step >= other.step for other in known.values())
