"""The run directory: one folder that holds everything about one training run.

```
<run>/
  config.yaml      the resolved config          manifest.json   versions, commit, host, command
  metrics.jsonl    one line per step that was logged
  events.jsonl     started, resumed, stopped, failed, finished
  result.json      flat `group/name` → number, written once at the end
  checkpoints/     figures/     tensorboard/     evaluations/     features/
```
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from farreach import provenance
from farreach.errors import RunDirectoryError
from farreach.registry import near_match

LATEST = "latest"
MIN_FREE_BYTES = 200 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def sync(path: Path) -> None:
    """Have what a file or folder holds now on the disk; a folder holds the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    The content is on the disk when this returns: it goes to a temporary name, is fsynced, renamed,
    and the directory is fsynced.

    Raises:
        RunDirectoryError: the file system refuses it (full, read-only, gone).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _disk_error(path, error) from error


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of strict JSON: NaN and infinity become null, paths become text."""
    return json.dumps({key: _plain(value) for key, value in record.items()}, allow_nan=False)


def cut_torn_line(path: Path) -> None:
    """Remove what a killed process left behind the last newline of a file of lines."""
    try:
        with open(path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    file.truncate(start + newline + 1)
                    return
                end = start
            file.truncate(0)
    except FileNotFoundError:
        return


class RunDirectory:
    """One run directory; `create` makes a new one and `open` finds an old one.

    ```
    run = RunDirectory.create(Path("runs"), "walk_maze", config_text, sys.argv, seed=0)
    run.event("started")
    run.write_result({"eval/success": 0.9}, seed=0, wall_time_s=3.5, versions=versions)
    ```
    """

    def __init__(self, path: Path) -> None:
        """The run at `path`, which exists; users call `create` or `open`."""
        self.path = path

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        config_text: str,
        command: list[str],
        seed: int,
        *,
        path: Path | None = None,
        parent: str | None = None,
    ) -> RunDirectory:
        """Make a new run directory with its config and manifest.

        Args:
            root: where runs live; the directory is `<root>/<name>-<date>-<time>-<4 hex>`.
            name: letters, digits, dot, dash and underscore.
            config_text: the resolved config, as YAML.
            command: the command line that started the run.
            seed: the run's seed.
            path: exactly this directory instead of a fresh one under `root`.
            parent: the run that this one was derived from, if any; kept in the manifest.

        Raises:
            RunDirectoryError: the name cannot name a folder, the directory is occupied, unwritable
                or almost full.
        """
        if not _NAME.fullmatch(name):
            raise RunDirectoryError(
                f"run name {name!r} cannot name a folder: "
                "use letters, digits, '.', '-' and '_', and begin with a letter or digit."
            )
        now = datetime.now(timezone.utc).astimezone()
        run = cls(_make_fresh(root, name, now) if path is None else _make_exactly(path))
        run.check_writable()
        try:
            for folder in (run.figures, run.checkpoints, run.tensorboard):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _disk_error(run.path, error) from error
        atomic_write(run.config_path, config_text)
        manifest = provenance.manifest(command, seed, now, parent)
        atomic_write(run.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, path: Path | str, root: Path = Path("runs")) -> RunDirectory:
        """The run at `path`; `latest` is the one under `root` that was created last.

        Raises:
            RunDirectoryError: there is no run there.
        """
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
            raise _disk_error(self.path, error) from error
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

        Raises:
            RunDirectoryError: another process holds it.
        """
        try:
            file = open(self.path / ".lock", "a+")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise _disk_error(self.path, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunDirectoryError(
                    f"{self.path} is in use: another farreach process is training in it. "
                    "Wait for it, or stop it."
                ) from error
            yield

    def replace_config(self, config_text: str) -> None:
        """Put a new resolved config in place, and keep the old one as `config.previous.yaml`."""
        atomic_write(self.path / "config.previous.yaml", self.config_path.read_text())
        atomic_write(self.config_path, config_text)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`."""
        try:
            cut_torn_line(self.events_path)
            with open(self.events_path, "a") as file:
                file.write(json_line({"event": kind, "time": time.time(), **fields}) + "\n")
        except OSError as error:
            raise _disk_error(self.events_path, error) from error

    def events(self) -> list[dict[str, Any]]:
        """All events so far, in order; a half-written last line is left out."""
        if not self.events_path.exists():
            return []
        lines = self.events_path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

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
        """Keep what an evaluation found in `evaluations/NAME.json`; the file."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.json"
        atomic_write(path, json.dumps(result, indent=2, default=str) + "\n")
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
                f"{self.path} has no result.json: the run is not done. "
                f"Continue it with `farreach resume {self.path}`."
            ) from None


def flat_result(
    metrics: Mapping[str, float], *, seed: int, wall_time_s: float, versions: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `result.json`: metrics sorted by name, then the facts about the run."""
    for name in metrics:
        assert "/" in name, f"metric {name!r} is not called group/name"
    flat = {name: _plain(float(metrics[name])) for name in sorted(metrics)}
    facts = {"seed": seed, "wall_time_s": round(wall_time_s, 3), "versions": dict(versions)}
    return {**flat, **facts}


def _plain(value: Any) -> Any:
    """A value that strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy or torch
        return _plain(value.tolist())
    return value if math.isfinite(value) else None


def _disk_error(path: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(
        f"cannot write {path}: {error.strerror or error}. Free or mount the disk, fix the "
        "permissions, or choose another place with --run-dir."
    )


def _make_fresh(root: Path, name: str, now: datetime) -> Path:
    while True:
        path = root / f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue  # another run drew the same four digits in the same second
        except OSError as error:
            raise _disk_error(path, error) from error
        return path


def _make_exactly(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    except OSError as error:
        raise _disk_error(path, error) from error
    if occupied:
        mend = f"`farreach resume {path}` continues the run in it; otherwise name another directory"
        raise RunDirectoryError(f"{path} exists and is not empty. {mend}.")
    return path


def _runs_in(folder: Path) -> list[RunDirectory]:
    try:
        return [RunDirectory(entry) for entry in sorted(folder.iterdir()) if entry.is_dir()]
    except OSError:
        return []
