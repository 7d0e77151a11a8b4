"""Drills: a training in a process of its own that is hit, and a count of what came of it.

```
training = Training("goals/walk_maze_debug", ["chaos.kill_every_s=10"], Path("run"))
training.start()
code = training.wait(600)
for outcome in outcomes(training.events(), code == 0):
    print(outcome)
```
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farreach.lines import NewLines
from farreach.rundir import RunDirectory
from farreach.runtime import package_folders

POLL_S = 0.2
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        workload: what was hit.
        fault: with what, such as `kill learner`.
        survived: whether the run came to its end.
        recovery_s: seconds until what was lost was back; None if the run never missed it.
        lost: work that was done again or is missing.
    """

    workload: str
    fault: str
    survived: bool
    recovery_s: float | None = None
    lost: str = ""

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


class Training:
    """`farreach train` in a process of its own, which is hit and goes on.

    Attributes:
        path: the run directory.
        output: what the process and those before it have printed.
    """

    def __init__(
        self,
        config: str,
        overrides: Sequence[str],
        path: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            config: a file, or a shipped configuration.
            overrides: changes of it.
            path: the run directory, new or with a run that is to go on.
            variables: of the process's environment.
        """
        self.path = path
        self._command = [
            *(sys.executable, "-m", "farreach", "train", config, "--run-dir", str(path)),
            *("--continue", *overrides),
        ]
        roots = os.pathsep.join(str(folder.parent) for folder in package_folders())
        self._variables = {"PYTHONPATH": roots, "OMP_NUM_THREADS": "1", **dict(variables or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = path.with_name(f"{path.name}.log")

    def start(self, **variables: str) -> None:
        """Begin, or go on from the newest checkpoint.

        Args:
            **variables: more of its environment, from now on.
        """
        self._variables |= variables
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What all processes so far have printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def events(self) -> list[dict[str, Any]]:
        """Of the run so far."""
        return RunDirectory(self.path).events()

    def step(self) -> int:
        """The newest step of which there are metrics, 0 if there are none."""
        path = RunDirectory(self.path).metrics_path
        return max((int(line.get("step", 0)) for line in NewLines(path).take()), default=0)

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for a condition; False if the process or the time came to its end before."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if condition():
                return True
            if not self.is_running():
                return condition()
            time.sleep(POLL_S)
        return False

    def until_saved(self, limit_s: float, *, after: int = -1) -> bool:
        """Wait for a checkpoint of a later step than `after`."""
        return self.until(lambda: newest_saved(self.path) > after, limit_s)

    def until_event(self, kind: str, limit_s: float, *, known: int) -> bool:
        """Wait for an event of a kind that is none of the first `known` ones."""
        return self.until(lambda: any(e["event"] == kind for e in self.events()[known:]), limit_s)

    def kill(self) -> None:
        """End the process and all that it has started on this machine, without notice."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill_driver(self) -> None:
        """End the process alone, without notice."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait(self, limit_s: float) -> int | None:
        """Exit code, None if it takes too long; then it is killed."""
        assert self._process is not None
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


def newest_saved(run: Path) -> int:
    """Step of the newest checkpoint folder, -1 if there is none."""
    found = [int(path.name[5:]) for path in (run / "checkpoints").glob("step_" + "[0-9]" * 12)]
    return max(found, default=-1)


def outcomes(workload: str, events: Sequence[Event], finished: bool) -> list[Outcome]:
    """What came of the faults that `chaos` has brought about, by a run's events.

    Args:
        workload: names them.
        events: of the run, in order.
        finished: whether it came to its end.
    """
    found = []
    for number, event in enumerate(events):
        if event["event"] == "chaos":
            after = events[number + 1 :]
            what = event["fault"] + (f" {_kind(event['role'])}" if "role" in event else "")
            back = _back_at(event, after)
            took_s = None if back is None else back - event["time"]
            found.append(Outcome(workload, what, finished, took_s, _lost(event, after)))
    return found


def _kind(role: str) -> str:
    return role.partition("-")[0]


def _back_at(fault: Event, after: Sequence[Event]) -> float | None:
    """When what a fault took away was back."""
    if fault["fault"] == "corrupt_checkpoint":
        return next((e["time"] for e in after if e["event"] == "checkpoint"), None)
    if fault["fault"] == "drain":
        nobody: list[str] = []
        roles = next((e["roles"] for e in after if e["event"] == "preemption"), nobody)
        times = [_role_back_at(role, None, after) for role in roles]
        known = [at for at in times if at is not None]
        return max(known, default=None)
    return _role_back_at(fault["role"], fault["pid"], after)


def _role_back_at(role: str, pid: int | None, after: Sequence[Event]) -> float | None:
    """When a role has another process; of a part with state, when that is restored."""
    stateful = role in ("learner", "memory", "reachability") or role.startswith("worker-")
    for event in after:
        kind = event["event"]
        if stateful and kind in ("recovered", "moved"):
            return float(event["time"])
        pids = event.get("pids", {"evaluator": event.get("pid")})
        if not stateful and kind in ("actors", "evaluator") and pids.get(role, pid) != pid:
            return float(event["time"])
    return None


def _lost(fault: Event, after: Sequence[Event]) -> str:
    if fault["fault"] != "kill":
        return ""
    for event in after:
        if event["event"] == "actor_died" and event.get("pid") == fault["pid"]:
            return str(event["lost"])
    return ""


def table(found: Sequence[Outcome]) -> list[str]:
    """Faults by kind: how many, survived, and the median and longest time to recover."""
    rows = [("workload", "fault", "injected", "survived", "median s", "longest s")]
    kinds = dict.fromkeys((outcome.workload, outcome.fault) for outcome in found)
    for workload, fault in kinds:
        those = [one for one in found if (one.workload, one.fault) == (workload, fault)]
        times = sorted(one.recovery_s for one in those if one.recovery_s is not None)
        middle = f"{times[len(times) // 2]:.1f}" if times else "-"
        longest = f"{times[-1]:.1f}" if times else "-"
        survived = sum(one.survived for one in those)
        rows.append((workload, fault, str(len(those)), str(survived), middle, longest))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
