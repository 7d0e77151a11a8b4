"""Sees processes from outside: how much memory they take, and how they end.

Ray says of a process that died little more than that its connection broke. A witness on the same
machine knows its memory of the last minute, whether the kernel ran out of memory meanwhile, the end
of its log, and (with Linux 6.15 or later) with which signal or exit code it ended.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farreach.actors import nodes
from farreach.failures import Facts

SAMPLE_S = 2.0
SAMPLES = 30
LOG_BYTES = 4000
# A process that broke its connection may not have ended yet, and its parent not have heard of it.
END_TIMEOUT_S = 1.0
ASK_TIMEOUT_S = 5.0
# Seconds for which a witness elsewhere stays though nobody is there: another process may come.
UNUSED_S = 30.0
# ioctl(PIDFD_GET_INFO) with the first version of struct pidfd_info, of 64 bytes (linux/pidfd.h).
_PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_HAS_ENDED = 1 << 3


@dataclass(frozen=True)
class Whereabouts:
    """Where a process is.

    Attributes:
        pid: on its machine.
        node: id of its Ray node; empty without Ray.
        host: the machine, as name and address.
        log: the file that its stderr goes to; empty if that is none.
    """

    pid: int
    node: str
    host: str
    log: str


def whereabouts() -> Whereabouts:
    """Of this process."""
    import ray

    node = address = log = ""
    if ray.is_initialized():
        context = ray.get_runtime_context()
        node, address = str(context.get_node_id()), str(ray.util.get_node_ip_address())
    with suppress(OSError):
        target = os.readlink("/proc/self/fd/2")
        log = target if target.startswith("/") and os.path.isfile(target) else ""
    name = socket.gethostname()
    return Whereabouts(os.getpid(), node, f"{name} ({address})" if address else name, log)


@dataclass
class Seen:
    """What a witness has of one process.

    Attributes:
        status: as `os.waitpid` gives it, None if the kernel does not tell.
        log: the last lines of its stderr.
        samples: (seconds ago, resident bytes), oldest first.
        oom_kills: of the kernel, since the process was last seen.
    """

    status: int | None = None
    log: str = ""
    samples: list[tuple[float, int]] = field(default_factory=list)
    oom_kills: int = 0


class Witness:
    """Looks at processes of its own machine every other second.

    ```
    witness = Witness()
    witness.watch(pid, log)
    ...                        # it dies
    witness.testify(pid)
    ```
    """

    def __init__(self, sample_s: float = SAMPLE_S) -> None:
        """Look on in a thread, from the first process on."""
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._sample_s = sample_s
        self._thread = threading.Thread(target=self._look_on, name="witness", daemon=True)

    def watch(self, pid: int, log: str) -> None:
        """Look at a process from now on."""
        with self._lock:
            if pid not in self._known:
                self._known[pid] = _Known(pid, log)
            if not self._thread.is_alive() and not self._over.is_set():
                self._thread.start()

    def testify(self, pid: int) -> Seen:
        """What was seen of a process that has ended or is about to; it is forgotten then."""
        with self._lock:
            known = self._known.pop(pid, None)
        return Seen() if known is None else known.testify()

    def has_crashed(self, pid: int) -> bool:
        """Whether a signal has ended a process that is watched; False if the kernel is silent."""
        with self._lock:
            known = self._known.get(pid)
            return known is not None and known.has_crashed()

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a process that is watched; one that has gone gets none."""
        with self._lock, suppress(OSError):
            if pid in self._known:
                self._known[pid].kill(number)

    def take_down(self) -> None:
        """Kill the parent of this process, which in an actor is its Ray node."""
        os.kill(os.getppid(), signal.SIGKILL)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            for known in self._known.values():
                known.close()
            self._known.clear()

    def _look_on(self) -> None:
        while not self._over.wait(self._sample_s):
            with self._lock:
                for known in self._known.values():
                    known.look()


