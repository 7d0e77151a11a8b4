"""What a cluster is doing: machines, resources, actors, jobs; from its head or its dashboard.

The head (`host:6379`) knows all but the jobs, which the dashboard keeps; the dashboard
(`http://host:8265`) knows all but what was moved from object stores to disks.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from farreach import runtime
from farreach.cluster.dashboard import Dashboard
from farreach.errors import ClusterError

ANSWER_S = 10
ACTORS = 10_000
DEAD_SHOWN = 5
# Resources that every machine has of its own.
_OWN = re.compile(r"^node:")
_RESOURCES = {"objectStoreMemory": "object_store_memory"}
_ADDRESS = re.compile(r"(https?://\S+|ray://\S+|auto|\[?[\w.:-]+\]?:\d+)")


class Node(NamedTuple):
    """A machine: its name and address, state, whether it is the head, resources, a remark."""

    host: str
    address: str
    state: str
    is_head: bool
    resources: Mapping[str, float]
    detail: str


class ActorGroup(NamedTuple):
    """Actors of one class (or role) in one state: how many, and their restarts together."""

    name: str
    state: str
    number: int
    restarts: int


class Job(NamedTuple):
    """A job: its name, status, when it began (seconds since the epoch), its command."""

    name: str
    status: str
    begun_s: float
    command: str


@dataclass(frozen=True)
class ClusterStatus:
    """A cluster at one moment.

    Attributes:
        address: that was asked.
        nodes: those alive, and the newest of those that are not.
        resources: name → (used, there).
        actors: grouped by class and state.
        jobs: None if no dashboard tells.
        spilled_bytes: moved from object stores to disks; None if nobody tells.
        doctor: what is clearly wrong, in words.
    """

    address: str
    nodes: tuple[Node, ...]
    resources: Mapping[str, tuple[float, float]]
    actors: tuple[ActorGroup, ...]
    jobs: tuple[Job, ...] | None
    spilled_bytes: float | None
    doctor: tuple[str, ...]


def is_address(text: str) -> bool:
    """Whether a word names a cluster: host:port, http://host:8265, ray://host:10001 or auto."""
    return _ADDRESS.fullmatch(text) is not None


