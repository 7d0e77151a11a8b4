"""What a run is doing, from the files of its directory alone, so that it may train anywhere."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from farreach.gauges import workload_name
from farreach.lines import NewLines
from farreach.roster import DRIVER, ENDINGS, Member, Roster, is_alive, is_held, is_here
from farreach.rundir import RunDirectory
from farreach.watch import is_of_learning

# Seconds over which the speed is measured.
RATE_WINDOW_S = 120.0
# A run that writes nothing for so long, where nobody here holds its lock, has ended.
FRESH_S = 180.0
EVENTS_KEPT = 50
SHARE = "training/share"
LEVELS = ("throughput", "weights", "queue", "training", "machine", "ray", "parts")


@dataclass(frozen=True)
class Part:
    """One process of the run.

    Attributes:
        role: such as `learner`.
        pid: None if it is unknown.
        host: its machine, None if it is unknown.
        state: `alive`, `dead`, `ended` with its run, or `unknown`.
        restarts: processes that have followed the first.
        busy: share of its time that it works, None if it is not measured.
        cause: of its last death.
    """

    role: str
    pid: int | None
    host: str | None
    state: str
    restarts: int
    busy: float | None
    cause: str


@dataclass(frozen=True)
class Noted:
    """Something that the run has written down, with its step and its age in seconds."""

    name: str
    step: int | None
    age_s: float
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Attributes:
        path: its directory.
        workload: such as `goals.online`.
        state: `running`, `died` (without a word), or an ending such as `finished`.
        detail: why it failed, or where it runs; may be empty.
        begun_s: seconds since it was started or resumed for the last time.
        step: its x axis, None before the first metrics.
        share: of training that is done, None if it is not known.
        eta_s: seconds to go, None while that is unknown.
        levels: newest values of `group/name` that tell how it runs.
        learning: newest values of what is learnt.
        parts: its processes.
        checkpoint, evaluation: the last ones.
        events: the newest, oldest first.
        doctor: what is clearly wrong, in words.
    """

    path: str
    workload: str
    state: str
    detail: str
    begun_s: float
    step: int | None
    share: float | None
    eta_s: float | None
    levels: Mapping[str, float]
    learning: Mapping[str, float]
    parts: tuple[Part, ...]
    checkpoint: Noted | None
    evaluation: Noted | None
    events: tuple[Mapping[str, Any], ...]
    doctor: tuple[str, ...]


