"""How large a cluster must be for an actor-learner run: arithmetic with measured costs.

`benchmarks/long/network.py` measures the costs on one machine and prints what follows from them.
Nothing gets into the way of anything else here, so that a real cluster does a little less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Versions of what is published that are in the store: the newest, and one that is still read.
VERSIONS = 2
# Fragments of one rollout in its machine's store: being made, and not yet fetched.
FRAGMENTS = 2

REMEDIES = {
    "rollouts": "more rollouts",
    "learner": "a GPU for the learner, or fewer updates per step",
    "fragments": "a faster network for the learner's machine",
    "weights": "longer fragments, so that each fetches the weights for more steps",
    "guide": "a smaller memory or rarer refreshes; more rollouts on each machine",
    "coordinator": "longer fragments, so that there are fewer calls",
    "memory": "rarer refreshes, or a smaller memory",
}


@dataclass(frozen=True)
class Costs:
    """What a run was measured to need.

    Attributes:
        step_s: CPU seconds of a rollout per environment step.
        step_bytes: sent from a rollout to the learner's machine per environment step.
        fragment_steps: environment steps of one call of a rollout.
        fragment_calls: calls of the coordinator for each fragment, the rollout's own among them.
        call_s: CPU seconds of the coordinator per call.
        call_round_trips: times that a message crosses the network and back while a rollout waits
            for its next call, what it fetches included.
        update_s: seconds of the learner per update.
        updates_per_step: updates per environment step.
        publish_updates: updates of one call of the learner, after which its weights are published.
        weights_bytes: of one version of the weights.
        refresh_s: seconds in which the memory is refreshed.
        refresh_steps: environment steps between two refreshes.
        guide_bytes: of one version of the memory, as every machine with rollouts fetches it.
    """

    step_s: float
    step_bytes: float
    fragment_steps: float
    fragment_calls: float
    call_s: float
    call_round_trips: float
    update_s: float
    updates_per_step: float
    publish_updates: float
    weights_bytes: float
    refresh_s: float
    refresh_steps: float
    guide_bytes: float

    @property
    def calls_per_step(self) -> float:
        """Calls of the coordinator per environment step."""
        collecting = self.fragment_calls / self.fragment_steps
        return collecting + self.updates_per_step / self.publish_updates

    @property
    def fragment_bytes(self) -> float:
        """Bytes of one fragment."""
        return self.step_bytes * self.fragment_steps


@dataclass(frozen=True)
class Site:
    """Where it is to run.

    Attributes:
        rollouts_per_machine: each with a core of its own.
        bytes_per_s: of the network of the learner's machine, each way.
        round_trip_s: between the machines.
        learner_speed: how many times as fast as measured the learner is, such as on a GPU.
        memory_speed: likewise, a refresh.
    """

    rollouts_per_machine: int
    bytes_per_s: float
    round_trip_s: float = 0.0
    learner_speed: float = 1.0
    memory_speed: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One part that all steps pass.

    Attributes:
        name: a key of `REMEDIES`.
        steps_per_s: how many environment steps per second it can bear.
    """

    name: str
    steps_per_s: float


@dataclass(frozen=True)
class Size:
    """What a number of rollouts comes to.

    Attributes:
        rollouts: how many.
        machines: that they take.
        stages: which hold the rate up, the slowest first.
        refresh_steps: environment steps between two refreshes of the memory.
        memory_is_late: whether these are more than there should be; nothing waits for the memory.
        calls_per_s: of the coordinator.
        received_bytes_per_s, sent_bytes_per_s: of the learner's machine.
        store_bytes: that its object store must hold.
        rollout_store_bytes: that the object store of a machine with rollouts must hold.
    """

    rollouts: int
    machines: int
    stages: tuple[Stage, ...]
    refresh_steps: float
    memory_is_late: bool
    calls_per_s: float
    received_bytes_per_s: float
    sent_bytes_per_s: float
    store_bytes: float
    rollout_store_bytes: float

    @property
    def steps_per_s(self) -> float:
        """Environment steps per second."""
        return self.stages[0].steps_per_s

    @property
    def limit(self) -> str:
        """Which part there is no more of."""
        return self.stages[0].name

    @property
    def remedies(self) -> list[str]:
        """What to do about it, and about a memory that is late."""
        return [REMEDIES[self.limit], *([REMEDIES["memory"]] if self.memory_is_late else [])]


