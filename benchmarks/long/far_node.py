"""A Ray node behind a network of its own, whose cable can be pulled; needs root.

The node lives in a network namespace of Linux that a pair of virtual devices joins to this machine.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from farreach.testing.nodes import QUICK_HEALTH

SPACE, HERE, THERE = "farreach0", "farreach-a", "farreach-b"
NEAR_END, NODE_IPS = "10.77.6.1", ("10.77.6.2", "10.77.6.3")
PORT, CLIENT_PORT = 46010, 46011
STARTED_S = 120.0
# With `QUICK_HEALTH` the head takes a node for dead that has been silent for so long.
LOST_AFTER_S = 10.0


class FarNode:
    """A head here and a node there.

    Attributes:
        address: of the head.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing runs yet."""
        self._here = own_address()
        self.address = f"{self._here}:{PORT}"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._number = 0

    def begin(self) -> None:
        """Start both, and wait until they have found each other."""
        self._ray(
            [], "--head", f"--node-ip-address={self._here}", f"--port={PORT}", "--num-cpus=1",
            f"--ray-client-server-port={CLIENT_PORT}", "--include-dashboard=false",
            f"--temp-dir={tempfile.mkdtemp(prefix='fr', dir='/tmp')}",
        )  # fmt: skip
        self._wait_for_head()
        self.replace()

    def replace(self) -> None:
        """Start another node there."""
        ip = NODE_IPS[self._number % len(NODE_IPS)]
        self._number += 1
        self._ray(
            ["ip", "netns", "exec", SPACE], f"--address={self.address}", "--num-cpus=2",
            f"--node-ip-address={ip}", '--resources={"far": 6}',
        )  # fmt: skip
        deadline = time.monotonic() + STARTED_S
        while "Ray runtime started" not in self._log().read_text(errors="replace"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no node has started, see {self._log()}")
            time.sleep(0.5)

    def pull(self, seconds: float) -> None:
        """Cut the network between the two for a while."""
        _ip("link", "set", HERE, "down")
        time.sleep(seconds)
        _ip("link", "set", HERE, "up")

    def stop(self) -> None:
        """End all processes."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait()

    def _log(self) -> Path:
        """Of the newest process."""
        return self._folder / f"node-{len(self._processes) - 1}.log"

    def _ray(self, before: Sequence[str], *options: str) -> None:
        command = [
            *before, str(Path(sys.executable).parent / "ray"), "start", "--block", *options,
            "--object-store-memory=150000000", "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **QUICK_HEALTH}
        variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
        log = open(self._folder / f"node-{len(self._processes)}.log", "wb")  # noqa: SIM115
        self._processes.append(
            subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=log, stderr=log,
                start_new_session=True,
            )
        )  # fmt: skip

    def _wait_for_head(self) -> None:
        deadline = time.monotonic() + STARTED_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection((self._here, PORT), timeout=1).close()
                return
            time.sleep(0.5)
        raise RuntimeError(f"no head answers at {self.address} after {STARTED_S:.0f} s")


@contextmanager
def far_node(folder: Path) -> Iterator[FarNode | None]:
    """A node in a network of its own; None where namespaces are not permitted.

    Args:
        folder: for logs.
    """
    if not _lay_cable():
        yield None
        return
    node = FarNode(folder)
    try:
        node.begin()
        yield node
    finally:
        node.stop()
        _remove_cable()


def own_address() -> str:
    """The address that Ray takes for this machine's, where it is not told another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 80))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _remove_cable() -> None:
    for words in (("link", "del", HERE), ("netns", "del", SPACE)):
        with suppress(subprocess.CalledProcessError):
            _ip(*words)


def _lay_cable() -> bool:
    with suppress(subprocess.CalledProcessError, FileNotFoundError):
        _ip("netns", "add", SPACE)
        _ip("link", "add", HERE, "type", "veth", "peer", "name", THERE)
        _ip("link", "set", THERE, "netns", SPACE)
        _ip("addr", "add", f"{NEAR_END}/24", "dev", HERE)
        _ip("link", "set", HERE, "up")
        for ip in NODE_IPS:
            _there("addr", "add", f"{ip}/24", "dev", THERE)
        _there("link", "set", THERE, "up")
        _there("link", "set", "lo", "up")
        _there("route", "add", "default", "via", NEAR_END)
        return True
    return False


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _there(*words: str) -> None:
    _ip("netns", "exec", SPACE, "ip", *words)