class RunFollower:
    """Follows the files of one run; `look` gives its status now.

    Reading goes on where it stopped, so that looking again is cheap for a long run.
    """

    def __init__(self, run: RunDirectory, clock: Callable[[], float] = time.time) -> None:
        """Nothing is read yet; `clock` gives seconds since the epoch."""
        self._run, self._clock = run, clock
        self._events = NewLines(run.events_path)
        self._metrics = NewLines(run.metrics_path)
        self._roster = Roster()
        self._kept: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._newest: dict[str, float] = {}
        self._step: int | None = None
        self._written_s = 0.0
        self._shares: deque[tuple[float, float]] = deque()  # (time in s, share)
        self._evaluation: tuple[int, float, dict[str, float]] | None = None
        self._checkpoints: list[tuple[float, str, int | None]] = []
        self._remarks: list[str] = []
        self._begun_s = clock()
        self._workload = workload_name(run)

    def look(self) -> RunStatus:
        """The status now."""
        for event in self._events.take():
            self._take_event(event)
        for record in self._metrics.take():
            self._take_metrics(record)
        now = self._clock()
        state, detail = self._state(now)
        groups = {name: name.partition("/")[0] for name in self._newest}
        checkpoint = None
        if self._checkpoints:
            written_s, name, step = self._checkpoints[-1]
            checkpoint = Noted(name, step, now - written_s)
        evaluation = None
        if self._evaluation is not None:
            step, written_s, values = self._evaluation
            evaluation = Noted("evaluation", step, now - written_s, values)
        parts = tuple(self._part(m, state) for m in self._roster.members.values())
        return RunStatus(
            path=self._run.place,
            workload=self._workload,
            state=state,
            detail=detail,
            begun_s=now - self._begun_s,
            step=self._step,
            share=1.0 if state == "finished" else self._newest.get(SHARE),
            eta_s=self._eta_s() if state == "running" else None,
            levels={n: v for n, v in self._newest.items() if groups[n] in LEVELS},
            learning={n: v for n, v in self._newest.items() if is_of_learning(n)},
            parts=parts,
            checkpoint=checkpoint,
            evaluation=evaluation,
            events=tuple(self._kept),
            doctor=tuple(self._doctor(now, state, detail, parts)),
        )

    def _take_event(self, event: dict[str, Any]) -> None:
        self._roster.take(event)
        self._kept.append(event)
        kind, written_s = event.get("event"), float(event.get("time", 0.0))
        if kind in ("started", "resumed"):
            self._begun_s, self._remarks = written_s, []
        elif kind == "checkpoint":
            step = event.get("env_steps", event.get("updates"))
            self._checkpoints.append((written_s, str(event.get("path", "")), step))
        elif kind == "remark":
            self._remarks.append(str(event.get("text", "")))

    def _take_metrics(self, record: dict[str, Any]) -> None:
        if "step" not in record or "time" not in record:
            return
        step, written_s = int(record["step"]), float(record["time"])
        self._step, self._written_s = step, max(self._written_s, written_s)
        if record.get("event") == "resumed":
            self._shares.clear()
            return
        values = {
            name: math.nan if value is None else float(value)
            for name, value in record.items()
            if "/" in name
        }
        self._newest |= values
        if SHARE in values:
            self._shares.append((written_s, values[SHARE]))
            while len(self._shares) > 2 and written_s - self._shares[0][0] > RATE_WINDOW_S:
                self._shares.popleft()
        found = {name: value for name, value in values.items() if name.startswith("evaluation")}
        if found:
            before = self._evaluation
            known = before[2] if before is not None and before[0] == step else {}
            self._evaluation = (step, written_s, known | found)

    def _state(self, now: float) -> tuple[str, str]:
        """One word, and what explains it."""
        last = self._kept[-1] if self._kept else {}
        driver = self._roster.members.get(DRIVER)
        host = None if driver is None else driver.host
        if is_held(self._run.path):
            return "running", f"on {host}" if host else ""
        if last.get("event") in ENDINGS:
            return str(last["event"]), str(last.get("error", last.get("signal", "")))
        if self._run.result_path.exists():
            return "finished", ""
        silent_s = now - max(self._written_s, float(last.get("time", 0.0)))
        if silent_s < FRESH_S and host is not None and not is_here(host):
            return "running", f"on {host}"
        return "died", "its driver ended without a word"

    def _part(self, member: Member, state: str) -> Part:
        if state != "running":
            word = "dead" if member.is_dead else "ended"
        else:
            word = {True: "alive", False: "dead", None: "unknown"}[is_alive(self._placed(member))]
        busy = self._newest.get(f"busy/{member.role}")
        return Part(member.role, member.pid, member.host, word, member.restarts, busy, member.cause)

    def _placed(self, member: Member) -> Member:
        """The member, on the driver's machine if the cluster has no other."""
        driver = self._roster.members.get(DRIVER)
        if member.host is None and driver is not None and self._newest.get("ray/nodes", 1.0) <= 1:
            return Member(**{**vars(member), "host": driver.host})
        return member

    def _eta_s(self) -> float | None:
        if len(self._shares) < 2:
            return None
        (first_s, first), (last_s, last) = self._shares[0], self._shares[-1]
        if last <= first or last_s <= first_s:
            return None
        return (1.0 - last) * (last_s - first_s) / (last - first)

    def _doctor(self, now: float, state: str, detail: str, parts: tuple[Part, ...]) -> list[str]:
        """What is clearly wrong: what the run has remarked, and what it cannot say itself."""
        word, said = self._run.word, []
        if state == "died":
            hours = (now - max(self._written_s, self._begun_s)) / 3600
            said.append(
                f"the run ended without a word {hours:.1f} hours ago, as a process does that is "
                f"killed (`dmesg` names those that had too much memory): farreach resume {word}"
            )
        if state == "failed":
            said.append(f"{detail} Once that is mended: farreach resume {word}")
        for part in parts:
            if state == "running" and part.state == "dead":
                why = f": {part.cause}" if part.cause else ""
                said.append(f"{part.role} is dead and nothing has taken its place yet{why}")
        said += [*self._remarks, *self._late(now, state)]
        broken = [name for name, value in self._newest.items() if is_of_learning(name)]
        if nans := [name for name in broken if not math.isfinite(self._newest[name])]:
            said.append(f"{', '.join(nans)} is no number: training has diverged")
        return list(dict.fromkeys(said))

    def _late(self, now: float, state: str) -> list[str]:
        """Files that should have been written by now, and room for them."""
        if state != "running":
            return []
        said = []
        silent_s = now - max(self._written_s, self._begun_s)
        if silent_s > FRESH_S:
            said.append(
                f"no metrics for {silent_s / 60:.0f} minutes: something hangs; look at its "
                "process with py-spy dump, and at the logs with FARREACH_DEBUG=1"
            )
        times = [self._begun_s, *(t for t, _, _ in self._checkpoints if t > self._begun_s)]
        if len(times) > 2:
            gaps = sorted(b - a for a, b in pairwise(times))
            usual, age = gaps[len(gaps) // 2], now - times[-1]
            if age > max(600.0, 4 * usual):
                said.append(
                    f"the last checkpoint is {age / 60:.0f} minutes old, and they usually come "
                    f"every {usual / 60:.1f}: what comes after it would be lost"
                )
        free = _free_bytes(self._run.path)
        if free is not None and free < 10**9:
            said.append(f"only {free / 1e9:.2f} GB are free on the disk of {self._run.path}")
        return said


def _free_bytes(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
