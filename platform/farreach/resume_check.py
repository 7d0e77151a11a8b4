"""Whether a run that is killed and resumed ends as one that was left alone: `check resume`.

Trains a configuration twice in processes of their own. One is left alone; the other is killed with
SIGKILL, as often as wanted, each time at a moment drawn at random after a new checkpoint, and
resumed. Then their last checkpoints are compared to the bit: weights, optimizer, memories, random
numbers. Clocks are left out. If they differ, a third run that is left alone tells whether resuming
is to blame, or the workload, which does not repeat itself.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farreach import afterwards, launch
from farreach.checkpoint import Checkpoint
from farreach.console import say
from farreach.errors import FarreachError
from farreach.rundir import RunDirectory

POLL_S = 0.05
# A kill comes at most so long after a checkpoint, as a share of the time between two of them.
LATEST = 0.8
MOST_SHOWN = 10
# Leaves of a checkpoint that tell how long something took.
_CLOCK = re.compile(r"(^|[./_])(train_s|trained_s|busy_s|seconds|minutes)(_\w+)?$|_per_s$")


class ResumeError(FarreachError):
    """A resumed run is not what it would have been, or that could not be found out."""


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        differences: `part.key: value; value` of the undisturbed and the killed run; none if equal.
        repeats: whether an undisturbed run repeats itself; None if that was not asked.
        compared: leaves that were compared.
        kills: step of the newest checkpoint at each kill.
    """

    differences: list[str]
    repeats: bool | None
    compared: int
    kills: list[int]


def check_resume(
    config: str, overrides: Sequence[str], out: Path, *, kills: int = 1, seed: int = 0
) -> Outcome:
    """Train, kill, resume and compare.

    Args:
        config: a file, or the name of a shipped configuration.
        overrides: such as `training.epochs=2`.
        out: a new folder for the runs `whole` and `killed` and what they print.
        kills: how often.
        seed: of the moments of the kills.

    Raises:
        ConfigError: as `launch.check` does.
        ResumeError: a run failed, or was over before it could be killed.
    """
    launch.check(config, overrides)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise ResumeError(f"{out}: exists already. Name a new folder with --out.") from None
    whole = _undisturbed(config, overrides, out / "whole")
    killed, at = _killed(config, overrides, out / "killed", kills, random.Random(seed))
    pair = _last(whole), _last(killed)
    differences, compared = compare(*pair)
    repeats = None
    if differences:
        say("they differ; does an undisturbed run repeat itself? training once more")
        again = _undisturbed(config, overrides, out / "again")
        repeats = not compare(pair[0], _last(again))[0]
    return Outcome(differences, repeats, compared, at)


def tell(outcome: Outcome) -> None:
    """Say what was found; raises ResumeError if the runs differ."""
    steps = ", ".join(f"{step:,}" for step in outcome.kills)
    if not outcome.differences:
        say(f"killed after the checkpoints of steps {steps}, and resumed: all {outcome.compared:,}")
        say("values of the last checkpoint are equal to the bit")
        return
    shown = outcome.differences[:MOST_SHOWN]
    more = len(outcome.differences) - len(shown)
    lines = "\n  ".join([*shown, f"and {more:,} more"] if more else shown)
    if outcome.repeats:
        why = (
            "An undisturbed run repeats itself to the bit, so something is missing in the "
            "checkpoint, or restored wrongly."
        )
    else:
        why = (
            "An undisturbed run does not repeat itself either, so this says nothing about resuming."
            " Parts that run side by side make runs differ: try runtime.mode=sync, or fewer threads"
            " or workers."
        )
    raise ResumeError(
        f"killed after the checkpoints of steps {steps}, and resumed: {len(outcome.differences):,} "
        f"of {outcome.compared:,} values of the last checkpoint differ (undisturbed; killed):\n  "
        f"{lines}\n{why}"
    )


