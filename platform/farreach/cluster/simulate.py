"""Trying out on this machine which machines of a cluster file a run would be given, and when.

Ray's autoscaler is given the file's own kinds of machines and the run's own demands. The machines
are pretended (see `fake.py`), so is what they have, and the processes of the run are empty ones
that ask for the same.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

from farreach.cluster.control import Node
from farreach.cluster.demand import Demand, Resources
from farreach.cluster.fake import HEAD, FakeCluster, NodeType, Version
from farreach.cluster.forecast import Forecast, forecast, limits
from farreach.cluster.plan import Plan
from farreach.errors import ClusterError

# What this machine is thought to bear: pretended machines, and empty processes.
MOST_NODES, MOST_PROCESSES = 6, 32
IDLE_S = 6.0
POLL_S = 0.25
# Nothing more will happen: after the forecast has come true, and otherwise.
SETTLED_S, QUIET_S, LONGEST_S = 2.0, 60.0, 300.0
# A pretended machine has the memory of this one; what is declared is counted under this name.
MEMORY = "declared_memory_gib"


@dataclass(frozen=True)
class Moment:
    """A change of what machines there are.

    Attributes:
        seconds: since the demands.
        nodes: group → how many there are, groups of none left out.
    """

    seconds: float
    nodes: dict[str, int]


@dataclass
class Simulation:
    """What was found.

    Attributes:
        demands: of the run.
        forecast: for the run as it is.
        scale: how many machines and processes each one stands for here.
        moments: how the cluster grew.
        placed: role → group → how many processes were there in the end, of those tried out.
        unplaced: role → how many of those tried out were left without a place.
        reasons: role → why, for all that the forecast or the trial leaves without a place.
        up_s: seconds until the last machine was there; None if none was started.
        down_s: seconds from the end of the demands until the last of them was gone.
        idle_s: how long they had to be without work for that, here.
    """

    demands: list[Demand]
    forecast: Forecast
    scale: int = 1
    moments: list[Moment] = field(default_factory=list)
    placed: dict[str, dict[str, int]] = field(default_factory=dict)
    unplaced: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    up_s: float | None = None
    down_s: float | None = None
    idle_s: float = IDLE_S


def simulate(
    plan: Plan,
    demands: Sequence[Demand],
    *,
    version: Version = 2,
    tell: Callable[[Moment], None] = lambda moment: None,
    ports: tuple[int, int, int] | None = None,
) -> Simulation:
    """Have the autoscaler start what a run asks for, and then let it stop that again.

    Args:
        plan: of the file.
        demands: of the run.
        version: of the autoscaler.
        tell: is told of every change of what machines there are.
        ports: as of `FakeCluster`.

    Raises:
        ClusterError: a process has no room on any kind of machine, or the pretended cluster fails.
    """
    expected = forecast(plan, demands)
    scale = scale_of(demands, expected)
    found = Simulation(list(demands), expected, scale)
    small_plan, small_demands = scaled(plan, demands, scale)
    with cluster_of(small_plan, version, ports) as cluster, _joined(cluster):
        _grow(cluster, small_demands, forecast(small_plan, small_demands), found, tell)
        _shrink(cluster, small_plan, found, tell)
    by_role = {demand.role: demand for demand in demands}
    for role in {**expected.unplaced, **found.unplaced}:
        found.reasons[role] = limits(plan, by_role[role])
    return found


def scale_of(demands: Sequence[Demand], expected: Forecast, processes: int = MOST_PROCESSES) -> int:
    """By how much a cluster and a run must be made smaller for this machine to bear them.

    Args:
        demands: of the run.
        expected: the machines for it.
        processes: that this machine bears.
    """
    nodes = sum(expected.nodes.values())
    several = [demand.count for demand in demands if not demand.together]
    return max(1, math.ceil(nodes / MOST_NODES), math.ceil(sum(several) / processes))


def scaled(plan: Plan, demands: Sequence[Demand], scale: int) -> tuple[Plan, list[Demand]]:
    """A cluster of so many times fewer machines, and a run of so many times fewer processes."""
    groups = [
        group
        if group.head
        else replace(
            group, least=math.ceil(group.least / scale), most=math.ceil(group.most / scale)
        )
        for group in plan.groups
    ]
    most = None if plan.most_workers is None else math.ceil(plan.most_workers / scale)
    fewer = [replace(demand, count=math.ceil(demand.count / scale)) for demand in demands]
    return replace(plan, groups=tuple(groups), most_workers=most), fewer


def cluster_of(
    plan: Plan, version: Version = 2, ports: tuple[int, int, int] | None = None
) -> FakeCluster:
    """A pretended cluster with the machines of a plan; they go soon after they have no work."""
    workers = [group for group in plan.groups if not group.head]
    head: Resources = next((group.resources for group in plan.groups if group.head), {})
    types = {
        group.name: NodeType(_declared(group.resources), group.least, group.most)
        for group in workers
    }
    return FakeCluster(
        types,
        _declared(head),
        version=version,
        idle_s=IDLE_S,
        most=plan.most_workers,
        ports=ports,
    )


class Empty:
    """A process that asks for what another would."""

    def node(self) -> str:
        """The node that it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())


