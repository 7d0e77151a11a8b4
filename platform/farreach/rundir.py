"""The run directory: one folder that holds everything about one training run.

```
<run>/
  config.yaml      the resolved config          manifest.json   versions, commit, host, command
  metrics.jsonl    one line per step that was logged
  events.jsonl     started, resumed, stopped, failed, finished
  result.json      flat `group/name` → number, written once at the end
  checkpoints/     figures/     tensorboard/     evaluations/     features/     kept/
```
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farreach import provenance
from farreach.console import record
from farreach.disk import atomic_write, cut_torn_line, disk_error, json_line, plain
from farreach.errors import RunDirectoryError
from farreach.lines import read_lines
from farreach.registry import near_match
from farreach.run_places import FOLDERS, fresh_name, make_exactly, make_fresh, name_fault
from farreach.storage.remote import is_remote, joined

if TYPE_CHECKING:
    from farreach.checkpoint import CheckpointStore
    from farreach.storage.run import RemoteRun

LATEST = "latest"
MIN_FREE_BYTES = 200 * 2**20


class RunDirectory:
    """One run directory; `create` makes a new one and `open` finds an old one.

    One at a URI (`s3://bucket/runs/first`) is worked on in a local copy; see `storage.run`.

    ```
    run = RunDirectory.create(Path("runs"), "walk_maze", config_text, sys.argv, seed=0)
    run.event("started")
    run.write_result({"eval/success": 0.9}, seed=0, wall_time_s=3.5, versions=versions)
    ```
    """

    def __init__(self, path: Path, remote: RemoteRun | None = None) -> None:
        """The run at `path`, which exists; users call `create` or `open`.

        Args:
            path: its folder.
            remote: the run at a URI of which that is the copy.
        """
        self.path, self.remote = path, remote

    @classmethod
    def create(
        cls,
        root: Path | str,
        name: str,
        config_text: str,
        command: list[str],
        seed: int,
        *,
        path: Path | str | None = None,
        parent: str | None = None,
    ) -> RunDirectory:
        """Make a new run directory with its config and manifest.

        At a URI there is nothing before `lock` has found that no other process begins a run there.

        Args:
            root: where runs live, a folder or a URI; the directory is
                `<root>/<name>-<date>-<time>-<4 hex>`.
            name: letters, digits, dot, dash and underscore.
            config_text: the resolved config, as YAML.
            command: the command line that started the run.
            seed: the run's seed.
            path: exactly this directory instead of a fresh one under `root`.
            parent: the run that this one was derived from, if any; kept in the manifest.

        Raises:
            RunDirectoryError: the name cannot name a folder, the directory is occupied, unwritable
                or almost full.
            StorageError: a URI cannot be reached or written.
        """
        if (fault := name_fault(name)) is not None:
            raise RunDirectoryError(fault)
        now = datetime.now(timezone.utc).astimezone()
        run = cls._made(root, name, now, path)
        run.check_writable()
        try:
            for folder in FOLDERS:
                (run.path / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(run.path, error) from error
        atomic_write(run.config_path, config_text)
        manifest = provenance.manifest(command, seed, now, parent)
        atomic_write(run.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        return run

    @classmethod
    def _made(
        cls, root: Path | str, name: str, now: datetime, path: Path | str | None
    ) -> RunDirectory:
        """An empty folder for a new run."""
        place = root if path is None else path
        if not is_remote(place):
            folder = make_fresh(Path(root), name, now) if path is None else make_exactly(path)
            return cls(folder)
        from farreach.storage.run import RemoteRun

        remote = RemoteRun(joined(str(root), fresh_name(name, now)) if path is None else str(path))
        remote.make()
        return cls(remote.path, remote)

    @classmethod
    def open(cls, path: Path | str, root: Path = Path("runs")) -> RunDirectory:
        """The run at `path`; `latest` is the one under `root` that was created last.

        Of a run at a URI, what is small is copied: config, manifest, metrics, events, result.

        Raises:
            RunDirectoryError: there is no run there.
            StorageError: a URI cannot be reached or read.
        """
        if is_remote(path):
            from farreach.storage.run import RemoteRun

            remote = RemoteRun(str(path))
            remote.open()
            return cls(remote.path, remote)
        if str(path) == LATEST:
            runs = [run for run in _runs_in(root) if run.is_run()]
            if not runs:
                raise RunDirectoryError(
                    f"there is no run under {root}/. Start one with `farreach train CONFIG`, "
                    "or name the run directory."
                )
            return max(runs, key=lambda run: str(run.manifest()["started"]))
        run = cls(Path(path))
        if run.is_run():
            return run
        siblings = [sibling.path.name for sibling in _runs_in(run.path.parent) if sibling.is_run()]
        hint = (
            near_match(run.path.name, siblings)
            if siblings
            else "Runs are made by `farreach train CONFIG`, by default under runs/."
        )
        if run.path.exists():
            raise RunDirectoryError(
                f"{path} is not a run directory: it has no manifest.json of farreach. {hint}"
            )
        raise RunDirectoryError(f"there is no run directory {path}. {hint}")

    @classmethod
    def is_there(cls, path: Path | str) -> bool:
        """Whether a run is at a path or URI.

        Raises:
            StorageError: a URI cannot be reached or read.
        """
        if is_remote(path):
            from farreach.storage.run import RemoteRun

            return RemoteRun(str(path)).is_there()
        return cls(Path(path)).is_run()

    @classmethod
    def for_worker(cls, address: str) -> RunDirectory:
        """The run of an `address`, for a process on any machine; a copy of its own if at a URI."""
        if not is_remote(address):
            return cls.open(Path(address))
        from farreach.storage.run import RemoteRun

        remote = RemoteRun(address, "workers")
        remote.open()
        return cls(remote.path, remote)

    @property
    def place(self) -> str:
        """How the user names the run: its path, or its URI."""
        return str(self.path) if self.remote is None else self.remote.uri

    @property
    def word(self) -> str:
        """The place as one word of a command line."""
        return shlex.quote(self.place)

    @property
    def address(self) -> str:
        """How other processes find the run, see `for_worker`: its absolute path, or its URI."""
        return str(self.path.resolve()) if self.remote is None else self.remote.uri

    def shared_store(self, keep: int = 2) -> CheckpointStore:
        """The checkpoints, for workers that save them and may be on other machines."""
        from farreach.checkpoint import CheckpointStore

        if self.remote is None:
            return CheckpointStore(self.checkpoints.resolve(), keep)  # for another process too
        from farreach.storage.run import RemoteRun
        from farreach.storage.store import RemoteStore

        workers = RemoteRun(self.remote.uri, "workers").checkpoints
        return RemoteStore(workers.remote, workers.directory, keep)

    @property
    def config_path(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """Metrics as JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def events_path(self) -> Path:
        """Events as JSON lines."""
        return self.path / "events.jsonl"

    @property
    def result_path(self) -> Path:
        """The final metrics; exists once the run is done."""
        return self.path / "result.json"

    @property
    def error_path(self) -> Path:
        """Tracebacks of unexpected failures."""
        return self.path / "error.log"

    @property
    def figures(self) -> Path:
        """Folder of pictures and animations."""
        return self.path / "figures"

    @property
    def kept(self) -> Path:
        """Folder for what checkpoints need beside them, wherever they are used."""
        return self.path / "kept"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder to give to `tensorboard --logdir`."""
        return self.path / "tensorboard"

    def is_run(self) -> bool:
        """Whether farreach made this directory."""
        try:
            return "farreach" in self.manifest()["versions"]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def manifest(self) -> dict[str, Any]:
        """Facts about how the run was started."""
        return json.loads((self.path / "manifest.json").read_text())

    def check_writable(self, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        """Refuse a directory that cannot be written, or whose disk is nearly full.

        Raises:
            RunDirectoryError: names the directory and what to do.
        """
        try:
            probe = self.path / f".probe.{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
            disk = os.statvfs(self.path)
        except OSError as error:
            raise disk_error(self.path, error) from error
        free = disk.f_bavail * disk.f_frsize
        if free < min_free_bytes:
            raise RunDirectoryError(
                f"only {free / 2**20:.0f} MiB are free on the disk of {self.path}, and a run needs "
                f"{min_free_bytes / 2**20:.0f} MiB. Free some space, or put the run on another "
                "disk with --run-dir."
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; the lock goes away with its process, however that ends.

        What is written into the copy of a run at a URI is brought there meanwhile.

        Raises:
            RunDirectoryError: another process holds it.
            StorageError: a URI cannot be reached, or written at the end.
        """
        if self.remote is None:
            with self._locked():
                yield
        else:
            with self.remote.driving(), self._locked():
                yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            file = open(self.path / ".lock", "a+")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise disk_error(self.path, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunDirectoryError(
                    f"{self.place} is in use: another farreach process is training in it. "
                    "Wait for it, or stop it."
                ) from error
            yield

    def refresh(self) -> None:
        """Copy what has changed at the run's URI, if it is at one."""
        if self.remote is not None:
            self.remote.open()

    @contextmanager
    def additions(self) -> Iterator[None]:
        """Bring the pictures and evaluations that are made in here to the run's URI, if any."""
        if self.remote is None:
            yield
        else:
            with self.remote.additions():
                yield

    def replace_config(self, config_text: str) -> None:
        """Put a new resolved config in place, and keep the old one as `config.previous.yaml`."""
        atomic_write(self.path / "config.previous.yaml", self.config_path.read_text())
        atomic_write(self.config_path, config_text)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`.

        Raises:
            RunDirectoryError: the disk refuses it.
            StorageError: another driver has taken over the run at the URI.
        """
        if self.remote is not None:
            self.remote.check()
        try:
            cut_torn_line(self.events_path)
            with open(self.events_path, "a") as file:
                file.write(json_line({"event": kind, "time": time.time(), **fields}) + "\n")
            record(kind, run=self.place, **fields)
        except OSError as error:
            raise disk_error(self.events_path, error) from error

    def events(self) -> list[dict[str, Any]]:
        """All events so far, in order; damaged lines are left out, see `read_lines`."""
        return read_lines(self.events_path)

    def write_result(
        self,
        metrics: Mapping[str, float],
        *,
        seed: int,
        wall_time_s: float,
        versions: Mapping[str, str],
    ) -> None:
        """Write `result.json`: one flat object of `group/name` → number (null for NaN).

        Raises:
            RunDirectoryError: the disk refuses it.
        """
        result = flat_result(metrics, seed=seed, wall_time_s=wall_time_s, versions=versions)
        atomic_write(self.result_path, json.dumps(result, indent=2, allow_nan=False) + "\n")

    def write_evaluation(self, name: str, result: Mapping[str, Any]) -> Path:
        """Keep what an evaluation found in `evaluations/NAME.json`; the file.

        If what was found with other `settings` is there, `NAME-KEY.json` is written, with a key
        that follows from the settings.

        Raises:
            RunDirectoryError: the disk refuses it.
        """
        folder = self.path / "evaluations"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error
        content = json.dumps(result, indent=2, default=str) + "\n"
        path = folder / f"{name}.json"
        settings = json.loads(content).get("settings")
        if path.exists() and _settings_in(path) != settings:
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
            path = folder / f"{name}-{key}.json"
        atomic_write(path, content)
        return path

    def read_result(self) -> dict[str, Any]:
        """What `write_result` wrote.

        Raises:
            RunDirectoryError: the run is not done.
        """
        try:
            return json.loads(self.result_path.read_text())
        except FileNotFoundError:
            raise RunDirectoryError(
                f"{self.place} has no result.json: the run is not done. "
                f"Continue it with `farreach resume {self.word}`."
            ) from None


def flat_result(
    metrics: Mapping[str, float], *, seed: int, wall_time_s: float, versions: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `result.json`: metrics sorted by name, then the facts about the run."""
    assert all("/" in name for name in metrics), f"not all are called group/name: {sorted(metrics)}"
    flat = {name: plain(float(metrics[name])) for name in sorted(metrics)}
    return {**flat, "seed": seed, "wall_time_s": round(wall_time_s, 3), "versions": dict(versions)}


def _runs_in(folder: Path) -> list[RunDirectory]:
    try:
        return [RunDirectory(entry) for entry in sorted(folder.iterdir()) if entry.is_dir()]
    except OSError:
        return []


def _settings_in(evaluation: Path) -> Any:
    try:
        return json.loads(evaluation.read_text()).get("settings")
    except (OSError, ValueError, AttributeError):
        return None


def lasting(path: str | None) -> str | None:
    """`latest` as the folder that it is now, if there is one: soon it is another."""
    if path != LATEST:
        return path
    try:
        return str(RunDirectory.open(LATEST).path.absolute())
    except RunDirectoryError:
        return path