def compare(one: Checkpoint, other: Checkpoint) -> tuple[list[str], int]:
    """The values in which two checkpoints differ, clocks aside, and how many were compared."""
    if one.step != other.step:
        return [f"step: {one.step}; {other.step}"], 1
    left, right = (dict(_leaves(checkpoint.parts())) for checkpoint in (one, other))
    names = [name for name in dict.fromkeys([*left, *right]) if not _CLOCK.search(name)]
    absent = "absent"
    pairs = {name: (left.get(name, absent), right.get(name, absent)) for name in names}
    found = [f"{name}: {_shown(*pair)}" for name, pair in pairs.items() if not _equal(*pair)]
    return found, len(names)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping | list | tuple) and len(tree):
        entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in entries:
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and one.tobytes() == other.tobytes()
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    return type(one) is type(other) and bool(np.all(one == other))


def _shown(one: Any, other: Any) -> str:
    arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    if arrays and one.shape == other.shape and one.dtype.kind in "fiu":
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
        return f"{int((apart > 0).sum()):,} of {one.size:,} numbers, by up to {apart.max():.3g}"
    return "; ".join(str(value)[:60].replace("\n", " ") for value in (one, other))


def _undisturbed(config: str, overrides: Sequence[str], path: Path) -> RunDirectory:
    say(f"training undisturbed, into {path}")
    _finish(["train", config, *overrides, "--run-dir", str(path)], path)
    return RunDirectory.open(path)


def _killed(
    config: str, overrides: Sequence[str], path: Path, kills: int, draw: random.Random
) -> tuple[RunDirectory, list[int]]:
    """A run that is killed so often; the newest checkpoint's step at each kill."""
    command = ["train", config, *overrides, "--run-dir", str(path)]
    at: list[int] = []
    for number in range(1, kills + 1):
        say(f"training to be killed, {number} of {kills}, into {path}")
        with _begun(command, path) as process:
            step = _await_checkpoint(process, path, draw)
        say(f"killed after the checkpoint of step {step:,}")
        at.append(step)
        command = ["resume", str(path)]
    say("resuming to the end")
    _finish(command, path)
    return RunDirectory.open(path), at


def _finish(arguments: list[str], path: Path) -> None:
    with _begun(arguments, path) as process:
        _expect_done(process.wait(), path)


@contextmanager
def _begun(arguments: list[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own, which is killed unless it has ended by then."""
    with open(_log(path), "ab") as log:
        command = [sys.executable, "-m", "farreach", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _await_checkpoint(process: subprocess.Popen[bytes], path: Path, draw: random.Random) -> int:
    """Wait for the second checkpoint of this process and a little more; the newest one's step."""
    before = len(_checkpoints(path))
    wait_until_s: float | None = None
    while wait_until_s is None or time.monotonic() < wait_until_s:
        if process.poll() is not None:
            if process.returncode == 0:
                raise ResumeError(
                    f"{path}: the run was over before it could be killed after its second "
                    "checkpoint. Let it write more of them (training.checkpoint_every_epochs=… or "
                    "training.checkpoint_every_s=…), let it be longer, or ask for fewer --kills."
                )
            _expect_done(process.returncode, path)
        found = _checkpoints(path)[before:]
        if wait_until_s is None and len(found) >= 2:
            between_s = float(found[-1]["time"] - found[-2]["time"])
            wait_until_s = time.monotonic() + LATEST * draw.random() * between_s
        time.sleep(POLL_S)
    return int(found[-1]["path"].removeprefix("step_"))


def _checkpoints(path: Path) -> list[dict[str, Any]]:
    """The events of checkpoints; none as long as there is no run."""
    try:
        events = RunDirectory(path).events()
    except json.JSONDecodeError:  # half a line of a file that is being mended
        return []
    return [event for event in events if event["event"] == "checkpoint"]


def _last(run: RunDirectory) -> Checkpoint:
    found = afterwards.find_checkpoint(run, "newest")
    if found is None:
        raise ResumeError(f"{run.path}: the run left no checkpoint to compare.")
    return found


def _expect_done(code: int, path: Path) -> None:
    if code != 0:
        tail = _log(path).read_text(errors="replace").strip().splitlines()[-3:]
        raise ResumeError(
            f"{path}: training ended with exit code {code}; what it printed last, of {_log(path)}:"
            "\n  " + "\n  ".join(tail)
        )


def _log(path: Path) -> Path:
    return path.with_suffix(".log")
