"""Machines of the cluster that are about to leave, and where actors should be instead.

A machine that is taken away after a notice is first *drained*: Ray places nothing new there, what
runs goes on, and at the deadline the machine may be gone. Everything that asks Ray for this is
here, since the interface is private.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOOK_EVERY_S = 1.0
PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Notice:
    """A machine's notice to leave.

    Attributes:
        node: id of its Ray node.
        host: the machine, as name and address.
        heard: when it was first seen, seconds since the epoch.
        deadline: when it may be gone, likewise; None if nobody said.
    """

    node: str
    host: str
    heard: float
    deadline: float | None

    @property
    def since_s(self) -> float:
        """Seconds since it was seen."""
        return time.time() - self.heard

    def fields(self) -> dict[str, Any]:
        """For an event."""
        return {"node": self.host, "node_id": self.node, "deadline": self.deadline}


class Lookout:
    """Looks about once a second which machines are leaving.

    Attributes:
        leaving: node → its notice; kept when the machine is gone.
    """

    def __init__(self) -> None:
        """Nobody is leaving yet."""
        self.leaving: dict[str, Notice] = {}
        self._looked_s = 0.0

    def news(self) -> list[Notice]:
        """Notices that were not there at the last look; [] if that was less than a second ago."""
        now = time.monotonic()
        if now - self._looked_s < LOOK_EVERY_S:
            return []
        self._looked_s = now
        return self.add(leaving())

    def add(self, deadlines: Mapping[str, float | None]) -> list[Notice]:
        """Take note of nodes that leave; the notices of those that were not known to."""
        found = [
            Notice(node, host_of(node), time.time(), deadline)
            for node, deadline in deadlines.items()
            if node not in self.leaving
        ]
        self.leaving |= {notice.node: notice for notice in found}
        return found

    def notice_s(self, node: str) -> float | None:
        """Seconds since a node's notice to leave; None if it has none."""
        notice = self.leaving.get(node)
        return None if notice is None else notice.since_s


def leaving() -> dict[str, float | None]:
    """Nodes that are drained → when they may be gone, seconds since the epoch, None if unknown."""
    import ray

    if not ray.is_initialized() or ray.util.client.ray.is_connected():
        return {}
    deadlines: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: at / 1000 if at else None for node, at in deadlines.items()}


def drain(node: str, notice_s: float) -> bool:
    """Tell a node that it will be taken away in so many seconds, as a cloud would.

    Returns:
        Whether Ray has taken note.
    """
    from ray._private import worker
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + notice_s) * 1000)
    connected: Any = worker.global_worker
    accepted, _ = connected.gcs_client.drain_node(node, reason, "farreach: a drill", deadline_ms)
    return bool(accepted)


def near(node: str) -> Any:
    """A scheduling strategy: on this node if there is room, or else anywhere.

    A placement group would hold the parts together too, but it reserves its CPUs as a whole: one
    over all CPUs of a machine makes every later task hang, and one whose machine leaves must be
    placed anew as a whole.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=True)


def alive() -> list[str]:
    """Nodes of the cluster that Ray takes for alive."""
    import ray

    return [str(entry["NodeID"]) for entry in ray.nodes() if entry["Alive"]]


def host_of(node: str) -> str:
    """Name and address of a node's machine; the id of one that Ray does not know."""
    found = _entry(node)
    if found is None:
        return node
    return f"{found['NodeManagerHostname']} ({found['NodeManagerAddress']})"


def answers(node: str) -> bool:
    """Whether a node's Ray accepts a connection; Ray itself declares it dead much later."""
    found = _entry(node)
    if found is None or not found["Alive"]:
        return False
    try:
        address = (found["NodeManagerAddress"], found["NodeManagerPort"])
        socket.create_connection(address, timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _entry(node: str) -> Mapping[str, Any] | None:
    import ray

    return next((entry for entry in ray.nodes() if entry["NodeID"] == node), None)