def look(address: str) -> ClusterStatus:
    """The status of the cluster at an address.

    Raises:
        ClusterError: nobody answers there, or refuses to.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address} is for programs that use the cluster. Ask its head (host:6379), or its "
            "dashboard (http://host:8265)."
        )
    if address.startswith(("http://", "https://")):
        return from_dashboard(Dashboard(address))
    return from_head(runtime.resolve(address))


def from_dashboard(dashboard: Dashboard) -> ClusterStatus:
    """Ask the dashboard; raises ClusterError."""
    dashboard.check()
    nodes = [_node(entry) for entry in dashboard.get("/nodes?view=summary")["data"]["summary"]]
    actors = dashboard.get(f"/api/v0/actors?detail=true&limit={ACTORS}")["data"]["result"]["result"]
    usage: Mapping[str, Any] = {}
    with suppress(KeyError, TypeError):
        report = dashboard.get("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]
        usage = report["usage"] or {}
    resources = {
        _RESOURCES.get(name, name): (float(used), float(there))
        for name, (used, there) in usage.items()
        if not _OWN.match(name)
    }
    groups = grouped(
        (actor["repr_name"] or actor["class_name"], actor["state"], int(actor["num_restarts"]))
        for actor in actors
    )
    jobs = tuple(_job(entry) for entry in dashboard.get("/api/jobs/"))
    return _status(dashboard.address, nodes, resources, groups, jobs, None)


def _node(entry: Mapping[str, Any]) -> Node:
    raylet = entry["raylet"]
    resources = {name: float(value) for name, value in raylet.get("resourcesTotal", {}).items()}
    used = f"{entry['cpu']:.0f}% CPU" if "cpu" in entry else ""
    detail = raylet.get("stateMessage") or used
    host, address = entry.get("hostname") or "", entry.get("ip") or ""
    return Node(
        host, address, raylet["state"], bool(raylet.get("isHeadNode")), resources, str(detail)
    )


def _job(entry: Mapping[str, Any]) -> Job:
    name = entry.get("submission_id") or f"driver {entry.get('job_id')}"
    begun_s = float(entry.get("start_time") or 0) / 1000
    return Job(name, str(entry["status"]), begun_s, str(entry.get("entrypoint") or ""))


def from_head(address: str) -> ClusterStatus:
    """Ask the head at host:port, and the dashboard for jobs if there is one.

    Raises:
        ClusterError: it refuses, or is no head of Ray.
    """
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )
    from ray._private.state import GlobalState

    raylet = importlib.import_module("ray._raylet")

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    state: Any = GlobalState()
    try:
        state._initialize_global_state(
            raylet.GcsClientOptions.create(
                address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
            )
        )
        table = state.node_table()
        left = state.available_resources_per_node()
        actors = list(_actor_records(state))
    except Exception as error:
        said = str(error).splitlines()[0].strip(".")
        raise ClusterError(
            f"the head at {address} does not tell its state: {said}. It must have this Ray's "
            "version, and this user its token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH)."
        ) from error
    nodes = [_node_of_table(entry) for entry in table]
    there: Counter[str] = Counter()
    for entry in table:
        if entry["Alive"]:
            there.update({k: v for k, v in entry["Resources"].items() if not _OWN.match(k)})
    free: Counter[str] = Counter()
    for resources in left.values():
        free.update(resources)
    used = {name: (total - free.get(name, 0.0), total) for name, total in there.items()}
    jobs = _jobs_beside(address)
    state_groups = grouped(actors)
    return _status(address, nodes, used, state_groups, jobs, _spilled(state))


def _actor_records(state: Any) -> Iterable[tuple[str, str, int]]:
    table = importlib.import_module("ray.core.generated.gcs_pb2").ActorTableData
    for record in state._connect_and_get_accessor().get_actor_table(None, None):
        actor = table.FromString(record)
        name = actor.repr_name or actor.class_name
        yield name, table.ActorState.Name(actor.state), int(actor.num_restarts)


def _node_of_table(entry: Mapping[str, Any]) -> Node:
    resources = {name: float(value) for name, value in entry["Resources"].items()}
    return Node(
        entry["NodeManagerHostname"],
        entry["NodeManagerAddress"],
        "ALIVE" if entry["Alive"] else "DEAD",
        "node:__internal_head__" in resources,
        resources,
        entry.get("DeathReasonMessage") or "",
    )


def _jobs_beside(address: str) -> tuple[Job, ...] | None:
    """Jobs of the dashboard that the head names; None if there is none, or it is out of reach."""
    raylet = importlib.import_module("ray._raylet")
    try:
        told = raylet.GcsClient(address=address).internal_kv_get(
            b"dashboard", b"dashboard", ANSWER_S
        )
        if not told:
            return None
        return tuple(_job(entry) for entry in Dashboard(told.decode()).get("/api/jobs/"))
    except Exception:  # whatever Ray's client or the dashboard raise: jobs are not all there is
        return None


def _spilled(state: Any) -> float | None:
    from ray._private import internal_api

    try:
        reply = internal_api.get_memory_info_reply(state, timeout_seconds=ANSWER_S)
    except Exception:  # machines may be out of reach from here
        return None
    return float(reply.store_stats.spilled_bytes_total)


def grouped(actors: Iterable[tuple[str, str, int]]) -> tuple[ActorGroup, ...]:
    """Actors by name and state; (name, state, restarts) of each, numbers behind names left out."""
    counts: Counter[tuple[str, str]] = Counter()
    restarts: Counter[tuple[str, str]] = Counter()
    for name, state, number in actors:
        key = (re.sub(r"-\d+$", "", name), state)
        counts[key] += 1
        restarts[key] += number
    return tuple(ActorGroup(*key, counts[key], restarts[key]) for key in sorted(counts))


def _status(
    address: str,
    nodes: list[Node],
    resources: Mapping[str, tuple[float, float]],
    actors: tuple[ActorGroup, ...],
    jobs: tuple[Job, ...] | None,
    spilled_bytes: float | None,
) -> ClusterStatus:
    alive = sorted(
        (node for node in nodes if node.state == "ALIVE"), key=lambda n: (not n.is_head, n.host)
    )
    gone = [node for node in nodes if node.state != "ALIVE"]
    said = list(_doctor(resources, actors, jobs, spilled_bytes, len(gone)))
    shown = (*alive, *gone[-DEAD_SHOWN:])
    return ClusterStatus(address, shown, resources, actors, jobs, spilled_bytes, tuple(said))


def _doctor(
    resources: Mapping[str, tuple[float, float]],
    actors: tuple[ActorGroup, ...],
    jobs: tuple[Job, ...] | None,
    spilled_bytes: float | None,
    gone: int,
) -> Iterable[str]:
    """What is clearly wrong, and what cannot be told."""
    if jobs is None:
        yield (
            "no dashboard answers, so jobs are not shown: start the head with "
            "--include-dashboard=true, or open a tunnel to port 8265"
        )
    if gone:
        yield f"{gone} machines have left or died; those that died last are shown with the reason"
    waiting = [group for group in actors if group.state in ("PENDING_CREATION", "RESTARTING")]
    for group in waiting:
        yield (
            f"{group.number} {group.name} wait for room or for a machine: `ray status` on the head "
            "says what they ask for"
        )
    used, there = resources.get("object_store_memory", (0.0, 0.0))
    if there and used > 0.9 * there:
        yield f"the object stores are {used / there:.0%} full, and Ray moves objects to disks"
    elif spilled_bytes:
        yield f"{spilled_bytes / 1e9:.1f} GB were moved from object stores to disks so far"
