"""A run at a URI, and the local copy of it that a process works in.

A driver trains in the copy, `$FARREACH_CACHE/runs/<name>-<hash of the URI>`, and a thread mirrors
it; others bring what they read into it. The copy of the driver that wrote last may be newer than
the URI, if the storage failed or the driver was killed: `.mirror.json` in it says so, and it is
moved aside rather than lost when another machine has gone on meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from farreach.checkpoint import Checkpoint
from farreach.console import warn
from farreach.errors import RunDirectoryError, StorageError
from farreach.roster import is_held
from farreach.storage import lease as leases
from farreach.storage.checkpoints import RemoteCheckpoints, Which
from farreach.storage.lease import Lease
from farreach.storage.mirror import CHECKPOINTS, CORE, NOWHERE, RESULT, Mirror, Stamp, stamps
from farreach.storage.remote import Remote, copy_of

MANIFEST = "manifest.json"
# All that a process leaves at the URI that was killed before its new run was one.
BEGUN = {"config.yaml", leases.OBJECT}
TENSORBOARD, FIGURES, KEPT = "tensorboard", "figures", "kept"
_STATE = ".mirror.json"


class RemoteRun:
    """A run at a URI and its local copy.

    Attributes:
        uri: of the run.
        path: the local copy, which may not be there yet.
        remote: its objects.
    """

    def __init__(self, uri: str, kind: str = "runs") -> None:
        """See that the storage answers.

        Args:
            uri: of the run.
            kind: folder of the cache: `runs` for drivers and readers, `workers`.

        Raises:
            StorageError: it doesn't, or there is no such bucket, or access is denied.
        """
        self.uri, self.path = uri.rstrip("/"), copy_of(uri.rstrip("/"), kind)
        self.remote = Remote(self.uri)
        self.remote.check()
        self.checkpoints = RemoteCheckpoints(
            self.remote.below(CHECKPOINTS), self.path / CHECKPOINTS
        )
        self._mirror: Mirror | None = None
        self._new: IO[str] | None = None  # held between `make` and the end of `driving`

    def is_there(self) -> bool:
        """Whether there is a run at the URI."""
        return self.remote.read(MANIFEST) is not None

    def make(self) -> None:
        """Make the local folder of a new run, whose files `driving` brings to the URI.

        Raises:
            RunDirectoryError: there is something at the URI, or another process of this machine
                makes a run there.
        """
        self._see_that_nothing_is_there()
        with self._alone():
            new = open(self.path.with_name(f".{self.path.name}.new"), "a+")  # noqa: SIM115
            try:
                fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                new.close()
                raise self._in_use() from error
            self._new = new
            self._put_aside()
            self.path.mkdir(parents=True)

    def _see_that_nothing_is_there(self) -> None:
        if not self.remote.list().keys() <= BEGUN:
            raise RunDirectoryError(
                f"{self.uri} exists and is not empty. `farreach resume {shlex.quote(self.uri)}` "
                "continues the run in it; otherwise name another place."
            )

    def _in_use(self) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.uri} is in use: another farreach process of this machine is training in it. "
            "Wait for it, or stop it."
        )

    def _begin(self) -> None:
        """Bring the first files of a new run to the URI; the manifest, which makes it one, last."""
        self._see_that_nothing_is_there()
        files = [name for name in stamps(self.path) if name != MANIFEST]
        self.remote.push({name: self.path / name for name in files})
        self.remote.push({MANIFEST: self.path / MANIFEST})

    def open(self) -> None:
        """Bring what the copy lacks of config, manifest, metrics, events, result and `kept/`.

        Raises:
            RunDirectoryError: there is no run at the URI.
        """
        with self._alone():
            if not self._is_live():
                self._update(folders=(KEPT,))

    def fetch(self, which: Which) -> tuple[Checkpoint | None, list[str]]:
        """The newest or best checkpoint in the local copy, and what was passed over."""
        with self._alone():
            return self.checkpoints.fetch(which, ours=self._is_live() or self._is_ours())

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Be the run's only driver, and mirror what is written in here.

        Raises:
            RunDirectoryError: another driver is at work.
            StorageError: the storage fails at the beginning, or at the end for two minutes.
        """
        if self._is_live():
            raise self._in_use()
        lease = Lease(self.remote)
        try:
            before = lease.take()
        except BaseException:
            self._end_new()
            raise
        try:
            with self._alone():
                is_same = self._new is not None or before in (None, self._state().get("token"))
                if self._new is not None:
                    self._begin()
                if not is_same:
                    self._update(folders=(TENSORBOARD, KEPT))
                    self.checkpoints.forget_others()
                known = self._known_of_before() if is_same else stamps(self.path)
                self._note(token=lease.token, clean=False)
            mirror = Mirror(self.path, self.remote, self.checkpoints, known, lambda: lease.lost_to)
            mirror.start()
            self._mirror = mirror
            try:
                yield
            except BaseException:
                self._end(mirror, lease, is_failing=True)
                raise
            self._end(mirror, lease, is_failing=False)
        finally:
            self._mirror = None
            self._end_new()
            with suppress(StorageError):
                lease.release()

    def _end_new(self) -> None:
        """Let other processes of this machine make a run there."""
        if self._new is not None:
            self._new.close()
            self._new = None

    def check(self) -> None:
        """Raise StorageError if another driver has taken the run over."""
        if self._mirror is not None:
            self._mirror.check()

    @contextmanager
    def additions(self) -> Iterator[None]:
        """Bring figures and evaluations to the URI that are made in here."""
        before = stamps(self.path)
        yield
        if self._is_live():
            return  # its driver, on this machine, brings them
        made = [name for name, stamp in stamps(self.path).items() if before.get(name) != stamp]
        made = [name for name in made if name not in CORE and not name.startswith(TENSORBOARD)]
        self.remote.push({name: self.path / name for name in made})

    def _end(self, mirror: Mirror, lease: Lease, *, is_failing: bool) -> None:
        """Bring the rest; what fails then must not hide why the run has ended."""
        try:
            mirror.stop()
            self._note(token=lease.token, clean=True)
        except StorageError as error:
            if not is_failing:
                raise
            warn(f"note      {error}")

    def _update(self, folders: tuple[str, ...]) -> None:
        """Bring the copy to what the URI has, unless it is that of who wrote there last."""
        theirs = self.remote.read(MANIFEST)
        if theirs is None:
            raise RunDirectoryError(
                f"there is no run at {self.uri}. Runs are made by `farreach train CONFIG --run-dir "
                f"{self.uri}`."
            )
        if self.path.is_dir():
            mine = self.path / MANIFEST
            is_theirs = mine.is_file() and mine.read_bytes() == theirs
            if is_theirs and self._is_ours():
                return
            if not is_theirs or not self._state().get("clean", True):
                self._put_aside()
        there = self.remote.list()
        wanted = [name for name in CORE if name in there]
        wanted += [name for name in there if name.partition("/")[0] in folders]
        for name in CORE:
            if name not in there:
                (self.path / name).unlink(missing_ok=True)
        for folder in (CHECKPOINTS, TENSORBOARD, FIGURES):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        # The manifest last: with it the copy is a run.
        self.remote.pull([name for name in wanted if name != MANIFEST], self.path)
        self.remote.pull([MANIFEST], self.path)

    def _is_ours(self) -> bool:
        """Whether the copy is that of the driver that wrote last."""
        last = leases.read(self.remote)
        return last is not None and last["token"] == self._state().get("token")

    def _known_of_before(self) -> dict[str, Stamp]:
        """Files that need not be brought again: those that only grow, and are there as long.

        A result that is there counts as another than what is here: it is brought again, or goes
        when training goes on.
        """
        there = self.remote.list()
        known = {
            name: stamp
            for name, stamp in stamps(self.path).items()
            if name in there and there[name].size == stamp[0]
            if name.startswith(f"{TENSORBOARD}/events")
        }
        return known | ({RESULT: NOWHERE} if RESULT in there else {})

    def _put_aside(self) -> None:
        """Make room for another copy; what may be nowhere else is kept."""
        if not self.path.exists():
            return
        if self._state().get("clean", True):
            shutil.rmtree(self.path)
            return
        aside = self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        os.rename(self.path, aside)
        warn(
            f"note      {self.uri} is another now; what this machine had not brought is in {aside}"
        )

    def _state(self) -> dict[str, object]:
        try:
            content = json.loads((self.path / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _note(self, *, token: str, clean: bool) -> None:
        (self.path / _STATE).write_text(json.dumps({"token": token, "clean": clean}))

    def _is_live(self) -> bool:
        """Whether a driver of this machine works in the copy."""
        return is_held(self.path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have no other process of this machine change the copy."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(f".{self.path.name}.lock"), "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