@contextmanager
def _joined(cluster: FakeCluster) -> Iterator[None]:
    import ray

    # Ray prints there when a machine goes; results are printed later.
    with redirect_stdout(sys.stderr):
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()


def _grow(
    cluster: FakeCluster,
    demands: Sequence[Demand],
    expected: Forecast,
    found: Simulation,
    tell: Callable[[Moment], None],
) -> None:
    """Ask for everything, until all have a place or nothing happens any more."""
    before = Moment(0.0, cluster.counts())
    found.moments.append(before)
    placeholders = [_Placeholder(demand) for demand in demands if demand.asked]
    begun = changed = time.monotonic()
    state: Any = None
    while True:
        now, nodes = time.monotonic(), cluster.nodes()
        places = {one.demand.role: one.places(nodes) for one in placeholders}
        counts = _counts(nodes)
        if (counts, places) != state:
            state, changed = (counts, places), now
        if counts != found.moments[-1].nodes:
            found.moments.append(Moment(now - begun, counts))
            tell(found.moments[-1])
        as_expected = counts == expected.nodes and all(
            sum(places[one.demand.role].values())
            == one.demand.count - expected.unplaced.get(one.demand.role, 0)
            for one in placeholders
        )
        quiet_s = now - changed
        if quiet_s > (SETTLED_S if as_expected else QUIET_S) or now - begun > LONGEST_S:
            break
        time.sleep(POLL_S)
    found.placed = {role: dict(there) for role, there in places.items()}
    found.unplaced = {
        one.demand.role: left
        for one in placeholders
        if (left := one.demand.count - sum(places[one.demand.role].values()))
    }
    if len(found.moments) > 1:
        found.up_s = found.moments[-1].seconds
    for one in placeholders:
        one.end()


def _shrink(
    cluster: FakeCluster, plan: Plan, found: Simulation, tell: Callable[[Moment], None]
) -> None:
    """Wait until the machines are gone that nobody needs any more."""
    least = {group.name: group.least for group in plan.groups if not group.head and group.least}
    begun, counts = time.monotonic(), found.moments[-1].nodes
    while counts != least:
        if time.monotonic() - begun > LONGEST_S:
            raise ClusterError(
                f"{LONGEST_S:g} s after the last process had ended there were still machines of "
                f"{', '.join(counts)}."
            )
        time.sleep(POLL_S)
        if (now := cluster.counts()) != counts:
            counts = now
            tell(Moment(time.monotonic() - begun, counts))
            found.down_s = time.monotonic() - begun


class _Placeholder:
    """The empty processes of a role, or where all have their places at once, these places alone."""

    def __init__(self, demand: Demand) -> None:
        import ray

        self.demand = demand
        self._group: Any = None
        self._actors: list[Any] = []
        self._where: list[Any] = []
        asked = dict(_declared(demand.asked))
        if demand.together:
            wanted = [{name: float(amount) for name, amount in asked.items()}] * demand.count
            self._group = ray.util.placement_group(wanted, strategy=demand.strategy)
            return
        options = {
            "num_cpus": asked.pop("CPU", 0),
            "num_gpus": asked.pop("GPU", 0),
            "resources": asked,
            "scheduling_strategy": demand.strategy,
        }
        remote: Any = ray.remote(Empty).options(**options)
        self._actors = [remote.remote() for _ in range(demand.count)]
        self._where = [actor.node.remote() for actor in self._actors]

    def places(self, nodes: Iterable[Node]) -> Counter[str]:
        """Group → how many have their place there."""
        import ray

        kinds = {node.node_id: node.kind for node in nodes}
        if self._group is not None:
            table: Any = ray.util.placement_group_table(self._group)
            there = [node for node in table["bundles_to_node_id"].values() if node]
            return Counter(kinds.get(node, "") for node in there)
        done, _ = ray.wait(self._where, num_returns=len(self._where), timeout=0)
        return Counter(kinds.get(node, "") for node in ray.get(done))

    def end(self) -> None:
        """Give everything back."""
        import ray

        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        for actor in self._actors:
            ray.kill(actor)


def _counts(nodes: Iterable[Node]) -> dict[str, int]:
    return dict(Counter(node.kind for node in nodes if node.kind != HEAD))


def _declared(resources: Resources) -> Mapping[str, float]:
    """Resources as a pretended machine has them, which cannot have others' memory."""
    found = {name: amount for name, amount in resources.items() if not name.endswith("memory")}
    if "memory" in resources:
        found[MEMORY] = resources["memory"] / 2**30
    return found
