"""Who takes part in a run, and who has died, as its events tell."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEATHS = ("actor_died", "evaluator_died")
# Events that a driver writes last.
ENDINGS = ("finished", "stopped", "failed", "aborted")
DRIVER = "driver"


@dataclass
class Member:
    """One process of a run.

    Attributes:
        role: such as `learner`, `rollout-3`, `worker-0`; `driver` for the process that leads.
        pid: of the newest process, None if it is unknown.
        host: name of its machine, or the id of its Ray node; None if it is unknown.
        since: time of the event that named it, seconds since the epoch.
        restarts: processes that have followed the first one since the driver began.
        is_dead: its death was noted and no process has followed yet.
        cause: of its last death.
    """

    role: str
    pid: int | None = None
    host: str | None = None
    since: float = 0.0
    restarts: int = 0
    is_dead: bool = False
    cause: str = ""


class Roster:
    """The members of a run, kept up to date with `take`.

    Attributes:
        members: role → member, in the order of their first events.
        deaths: that were noted since the driver began.
    """

    def __init__(self) -> None:
        """Nobody yet."""
        self.members: dict[str, Member] = {}
        self.deaths = 0

    @property
    def restarts(self) -> int:
        """Processes that have taken the place of others, of all roles together."""
        return sum(member.restarts for member in self.members.values())

    def take(self, event: Mapping[str, Any]) -> None:
        """Follow one line of `events.jsonl`."""
        kind, time = event.get("event"), float(event.get("time", 0.0))
        if kind in ("started", "resumed"):
            # Whoever was there before has ended with its driver.
            self.members, self.deaths = {}, 0
            if "pid" in event:
                self._appear(DRIVER, event["pid"], event.get("host"), time)
        elif kind == "actors":
            nodes = event.get("nodes")
            for role, pid in dict(event.get("pids") or {}).items():
                node = nodes.get(role) if isinstance(nodes, Mapping) else None
                self._appear(role, pid, node, time)
        elif kind == "worker":
            self._appear(f"worker-{event.get('rank')}", event.get("pid"), event.get("node"), time)
        elif kind == "evaluator":
            self._appear("evaluator", event.get("pid"), event.get("node"), time)
        elif kind in DEATHS:
            cause = str(event.get("detail") or event.get("cause") or "")
            self._die(str(event.get("role", "evaluator")), cause, time)

    def _appear(self, role: str, pid: Any, host: Any, time: float) -> None:
        before = self.members.get(role)
        restarts = 0 if before is None else before.restarts + (before.pid != pid or before.is_dead)
        cause = "" if before is None else before.cause
        name = None if host is None else str(host)
        number = pid if isinstance(pid, int) else None
        self.members[role] = Member(role, number, name, time, restarts, False, cause)

    def _die(self, role: str, cause: str, time: float) -> None:
        self.deaths += 1
        member = self.members.setdefault(role, Member(role, since=time))
        member.is_dead, member.cause = True, cause


def is_held(path: Path) -> bool:
    """Whether a process trains in a run directory: it has the lock, which ends with it."""
    with suppress(OSError), open(path / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def is_here(host: str | None) -> bool:
    """Whether a machine is this one, by its name or its name and address."""
    return host is not None and host.split()[:1] == [socket.gethostname()]


def is_alive(member: Member) -> bool | None:
    """Whether a member's process runs on this machine; None if it is on another or nobody knows.

    A process that began after its event is another one that has been given the same number.
    """
    if member.is_dead:
        return False
    if member.pid is None or not is_here(member.host):
        return None
    try:
        begun_s = _begun_s(member.pid)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, IndexError):
        return None
    return begun_s <= member.since + 1.0


def _begun_s(pid: int, proc: Path = Path("/proc")) -> float:
    """When a process began, in seconds since the epoch."""
    ticks = float((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    lines = (proc / "stat").read_text().splitlines()
    boot_s = next(float(line.split()[1]) for line in lines if line.startswith("btime"))
    return boot_s + ticks / os.sysconf("SC_CLK_TCK")
