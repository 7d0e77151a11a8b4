"""Checks of the runs below a folder: who holds them, and which have ended without a word."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from farreach.doctor.finding import Finding, ok, warning
from farreach.roster import ENDINGS, is_held
from farreach.rundir import RunDirectory

SILENT_S = 900.0


class Run(NamedTuple):
    """One run.

    Attributes:
        path: its directory.
        is_held: whether a process has its lock.
        ending: its last event if it is an ending, else "".
        silent_s: seconds since anything was written.
    """

    path: Path
    is_held: bool
    ending: str
    silent_s: float


def runs_below(root: Path) -> list[Run]:
    """All runs in a folder."""
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        run = RunDirectory(path)
        if not run.is_run():
            continue
        files = (run.events_path, run.metrics_path, run.checkpoints)
        times = [file.stat().st_mtime for file in files if file.exists()]
        events = run.events()
        last = str(events[-1]["event"]) if events else ""
        ending = last if last in ENDINGS else "finished" if run.result_path.exists() else ""
        silent_s = time.time() - max(times, default=time.time())
        found.append(Run(path, is_held(path), ending, silent_s))
    return found


def runs(found: Sequence[Run], root: Path) -> list[Finding]:
    """Whether runs are stuck, or died."""
    lines = []
    for run in found:
        word = quote(str(run.path))
        if run.is_held and run.silent_s > SILENT_S:
            lines.append(
                warning(
                    f"{run.path} is held by a process that has written nothing for "
                    f"{run.silent_s / 60:.0f} minutes",
                    f"see `farreach status {word}`; find it with `fuser {word}/.lock` and "
                    "end it, then `farreach resume`",
                )
            )
        elif not run.is_held and not run.ending:
            lines.append(
                warning(
                    f"{run.path} ended without a word {run.silent_s / 3600:.1f} hours ago",
                    f"farreach resume {word}, or remove it",
                )
            )
    held = sum(run.is_held for run in found)
    return lines or [ok(f"{len(found)} runs in {root}, {held} in training")]
