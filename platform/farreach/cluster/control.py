"""What the control process of a Ray cluster knows, of machines and of its autoscaler.

The interface is private to Ray, and the same for both versions of the autoscaler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ANSWER_TIMEOUT_S = 10


@dataclass(frozen=True)
class Node:
    """A node that is there.

    Attributes:
        node_id: Ray's, in hexadecimal digits.
        kind: name of its node type; "" where nobody gave it one.
        idle: nothing runs on it.
        resources: all that it has.
        free: what of that nobody has reserved.
    """

    node_id: str
    kind: str
    idle: bool
    resources: dict[str, float]
    free: dict[str, float]


@dataclass(frozen=True)
class State:
    """What the control process said.

    Attributes:
        nodes: those that are alive.
        reports: how often the autoscaler has reported; 0 where that is of version 1.
        hopeless: placement groups that an autoscaler of version 2 says it can never place.
    """

    nodes: list[Node]
    reports: int
    hopeless: frozenset[str]


def client(address: str) -> Any:
    """A client of the control process at `host:port`."""
    import ray

    library: Any = ray._raylet
    return library.GcsClient(address=address)


def state(gcs: Any) -> State:
    """Ask it."""
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    answer = gcs.get_cluster_status(timeout_s=ANSWER_TIMEOUT_S)
    reply = messages.GetClusterStatusReply.FromString(answer)
    dead, idle = (messages.NodeStatus.Value(name) for name in ("DEAD", "IDLE"))
    nodes = [
        Node(
            node.node_id.hex(),
            node.ray_node_type_name,
            node.status == idle,
            dict(node.total_resources),
            dict(node.available_resources),
        )
        for node in reply.cluster_resource_state.node_states
        if node.status != dead
    ]
    scaler = reply.autoscaling_state
    hopeless = {
        group.details.partition(":")[0] for group in scaler.infeasible_gang_resource_requests
    }
    return State(nodes, scaler.autoscaler_state_version, frozenset(hopeless))
