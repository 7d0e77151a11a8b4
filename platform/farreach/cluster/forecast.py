"""What an autoscaler would start for a run, worked out by Ray's own scheduler without a cluster."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farreach.cluster.demand import Demand, fits, in_words, largest
from farreach.cluster.plan import Group, Plan
from farreach.errors import ClusterError


@dataclass(frozen=True)
class Forecast:
    """What it came to.

    Attributes:
        nodes: group → how many machines there would be; the head and groups of none left out.
        unplaced: role → how many of its processes would go without a place.
    """

    nodes: dict[str, int]
    unplaced: dict[str, int]


def forecast(plan: Plan, demands: Sequence[Demand]) -> Forecast:
    """What the autoscaler, in its version 2, would make of all demands at once.

    Args:
        plan: the groups that it may start machines of.
        demands: of the run, in full.

    Raises:
        ClusterError: a process would have no room on any machine of the plan, however many.
    """
    check_sizes(plan, demands)
    asked = [demand for demand in demands if demand.asked]
    reply = _scheduled(plan, asked)
    nodes = Counter({group.name: group.least for group in _workers(plan)})
    nodes.update({launch.instance_type: launch.count for launch in reply.to_launch})
    return Forecast(
        {name: count for name, count in nodes.items() if count}, _unplaced(reply, asked)
    )


def check_sizes(plan: Plan, demands: Sequence[Demand]) -> None:
    """See that each process has room on some machine, if nobody else is there.

    Raises:
        ClusterError: names the role, what it asks for, and what the largest machine has; or a group
            does not say what its machines have.
    """
    groups = [group for group in plan.groups if group.most]
    for group in _workers(plan):
        if group.most and not group.resources:
            raise ClusterError(
                f"the machines of {group.name!r} have no resources in the file: whoever starts "
                "them finds out what they have. Write it there, such as `resources: {CPU: 16}`."
            )
    for demand in demands:
        if not any(fits(demand.asked, group.resources) for group in groups):
            near = largest(demand.asked, [group.resources for group in groups])
            raise ClusterError(
                f"{demand.role} asks for {in_words(demand.asked)} on one machine, and no kind "
                f"of machine has that: the nearest has {in_words(near)}. Lower what the run asks "
                "for (see `farreach list settings CONFIG`), or give a kind of machine more."
            )


def limits(plan: Plan, demand: Demand) -> str:
    """Why not all processes of a role have a place, if each alone would have one."""
    groups = [group for group in plan.groups if group.most]
    shares = [
        f"{group.name} (at most {group.most})"
        for group in groups
        if fits(demand.asked, group.resources)
    ]
    text = f"each has room on {' or '.join(shares)}"
    if plan.most_workers is not None:
        text += f"; there may be {plan.most_workers} machines besides the head"
    if demand.together:
        text += f"; all {demand.count} have their places at once or none ({demand.strategy})"
    return text


def together(plan: Plan, nodes: Mapping[str, int]) -> dict[str, float]:
    """CPUs and GPUs of all machines of a forecast, as Ray counts them; the head's left out.

    Args:
        plan: which machines there are.
        nodes: group → how many of them.
    """
    has = {group.name: group.resources for group in _workers(plan)}
    return {
        name: sum(count * has[group].get(name, 0.0) for group, count in nodes.items())
        for name in ("CPU", "GPU")
        if any(has[group].get(name) for group in nodes)
    }


def hourly(plan: Plan, nodes: Mapping[str, int], prices: Mapping[str, float]) -> float:
    """What the machines of a forecast cost an hour, in the unit of the prices.

    Args:
        plan: which machines there are.
        nodes: group → how many of them.
        prices: CPU or GPU → of one, an hour; one that is not named costs nothing.
    """
    amounts = together(plan, nodes)
    return sum(amounts.get(name, 0.0) * price for name, price in prices.items())


def _workers(plan: Plan) -> list[Group]:
    return [group for group in plan.groups if not group.head]


def _scheduled(plan: Plan, demands: Sequence[Demand]) -> Any:
    """The reply of Ray's scheduler."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    utilities: Any = ResourceRequestUtil
    kinds = {
        group.name: NodeTypeConfig(
            name=group.name,
            min_worker_nodes=0,
            max_worker_nodes=0 if group.head else group.most,
            resources=dict(group.resources),
        )
        for group in plan.groups
    }
    alone, gangs = [], []
    for demand in demands:
        wanted = [utilities.make(demand.asked, _constraints(demand))] * demand.count
        if demand.together:
            gangs.append(messages.GangResourceRequest(requests=wanted, details=demand.role))
        else:
            alone += wanted
    request = SchedulingRequest(
        node_type_configs=kinds,
        max_num_nodes=None if plan.most_workers is None else plan.most_workers + 1,
        resource_requests=utilities.group_by_count(alone),
        gang_resource_requests=gangs,
        current_instances=[
            _running(group, number)
            for group in plan.groups
            for number in range(1 if group.head else group.least)
        ],
        disable_launch_config_check=True,
    )
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return ResourceDemandScheduler(event_logger=None).schedule(request)
    finally:
        logging.disable(disabled)


def _constraints(demand: Demand) -> list[Any] | None:
    """Whether the processes of a role must be on one machine, or on as many as they are."""
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    kinds: Any = ResourceRequestUtil.PlacementConstraintType
    kind = {"STRICT_PACK": kinds.AFFINITY, "STRICT_SPREAD": kinds.ANTI_AFFINITY}
    return [(kind[demand.strategy], demand.role, "")] if demand.strategy in kind else None


def _running(group: Group, number: int) -> Any:
    """A machine that is there already."""
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.core.generated import autoscaler_pb2, instance_manager_pb2

    nodes: Any = autoscaler_pb2
    instances: Any = instance_manager_pb2
    has = {name: float(amount) for name, amount in group.resources.items()}
    name = f"{group.name}-{number}"
    return AutoscalerInstance(
        cloud_instance_id=name,
        ray_node=nodes.NodeState(total_resources=has, available_resources=has),
        im_instance=instances.Instance(
            instance_id=name,
            instance_type=group.name,
            status=instances.Instance.RAY_RUNNING,
            node_kind=instances.NodeKind.HEAD if group.head else instances.NodeKind.WORKER,
        ),
    )


def _unplaced(reply: Any, demands: Sequence[Demand]) -> dict[str, int]:
    """Roles whose demands the scheduler has left over; of equal ones, the last."""
    left = Counter(
        frozenset(request.resources_bundle.items())
        for request in reply.infeasible_resource_requests
    )
    whole = {gang.details for gang in reply.infeasible_gang_resource_requests}
    found = {}
    for demand in reversed(demands):
        shape = frozenset(demand.asked.items())
        count = min(demand.count, left[shape])
        if demand.together:
            count = demand.count if demand.role in whole else 0
        else:
            left[shape] -= count
        if count:
            found[demand.role] = count
    return found
