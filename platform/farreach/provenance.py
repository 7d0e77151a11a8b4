"""Where a result comes from: versions, commit, host and command line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from farreach import __version__

PACKAGES = (
    *("ray", "torch", "numpy", "gymnasium", "mujoco", "timm", "pyarrow", "safetensors"),
    *("faiss-cpu", "faiss-gpu", "bm25s", "tokenizers"),
)
# Holds the `git_state` of code that was sent to where its repository is not, as JSON.
GIT_VARIABLE = "FARREACH_GIT"


def installed_versions() -> dict[str, str]:
    """Versions of what a result depends on; a package that is not installed is left out."""
    versions = {"farreach": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def manifest(
    command: list[str], seed: int, started: datetime, parent: str | None
) -> dict[str, Any]:
    """Facts about the start of a run, as JSON takes them.

    Args:
        command: the command line.
        seed: the run's seed.
        started: when it began, with time zone.
        parent: the run that this one was derived from, if any.
    """
    return {
        "started": started.astimezone(timezone.utc).isoformat(timespec="microseconds"),
        "command": command,
        "parent": parent,
        "seed": seed,
        "versions": installed_versions(),
        "git": git_state(Path(__file__).resolve().parents[2]) or _told_git_state(),
        "host": {
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
    }


def _told_git_state() -> dict[str, Any] | None:
    with suppress(ValueError):
        found = json.loads(os.environ.get(GIT_VARIABLE, ""))
        return found if isinstance(found, dict) else None
    return None


def here() -> dict[str, Any]:
    """This process, as events name it."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the repository at `source`, or None if that is not its top folder.

    A farreach that is installed into somebody else's repository has no commit of its own.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *arguments],
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != source:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
