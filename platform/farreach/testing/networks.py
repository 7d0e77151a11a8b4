"""Machines with addresses of their own on one machine: network namespaces on a bridge.

```
with network(2) as (head, other):
    head.start(["ray", "start", "--head", "--block", f"--node-ip-address={head.address}"])
    other.shape(delay_ms=25, mbit_per_s=100)      # each way
    other.cut()                                   # nothing passes any more
    other.mend()
    print(other.traffic())
```
It takes root and Linux. What a namespace shares with the machine: files, memory, CPUs, process ids.
At the end all processes in the namespaces are ended, and names carry the process id of whoever made
them, so that several networks do not meet and one whose maker was killed is removed by the next.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farreach.testing import processes

INTERFACE = "eth0"
# In the queue of a limited rate a frame waits so long at most, then frames are lost.
QUEUE_MS = 100
# Sent at once before the rate counts; frames of 64 KiB would be lost if it were less.
BURST_BYTES, BURST_S = 1 << 17, 0.005

_NAME = re.compile(r"fr(\d+)n\d+")
_number = itertools.count()


@dataclass(frozen=True)
class Traffic:
    """Bytes that have passed a host's interface, with all headers but the checksum of the frame."""

    received: int
    sent: int

    def since(self, before: Traffic) -> Traffic:
        """The difference."""
        return Traffic(self.received - before.received, self.sent - before.sent)