class _Known:
    """One process; its pidfd stands for it and no other, whoever has its number later."""

    def __init__(self, pid: int, log: str) -> None:
        self._pid, self._log = pid, log
        self._fd = -1
        with suppress(OSError, AttributeError):  # gone already, or no Linux
            self._fd = os.pidfd_open(pid)
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._oom_kills = oom_kills()
        self.look()

    def look(self) -> None:
        size = resident_bytes(self._pid)
        if size > 0:
            self._samples.append((time.monotonic(), size))
            self._oom_kills = oom_kills()

    def testify(self) -> Seen:
        status = self._status()
        killed = oom_kills() - self._oom_kills
        now = time.monotonic()
        samples = [(now - at, size) for at, size in self._samples]
        self.close()
        return Seen(status, _tail(self._log), samples, killed)

    def _status(self) -> int | None:
        deadline = time.monotonic() + END_TIMEOUT_S
        while (status := _exit_status(self._fd)) is None and time.monotonic() < deadline:
            if not _can_tell(self._fd):
                return None
            time.sleep(0.02)
        return status

    def has_crashed(self) -> bool:
        status = _exit_status(self._fd)
        return status is not None and status & 0x7F != 0

    def kill(self, number: int) -> None:
        if self._fd >= 0:
            signal.pidfd_send_signal(self._fd, number)
        else:
            os.kill(self._pid, number)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Witnesses:
    """The driver's: one witness here, and one in an actor on every other node that has something.

    ```
    witnesses = Witnesses()
    witnesses.watch("learner", place)
    facts = witnesses.facts("learner")
    ```

    Attributes:
        places: role → where its process is.
    """

    def __init__(self) -> None:
        """Nobody is watched yet."""
        self.places: dict[str, Whereabouts] = {}
        self._here = Witness()
        self._node = whereabouts().node
        self._elsewhere: dict[str, Any] = {}
        self._used_s: dict[str, float] = {}
        self._gone: set[str] = set()

    def watch(self, role: str, place: Whereabouts) -> None:
        """Watch a process instead of the one that had the role before."""
        self.places[role] = place
        self._call(place.node, "watch", place.pid, place.log)
        self._used_s[place.node] = time.monotonic()
        self._leave_nodes()

    def _leave_nodes(self) -> None:
        """End witnesses that have had nobody to watch for a while: they keep a node from ending."""
        needed = {place.node for place in self.places.values()}
        now = time.monotonic()
        for node in [*self._elsewhere]:
            if node not in needed and now - self._used_s[node] > UNUSED_S:
                _end(self._elsewhere.pop(node))

    def facts(self, role: str, *, notice_s: float | None = None) -> Facts:
        """What was seen of a process that died; it is watched no longer.

        Args:
            role: of the process; of one that nobody has watched little is known.
            notice_s: seconds since its machine was told to leave, if it was.
        """
        place = self.places.pop(role, None)
        if place is None:
            return Facts(role, notice_s=notice_s)
        seen = Seen()
        if place.node not in self._gone:
            seen = self._answer(self._call(place.node, "testify", place.pid)) or seen
        if seen.status is None and not seen.samples and not nodes.answers(place.node):
            self._gone.add(place.node)
        return Facts(
            role,
            place.pid,
            place.host,
            seen.status,
            seen.log,
            seen.samples,
            seen.oom_kills,
            place.node in self._gone,
            notice_s,
        )

    def is_there(self, role: str) -> bool:
        """Whether a role's process lives, as far as one can see from here without asking."""
        place = self.places[role]
        return not self.is_here(place.node) or resident_bytes(place.pid) > 0

    def crashed(self) -> list[str]:
        """Roles whose processes a signal has ended, or whose machines no longer answer."""
        return [role for role, place in self.places.items() if self._has_crashed(place)]

    def _has_crashed(self, place: Whereabouts) -> bool:
        if not self.is_here(place.node) and not nodes.answers(place.node):
            return True
        return bool(self._answer(self._call(place.node, "has_crashed", place.pid)))

    def kill(self, role: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process of a role."""
        place = self.places[role]
        self._answer(self._call(place.node, "kill", place.pid, number))

    def take_down(self, node: str) -> None:
        """End a whole node other than the driver's, as if its machine were switched off."""
        assert node != self._node
        self._call(node, "take_down")

    def is_here(self, node: str) -> bool:
        """Whether a node is the driver's own."""
        return not node or node == self._node

    def stop(self) -> None:
        """End the witnesses."""
        self._here.stop()
        for actor in self._elsewhere.values():
            _end(actor)
        self._elsewhere.clear()

    def _call(self, node: str, method: str, *arguments: Any) -> Any:
        """The result itself from the witness here, a reference to it from another."""
        if self.is_here(node):
            return getattr(self._here, method)(*arguments)
        if node not in self._elsewhere:
            self._elsewhere[node] = _witness_on(node)
        return getattr(self._elsewhere[node], method).remote(*arguments)

    def _answer(self, result: Any) -> Any:
        """What a witness said; None if its machine does not answer."""
        import ray

        if not isinstance(result, ray.ObjectRef):
            return result
        try:
            return ray.get(result, timeout=ASK_TIMEOUT_S)
        except ray.exceptions.RayError:
            return None


def _witness_on(node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": there}
    return ray.remote(Witness).options(**options).remote()


def _end(actor: Any) -> None:
    import ray

    with suppress(Exception):  # Ray itself may be gone
        ray.kill(actor)


def resident_bytes(pid: int) -> int:
    """Memory of a process in bytes, 0 if it is gone or the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed for want of memory since it started."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _exit_status(fd: int) -> int | None:
    """The status of a process that has ended and whose parent knows."""
    content = _pidfd_info(fd)
    return content[-1] if content is not None and content[0] & _HAS_ENDED else None


def _can_tell(fd: int) -> bool:
    """Whether the kernel keeps the status for holders of a pidfd; Linux does from 6.15 on."""
    return fd >= 0 and _pidfd_info(fd) is not None


def _pidfd_info(fd: int) -> tuple[int, ...] | None:
    import fcntl

    asked = bytearray(_PIDFD_INFO.pack(_HAS_ENDED, *[0] * 13))
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, asked)
    except (OSError, ValueError):
        return None
    return _PIDFD_INFO.unpack(asked)


def _tail(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - LOG_BYTES))
        return file.read().decode(errors="replace")
    return ""
