"""Builds the parts of a run and places them: inline in this process, or each in a Ray actor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import ray

from farreach.actors import nodes
from farreach.actors.services import DEATHS, ActorService, InlineService, Service
from farreach.actors.witness import Whereabouts
from farreach.cluster.demand import Demand
from farreach.errors import ActorError, ClusterError
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.evaluate import Evaluator
from farreach_workloads.goals.experience import Experience
from farreach_workloads.goals.learner import Learner
from farreach_workloads.goals.memory import GoalMemory
from farreach_workloads.goals.reachability_trainer import ReachabilityTrainer
from farreach_workloads.goals.rollout import Rollout

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig, Role


# Factories of the parts: module-level, so that an actor can import them.
def make_learner(config: GoalsRunConfig) -> Learner:
    """The learner; its environment supplies the spec and the oracle rewards."""
    return Learner(config, make_environment(config.environment, 1))


def make_replay(config: GoalsRunConfig, index: int) -> Experience:
    """Shard number `index` of the replay."""
    return Experience(config, make_environment(config.environment, 1), index)


def make_memory(config: GoalsRunConfig) -> GoalMemory:
    """The goal memory."""
    return GoalMemory(config, make_environment(config.environment, 1))


def make_reachability(config: GoalsRunConfig) -> ReachabilityTrainer:
    """The reachability trainer."""
    return ReachabilityTrainer(config, make_environment(config.environment, 1).spec)


def make_rollout(config: GoalsRunConfig, index: int, incarnation: int) -> Rollout:
    """Rollout number `index`."""
    env = make_environment(config.environment, config.environment.num_envs)
    return Rollout(config, env, index, incarnation)


def make_evaluator(config: GoalsRunConfig) -> Evaluator:
    """The evaluator, with one copy of the environment per episode."""
    return Evaluator(config, make_environment(config.environment, config.evaluation.episodes))


def demand(config: GoalsRunConfig) -> list[Demand]:
    """What the actors of a run ask Ray for; nothing for an inline run."""
    settings = config.runtime
    if settings.placement == "inline":
        return []
    singles: tuple[Role, ...] = ("learner", "reachability", "memory", "evaluator")
    found = [Demand(role, 1, reserved(config, role)) for role in singles]
    actors = settings.rollout_actors
    later = actors - 1 if settings.mode == "async" else 0
    rollouts = Demand("rollout", actors, reserved(config, "rollout"), "SPREAD", later=later)
    if settings.replay_shards:
        asked = reserved(config, "replay")
        found.append(Demand("replay", settings.replay_shards, asked, "SPREAD"))
    return [*found, rollouts]


def reserved(config: GoalsRunConfig, role: Role) -> dict[str, float]:
    """What each actor of a role reserves."""
    settings = config.runtime
    on_gpu = role == "learner" and settings.device.startswith("cuda")
    found = {"CPU": getattr(settings.cpus, role), "GPU": 1.0 if on_gpu else 0.0}
    found |= settings.resources.get(role, {})
    return {name: amount for name, amount in found.items() if amount}


# Seconds between two rollouts after which a run begins without those that are not there.
LATE_S = 10.0


class PartDied(Exception):  # noqa: N818 (a message to the loop, not to the user)
    """An actor that holds state has died; the run continues from its newest checkpoint."""

    def __init__(self, role: str, error: BaseException) -> None:
        """`role` died, of which its caller was told with `error`."""
        super().__init__(role, error)
        self.role, self.error = role, error


FACTORIES: dict[str, Callable[..., Any]] = {
    "learner": make_learner,
    "reachability": make_reachability,
    "memory": make_memory,
    "evaluator": make_evaluator,
    "rollout": make_rollout,
    "replay": make_replay,
}


class Parts:
    """The services of a run: learner, reachability, memory, evaluator, replay shards and rollouts.

    In a cluster the rollouts are spread over the machines, and memory and reachability go where the
    learner is, as long as there is room: so the bundle, its network and most of what they exchange
    stay on one machine. A replay shard goes where the rollouts are that it takes episodes from.

    Attributes:
        shards: of the replay; none if the learner has it.
        late: what tells that a rollout is ready at last → its index, of those that have not found
            room yet.
    """

    def __init__(self, config: GoalsRunConfig) -> None:
        """Start all of them and wait until they are ready.

        Raises:
            PartDied: one of them died meanwhile.
            ClusterError: the cluster has not found room for one in time.
            FarreachError: what building one raised.
        """
        self._config = config
        self.learner = self._start("learner")
        if self._has_choice():
            self._wait(self.learner)
        self.reachability = self._start("reachability")
        self.memory = self._start("memory")
        self.evaluator = self._start("evaluator")
        self.rollouts = [self.start_rollout(i) for i in range(config.runtime.rollout_actors)]
        self.shards = [] if self._has_choice() else self._start_shards()
        self.late: dict[Any, int] = {}
        for part in (self.learner, self.reachability, self.memory, self.evaluator):
            self._wait(part)
        self._gather()
        self.shards = self.shards or self._start_shards()
        for shard in self.shards:
            self._wait(shard)

    def _start_shards(self) -> list[Service]:
        return [self._start(f"replay-{i}", i) for i in range(self._config.runtime.replay_shards)]

    def _gather(self) -> None:
        """Wait for the rollouts; of an asynchronous run only those that find room soon."""
        if self._config.runtime.mode == "sync":
            for rollout in self.rollouts:
                self._wait(rollout)
            return
        longest_s = self._config.runtime.start_timeout_s
        coming = {
            rollout.settling(): index
            for index, rollout in enumerate(self.rollouts)
            if isinstance(rollout, ActorService)
        }
        while coming:
            nobody = len(coming) == len(self.rollouts)
            timeout_s = longest_s if nobody else min(LATE_S, longest_s)
            done, _ = ray.wait(list(coming), num_returns=1, timeout=timeout_s)
            if not done and nobody:
                raise ClusterError(
                    f"no rollout has started within {longest_s:g} s (runtime.start_timeout_s). The "
                    "cluster has no room for one or is still adding nodes; see `ray status`."
                )
            if not done:
                break
            rollout = self.rollouts[coming.pop(done[0])]
            assert isinstance(rollout, ActorService)
            try:
                rollout.settled(done[0])
            except DEATHS as error:
                raise PartDied(rollout.role, error) from error
        self.late = coming

    @property
    def places(self) -> dict[str, Whereabouts]:
        """Role → where its process is, of those that are ready and have one of their own."""
        return {part.role: part.place for part in self.all() if part.place is not None}

    def _has_choice(self) -> bool:
        """Whether there are several machines for the parts."""
        if self._config.runtime.placement == "inline":
            return False
        return bool(self._config.runtime.resources) or len(nodes.alive()) > 1

    def _start(self, role: str, *extra: int) -> Service:
        name = role.partition("-")[0]
        factory, runtime = FACTORIES[name], self._config.runtime
        arguments = (self._config, *extra)
        if runtime.placement == "inline":
            return InlineService(role, factory, arguments)
        asked = reserved(self._config, cast("Role", name))
        return ActorService(
            role,
            factory,
            arguments,
            num_cpus=asked.pop("CPU", 0.0),
            num_gpus=asked.pop("GPU", 0.0),
            resources=asked,
            strategy=self._strategy(name, *extra),
        )

    def _strategy(self, name: str, index: int = 0, *_: int) -> Any:
        if name == "rollout":
            return "SPREAD"
        if name == "replay":
            place = self.rollouts[index % len(self.rollouts)].place
            return nodes.near(place.node) if place is not None else "SPREAD"
        if name in ("memory", "reachability") and self.learner.place is not None:
            return nodes.near(self.learner.place.node)
        return None

    def _wait(self, part: Service) -> None:
        if not isinstance(part, ActorService):
            return
        try:
            part.wait_until_ready(self._config.runtime.start_timeout_s)
        except ActorError as error:
            raise PartDied(part.role, error.__cause__ or error) from error

    def start_rollout(self, index: int, incarnation: int = 0) -> Service:
        """A rollout; a replacement gets the next `incarnation` and thereby fresh randomness."""
        return self._start(f"rollout-{index}", index, incarnation)

    def restart(self, roles: Sequence[str]) -> list[Service]:
        """Start parts anew, with nothing in them, and end those that had the roles.

        Raises as the constructor does.
        """
        old = {part.role: part for part in self.all()}
        for role in roles:
            name, _, index = role.partition("-")
            if name == "rollout":
                self.rollouts[int(index)] = self.start_rollout(int(index))
            elif name == "replay":
                self.shards[int(index)] = self._start(role, int(index))
            else:
                setattr(self, name, self._start(name))
            old[role].stop()
        started = [part for part in self.all() if part.role in roles]
        for part in started:
            self._wait(part)
        return started

    def restart_evaluator(self) -> Service:
        """A new evaluator, without waiting for it; it has no state of its own."""
        self.evaluator.stop()
        self.evaluator = self._start("evaluator")
        return self.evaluator

    def ready(self) -> list[Service]:
        """The rollouts that are there."""
        return [rollout for rollout in self.rollouts if rollout.is_ready]

    def all(self) -> list[Service]:
        """Every service, in a fixed order."""
        singles = [self.learner, self.reachability, self.memory, self.evaluator]
        return [*singles, *self.shards, *self.rollouts]

    def singular(self) -> list[Service]:
        """The services that hold what no other has."""
        return [self.learner, self.reachability, self.memory, *self.shards]

    def stateful(self) -> list[Service]:
        """The services whose state a checkpoint holds; a rollout that still starts has none."""
        return [*self.singular(), *self.ready()]

    def stop(self) -> None:
        """End all services."""
        for part in self.all():
            part.stop()
