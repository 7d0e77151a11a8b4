"""Ends processes that another program has started and may leave behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

# How long they have to end when they are asked, and when they are killed.
TERM_S, KILL_S = 10.0, 5.0


class Processes:
    """Processes as they are now: a number that is given to another later is not one of them."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Those of the numbers that belong to a process."""
        self._handles: Mapping[int, int] = {
            pid: handle for pid in pids if (handle := _handle(pid)) is not None
        }

    def end(self) -> None:
        """Ask them to end, and kill those that have not ended in time."""
        try:
            for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
                for handle in self._handles.values():
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(handle, number)
                deadline = time.monotonic() + patience_s
                while any(map(runs, self._handles)) and time.monotonic() < deadline:
                    time.sleep(0.1)
        finally:
            for handle in self._handles.values():
                os.close(handle)
            self._handles = {}


def runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be taken note of."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _handle(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None
