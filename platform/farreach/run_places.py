"""Folders for new runs: fresh ones, or those that the user names and that hold nothing yet."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from pathlib import Path
from shlex import quote

from farreach.disk import disk_error
from farreach.errors import RunDirectoryError

# What every run has from the beginning.
FOLDERS = ("figures", "checkpoints", "tensorboard")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY = re.compile(r"\.probe\.\d+|\.(config\.yaml|manifest\.json)\.\d+\.tmp")


def name_fault(name: str) -> str | None:
    """Why a run cannot be called so, since its folder is; None if it can."""
    if _NAME.fullmatch(name):
        return None
    return (
        f"run name {name!r} cannot name a folder: "
        "use letters, digits, '.', '-' and '_', and begin with a letter or digit."
    )


def make_fresh(root: Path, name: str, now: datetime) -> Path:
    """A new folder under `root`; raises RunDirectoryError where the disk refuses it."""
    while True:
        path = root / fresh_name(name, now)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue  # another run drew the same four digits in the same second
        except OSError as error:
            raise disk_error(path, error) from error
        return path


def fresh_name(name: str, now: datetime) -> str:
    """`<name>-<date>-<time>-<4 hex>`."""
    return f"{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def make_exactly(place: Path | str) -> Path:
    """The folder that the user has named.

    Raises:
        RunDirectoryError: something is in it, or the disk refuses it.
    """
    path = Path(place)
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = _is_occupied(path)
    except OSError as error:
        raise disk_error(path, error) from error
    if occupied:
        raise RunDirectoryError(
            f"{path} exists and is not empty. `farreach resume {quote(str(path))}` continues the "
            "run in it; otherwise name another directory."
        )
    return path


def _is_occupied(path: Path) -> bool:
    """Whether a folder holds more than what is left where a process died while it made a run."""
    entries = {entry.name: entry for entry in path.iterdir()}
    begun = [entries.pop(name) for name in FOLDERS if name in entries]
    if len(begun) == len(FOLDERS):
        entries.pop("config.yaml", None)  # written after the folders, and before the manifest
    temporary = [name for name in entries if _TEMPORARY.fullmatch(name)]
    return len(temporary) < len(entries) or any(
        not folder.is_dir() or any(folder.iterdir()) for folder in begun
    )
