"""A Ray cluster of several machines on one: each a network namespace with an address of its own.

```
with machines([{"learner": 1}, {"rollout": 4}]) as cluster:
    cluster.hosts[1].shape(delay_ms=25)
    cluster.run([sys.executable, "-m", "farreach", "train", "goals/walk_maze"])
```
It takes root and Linux; see `networks.obstacle`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farreach.cluster import control
from farreach.testing.networks import Host, network

PORT = 6379
STARTED_S = 120.0
NUM_CPUS, OBJECT_STORE_BYTES = 4, 150_000_000


@dataclass(frozen=True)
class Cluster:
    """Machines whose Ray nodes have found each other.

    Attributes:
        hosts: the machines; the first has Ray's head, and drivers run there.
        variables: the environment of drivers.
    """

    hosts: list[Host]
    variables: dict[str, str]

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a driver; see `Host.start`."""
        return self.hosts[0].start(command, **({"env": self.variables} | options))

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a driver to its end; see `Host.run`."""
        return self.hosts[0].run(command, **({"env": self.variables} | options))


@contextmanager
def machines(
    resources: Sequence[Mapping[str, float]], *, whole_frames: bool = True
) -> Iterator[Cluster]:
    """Start a cluster, and end it afterwards with all that runs in it.

    Args:
        resources: of each machine, besides four logical CPUs.
        whole_frames: see `network`.

    Raises:
        RuntimeError: a node ended, or they have not found each other in time.
    """
    # A short name: paths of unix sockets are limited to 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder,
        network(len(resources), whole_frames=whole_frames) as hosts,
    ):
        address = f"{hosts[0].address}:{PORT}"
        head = ("--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}")
        nodes: list[_Node] = []
        # One after the other: those that find no head give up soon, and files are shared.
        for host, own in zip(hosts, resources, strict=True):
            words = [*([f"--address={address}"] if nodes else head)]
            words += [f"--node-ip-address={host.address}", f"--num-cpus={NUM_CPUS}"]
            words += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
            words += [f"--resources={json.dumps(dict(own))}"]
            nodes.append(_Node(host, words, Path(folder)))
            _wait(nodes, hosts[0], address)
        yield Cluster(hosts, _environment() | {"RAY_ADDRESS": address})


class _Node:
    """A Ray node, and the file that has what it says."""

    def __init__(self, host: Host, words: Sequence[str], folder: Path) -> None:
        self._said = folder / f"{host.address}.txt"
        ray = str(Path(sys.executable).parent / "ray")
        with self._said.open("wb") as said:
            self._process = host.start(
                [ray, "start", "--block", "--disable-usage-stats", *words],
                env=_environment(),
                cwd=folder,
                stdout=said,
                stderr=said,
            )

    def check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"a Ray node has ended, after saying: {self._said.read_text()}")


def _environment() -> dict[str, str]:
    """This process's, without what would come in the way of another Ray."""
    hidden = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {
        # The network ends with the cluster, and nobody else is in it.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise it waits half a minute for others to take over what it does.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _wait(nodes: Sequence[_Node], head: Host, address: str) -> None:
    """Until all nodes are there, which somebody in the network has to ask for."""
    command = [sys.executable, "-m", __name__, address, str(len(nodes))]
    asking = head.start(command, env=_environment())
    deadline = time.monotonic() + STARTED_S
    while asking.poll() is None:
        for node in nodes:
            node.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the Ray nodes have not found each other in {STARTED_S:.0f} s")
        time.sleep(0.1)
    if asking.returncode:
        raise RuntimeError("the head of the cluster does not answer; what it said is above")


def main() -> None:
    """Return once the cluster at an address has so many nodes."""
    address, count = sys.argv[1], int(sys.argv[2])
    gcs = None
    while gcs is None or len(control.state(gcs).nodes) < count:
        time.sleep(0.2)
        gcs = gcs or _client(address)


def _client(address: str) -> Any:
    import ray

    try:
        return control.client(address)
    except ray.exceptions.RaySystemError:
        return None


if __name__ == "__main__":
    main()