def obstacle() -> str | None:
    """Why there can be no networks here; None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"{' and '.join(missing)} of iproute2 is missing" if missing else None


@contextmanager
def network(count: int, *, whole_frames: bool = True) -> Iterator[list[Host]]:
    """Namespaces on one bridge, and their end with all that runs in them.

    Args:
        count: of namespaces, 250 at most.
        whole_frames: let 64 KiB cross as one frame, as network cards that cut them do. Without,
            `Traffic` is what a wire carries, each 1,500 bytes with headers of their own, and the
            CPUs have more to do.

    Raises:
        RuntimeError: the system refuses; its message says what.
    """
    assert count <= 250
    _remove_left_behind()
    name = f"fr{os.getpid()}n{next(_number)}"
    hosts = [Host(name, number) for number in range(count)]
    try:
        _call("ip", "link", "add", name, "type", "bridge")
        _call("ip", "link", "set", name, "up")
        for host in hosts:
            host._make(whole_frames)
        yield hosts
    finally:
        processes.Processes(pid for host in hosts for pid in host.pids()).end()
        for host in hosts:
            host._remove()
        _try("ip", "link", "del", name)


class Host:
    """One namespace, which stands for a machine.

    Attributes:
        address: of IPv4, which the other hosts of the network know.
    """

    def __init__(self, bridge: str, number: int) -> None:
        """Number so many on a bridge; made by `network`."""
        self.address = f"10.0.0.{number + 1}"
        self._bridge, self._name = bridge, f"{bridge}-{number}"
        # The end of its cable: of the host, and of a delay line behind it with two ends.
        self._port, self._near, self._far = (f"{bridge}{end}{number}" for end in "pqr")
        self._line: subprocess.Popen[str] | None = None
        self._is_cut = False
        self._started: list[subprocess.Popen[Any]] = []

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program there, which ends with the network at the latest.

        Args:
            command: words of its command line.
            options: of `subprocess.Popen`.
        """
        options = {"start_new_session": True} | options
        process = subprocess.Popen(["ip", "netns", "exec", self._name, *command], **options)
        self._started.append(process)
        return process

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program there and wait for its end; `options` are those of `subprocess.run`."""
        return subprocess.run(["ip", "netns", "exec", self._name, *command], **options)

    def shape(self, *, delay_ms: float = 0.0, mbit_per_s: float | None = None) -> None:
        """Make the cable of the host slow, each way alike; what was set before is forgotten.

        Args:
            delay_ms: each way, so that an echo takes twice as long.
            mbit_per_s: None for as much as the CPUs allow.
        """
        within = ("ip", "netns", "exec", self._name)
        for words, interface in (((), self._port), (within, INTERFACE)):
            _try(*words, "tc", "qdisc", "del", "dev", interface, "root")
            if mbit_per_s is not None:
                burst = max(BURST_BYTES, round(mbit_per_s * 1e6 / 8 * BURST_S))
                rate = ("rate", f"{round(mbit_per_s * 1e6)}bit", "burst", f"{burst}b")
                limit = ("latency", f"{QUEUE_MS}ms")
                _call(*words, "tc", "qdisc", "add", "dev", interface, "root", "tbf", *rate, *limit)
        if delay_ms > 0:
            self._delay(delay_ms)
        elif self._line is not None:
            self._undelay()

    def cut(self) -> None:
        """Let nothing pass any more; the host is not told."""
        self._is_cut = True
        _call("ip", "link", "set", self._end, "nomaster")

    def mend(self) -> None:
        """Undo `cut`."""
        self._is_cut = False
        _call("ip", "link", "set", self._end, "master", self._bridge)

    def traffic(self) -> Traffic:
        """What has passed so far."""
        # Of the other end of the cable, to which the host's sent bytes are received ones.
        folder = Path("/sys/class/net", self._port, "statistics")
        sent, received = (int((folder / f"{way}_bytes").read_text()) for way in ("rx", "tx"))
        return Traffic(received, sent)

    def pids(self) -> list[int]:
        """Process ids of all that runs there; [] if the namespace is not there."""
        return _pids(self._name)

    @property
    def _end(self) -> str:
        """What of the cable is in the bridge."""
        return self._port if self._line is None else self._far

    def _make(self, whole_frames: bool) -> None:
        _call("ip", "netns", "add", self._name)
        peer = ("peer", "name", INTERFACE, "netns", self._name)
        _call("ip", "link", "add", self._port, "type", "veth", *peer)
        _call("ip", "link", "set", self._port, "master", self._bridge, "up")
        within = ("ip", "-n", self._name)
        _call(*within, "addr", "add", f"{self.address}/24", "dev", INTERFACE)
        if not whole_frames:
            _call(*within, "link", "set", INTERFACE, "gso_max_segs", "1")
        for interface in ("lo", INTERFACE):
            _call(*within, "link", "set", interface, "up")

    def _delay(self, delay_ms: float) -> None:
        if self._line is None:
            _call("ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far)
            for interface in (self._near, self._far):
                _call("ip", "link", "set", interface, "up")
            _call("ip", "link", "set", self._port, "nomaster")
            self._line = subprocess.Popen(
                [sys.executable, "-m", "farreach.testing.delay_line", self._port, self._near],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._line.stdout is not None
            if not self._line.stdout.readline():
                raise RuntimeError("the delay line did not start; what it said is above")
            if not self._is_cut:
                self.mend()
        assert self._line.stdin is not None
        self._line.stdin.write(f"{delay_ms}\n")
        self._line.stdin.flush()

    def _undelay(self) -> None:
        self._end_line()
        _call("ip", "link", "del", self._near)
        if not self._is_cut:
            self.mend()

    def _end_line(self) -> None:
        if self._line is not None:
            self._line.kill()
            self._line.communicate()
            self._line = None

    def _remove(self) -> None:
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(processes.KILL_S)
        self._end_line()
        for interface in (self._near, self._port):
            _try("ip", "link", "del", interface)
        _try("ip", "netns", "del", self._name)


def _remove_left_behind() -> None:
    """Remove what was made by processes that have been killed."""
    listed = _try("ip", "netns", "list").split()
    names = [name for name in listed if (made := _NAME.match(name)) and _is_gone(made.group(1))]
    processes.Processes(pid for name in names for pid in _pids(name)).end()
    for name in names:
        _try("ip", "netns", "del", name)
    for folder in Path("/sys/class/net").iterdir():
        if (made := _NAME.match(folder.name)) and _is_gone(made.group(1)):
            _try("ip", "link", "del", folder.name)


def _is_gone(pid: str) -> bool:
    return not Path("/proc", pid).exists()


def _pids(namespace: str) -> list[int]:
    if not Path("/run/netns", namespace).exists():
        return []
    return [int(pid) for pid in _try("ip", "netns", "pids", namespace).split()]


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")


def _try(*words: str) -> str:
    """What a command prints, whether it succeeds or not."""
    return subprocess.run(words, capture_output=True, text=True).stdout
