"""What a submitted job brings along: code, configuration, and time for its last checkpoint."""

from __future__ import annotations

import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from farreach.errors import ClusterError
from farreach.runtime import package_folders

# Variable that holds the job's configuration, as `farreach train env:FARREACH_CONFIG` reads it.
CONFIG_VARIABLE = "FARREACH_CONFIG"
# Between SIGTERM and SIGKILL; Ray's default is 3 s.
STOP_WAIT_S = 120
# In a clone; `cluster/runtime_env.yaml` says the same to Ray's own command.
SOURCE_ROOTS = ("platform", "workloads")
EXCLUDES = (".git", ".venv", "runs/", "docs/pictures/")

_BLOCK_BYTES = 1 << 20
_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")

Skipped = Callable[[Path], bool]


def runtime_env(
    config_text: str,
    working_dir: Path | None = None,
    *,
    installed: bool = False,
    given: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Ray's runtime environment of a job.

    The code is sent as the clone that this process runs from, with its source roots on the path, or
    where there is no clone, or another working directory, as the two packages.

    Args:
        config_text: the configuration, as YAML.
        working_dir: folder that becomes the job's working directory and is on its path.
        installed: farreach is installed on the cluster's machines: do not send it.
        given: more variables for the environment of all processes of the job.
    """
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **(given or {})}
    variables[CONFIG_VARIABLE] = config_text
    environment: dict[str, Any] = {
        "env_vars": variables,
        "excludes": [*EXCLUDES, "__pycache__"],
    }
    if working_dir is None and not installed:
        working_dir = clone()
    if working_dir is not None:
        environment["working_dir"] = str(working_dir)
    if installed:
        return environment
    if working_dir is not None and (working_dir / SOURCE_ROOTS[0] / "farreach").is_dir():
        more = [variables["PYTHONPATH"]] if "PYTHONPATH" in variables else []
        variables["PYTHONPATH"] = ":".join([*SOURCE_ROOTS, *more])
    else:
        environment["py_modules"] = [str(folder) for folder in package_folders()]
    return environment


def clone() -> Path | None:
    """The top folder of the clone that this farreach runs from, unless it is installed."""
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    in_clone = package.parent.name == SOURCE_ROOTS[0]
    return root if in_clone and (root / SOURCE_ROOTS[1]).is_dir() else None


def check_size(folder: Path, excludes: list[str]) -> int:
    """Bytes of the files that would be sent, before they are packed.

    Args:
        folder: the working directory.
        excludes: patterns as in `.gitignore`, which is looked at too, as Ray does.

    Raises:
        ClusterError: there is no such folder, or its files are more than Ray takes; names the
            largest entries.
    """
    from ray._private.ray_constants import (
        DASHBOARD_CLIENT_MAX_SIZE,
        get_runtime_env_default_excludes,
    )
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _get_excludes

    quieten()
    if not folder.is_dir():
        raise ClusterError(f"--working-dir {folder}: there is no such folder.")
    most = min(GCS_STORAGE_MAX_SIZE, DASHBOARD_CLIENT_MAX_SIZE)  # the job server takes less
    skipped = [_get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes])]
    sizes = {file: file.stat().st_size for file in _files(folder, skipped)}
    total = sum(sizes.values())
    if total > most and _packs_to_more(sizes, most):
        entries = Counter[str]()
        for file, size in sizes.items():
            entries[file.relative_to(folder).parts[0]] += size
        largest = (f"{name} ({size / 2**20:.0f} MiB)" for name, size in entries.most_common(3))
        raise ClusterError(
            f"the working directory {folder} is too large to be sent: Ray takes "
            f"{most / 2**20:.0f} MiB, packed, and the most is in {', '.join(largest)}. "
            "Name what the job does not need in a .rayignore file there (as in .gitignore), "
            "and keep data on storage that the cluster reads."
        )
    return total


def _packs_to_more(sizes: Mapping[Path, int], most: int) -> bool:
    """Whether files take more bytes than that when they are packed; large ones come first."""
    packed = 0
    for file in sorted(sizes, key=lambda each: -sizes[each]):
        packer = zlib.compressobj(1)
        with file.open("rb") as opened:
            while packed <= most and (block := opened.read(_BLOCK_BYTES)):
                packed += len(packer.compress(block))
        packed += len(packer.flush())
        if packed > most:
            return True
    return False


def quieten() -> None:
    """Keep Ray from telling every step of an upload, unless `FARREACH_DEBUG` is set."""
    if os.environ.get("FARREACH_DEBUG", "") in ("", "0"):
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)


def _files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """The files below a folder that Ray would pack."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    here = skipped + get_excludes_from_ignore_files(folder, include_gitignore=True)
    for path in folder.iterdir():
        if any(skip(path) for skip in here):
            continue
        if path.is_dir():
            yield from _files(path, here)
        elif path.is_file():
            yield path