def rollouts_for(costs: Costs, site: Site, steps_per_s: float) -> int:
    """Rollouts whose own speed suffices for so many environment steps per second."""
    return math.ceil(steps_per_s / _rollout_rate(costs, site) - 1e-9)


def size(costs: Costs, site: Site, rollouts: int) -> Size:
    """What a number of rollouts comes to."""
    machines = math.ceil(rollouts / site.rollouts_per_machine)
    weights, guides = _sent_per_step(costs, machines), machines * costs.guide_bytes
    refreshes = _most_refreshes(costs, site)
    stages = [
        Stage("rollouts", rollouts * _rollout_rate(costs, site)),
        Stage("learner", site.learner_speed / (costs.updates_per_step * costs.update_s)),
        Stage("fragments", site.bytes_per_s / costs.step_bytes),
        _publishing(costs, site, weights, guides, refreshes),
        Stage("coordinator", 1 / (costs.calls_per_step * costs.call_s)),
    ]
    stages.sort(key=lambda stage: stage.steps_per_s)
    rate = stages[0].steps_per_s
    refreshes_per_s = min(rate / costs.refresh_steps, refreshes)
    published = VERSIONS * (costs.weights_bytes + costs.guide_bytes)
    here = min(rollouts, site.rollouts_per_machine)
    return Size(
        rollouts=rollouts,
        machines=machines,
        stages=tuple(stages),
        refresh_steps=rate / refreshes_per_s,
        memory_is_late=rate / costs.refresh_steps > refreshes,
        calls_per_s=rate * costs.calls_per_step,
        received_bytes_per_s=rate * costs.step_bytes,
        sent_bytes_per_s=rate * weights + refreshes_per_s * guides,
        # The coordinator asks for no more while so many wait for their updates.
        store_bytes=(rollouts + 2) * costs.fragment_bytes + published,
        rollout_store_bytes=FRAGMENTS * here * costs.fragment_bytes + published,
    )


def _rollout_rate(costs: Costs, site: Site) -> float:
    """Environment steps per second of one rollout with a core of its own."""
    waiting_s = costs.call_round_trips * site.round_trip_s
    return costs.fragment_steps / (costs.fragment_steps * costs.step_s + waiting_s)


def _sent_per_step(costs: Costs, machines: int) -> float:
    """Bytes of weights that leave the learner's machine per environment step.

    Every fragment fetches the newest, unless its machine has them already.
    """
    versions = machines * costs.updates_per_step / costs.publish_updates
    return costs.weights_bytes * min(1 / costs.fragment_steps, versions)


def _most_refreshes(costs: Costs, site: Site) -> float:
    """Refreshes per second that the memory can do."""
    return site.memory_speed / costs.refresh_s


def _publishing(costs: Costs, site: Site, weights: float, guides: float, refreshes: float) -> Stage:
    """What the way out of the learner's machine can bear, and what most of it is.

    Args:
        costs: of the run.
        site: has the network.
        weights: bytes per environment step.
        guides: bytes per refresh, for all machines.
        refreshes: per second, at most.
    """
    rate = site.bytes_per_s / (weights + guides / costs.refresh_steps)
    refreshes_per_s = min(rate / costs.refresh_steps, refreshes)
    if refreshes_per_s == refreshes:
        rate = (site.bytes_per_s - refreshes * guides) / weights
    return Stage("guide" if refreshes_per_s * guides > rate * weights else "weights", rate)
