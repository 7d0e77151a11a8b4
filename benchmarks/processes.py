"""What processes take: CPU time, memory, open files, as Linux tells."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

# Linux has a clock for every process, whose number is made of the process's: one of its CPU time.
_CPU_CLOCK = 2


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all threads together; 0 if it is gone."""
    with suppress(OSError):
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    return 0.0


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for other in _all():
        if fields := _stat(other):
            children.setdefault(int(fields[1]), []).append(other)
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def name(pid: int) -> str:
    """What it is called in lists of processes, such as `ray::learner`; its number if it is gone."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return os.path.basename(words[0].decode()) or str(pid)
    return str(pid)


def private_bytes(pid: int) -> int:
    """Memory that is a process's alone, without what it shares through files; 0 if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def open_files(pid: int) -> int:
    """File descriptors that it holds; 0 if it is gone."""
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def total_cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of several together."""
    return sum(map(cpu_s, pids))


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def _stat(pid: int) -> Sequence[str]:
    """Fields of /proc/PID/stat from the third on: state, parent, …; [] if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []
