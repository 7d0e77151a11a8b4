"""Builds the parts of a run and places them: inline in this process, or each in a Ray actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farreach.actors.services import ActorService, InlineService, Service
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.evaluate import Evaluator
from farreach_workloads.goals.learner import Learner
from farreach_workloads.goals.memory import GoalMemory
from farreach_workloads.goals.reachability_trainer import ReachabilityTrainer
from farreach_workloads.goals.rollout import Rollout

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig


# Factories of the parts: module-level, so that an actor can import them.
def make_learner(config: GoalsRunConfig) -> Learner:
    """The learner; its environment supplies the spec and the oracle rewards."""
    return Learner(config, make_environment(config.environment, 1))


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


def cpus_needed(config: GoalsRunConfig) -> float:
    """CPUs that all actors of the run reserve together; 0 for an inline run."""
    if config.runtime.placement == "inline":
        return 0.0
    cpus = config.runtime.cpus
    fixed = cpus.learner + cpus.reachability + cpus.memory + cpus.evaluator
    return fixed + cpus.rollout * config.runtime.rollout_actors


class Parts:
    """The services of a run: learner, reachability, memory, evaluator and the rollouts."""

    def __init__(self, config: GoalsRunConfig) -> None:
        """Start all of them and wait until they are ready."""
        self._config = config
        cpus = config.runtime.cpus
        gpus = 1.0 if config.runtime.device.startswith("cuda") else 0.0
        self.learner = self._start("learner", make_learner, cpus.learner, gpus)
        self.reachability = self._start("reachability", make_reachability, cpus.reachability)
        self.memory = self._start("memory", make_memory, cpus.memory)
        self.evaluator = self._start("evaluator", make_evaluator, cpus.evaluator)
        self.rollouts = [self.start_rollout(i) for i in range(config.runtime.rollout_actors)]
        self.pids = {
            part.role: part.wait_until_ready()
            for part in self.all()
            if isinstance(part, ActorService)
        }

    def _start(
        self, role: str, factory: Callable[..., Any], cpus: float, gpus: float = 0.0, *extra: int
    ) -> Service:
        arguments = (self._config, *extra)
        if self._config.runtime.placement == "inline":
            return InlineService(role, factory, arguments)
        return ActorService(role, factory, arguments, num_cpus=cpus, num_gpus=gpus)

    def start_rollout(self, index: int, incarnation: int = 0) -> Service:
        """A rollout; a replacement gets the next `incarnation` and thereby fresh randomness."""
        cpus = self._config.runtime.cpus.rollout
        return self._start(f"rollout-{index}", make_rollout, cpus, 0.0, index, incarnation)

    def start_evaluator(self) -> Service:
        """A new evaluator; it has no state of its own."""
        return self._start("evaluator", make_evaluator, self._config.runtime.cpus.evaluator)

    def all(self) -> list[Service]:
        """Every service, in a fixed order."""
        return [self.learner, self.reachability, self.memory, self.evaluator, *self.rollouts]

    def stateful(self) -> dict[str, Service]:
        """The services whose state a checkpoint holds."""
        named = {"learner": self.learner, "reachability": self.reachability, "memory": self.memory}
        return named | {rollout.role: rollout for rollout in self.rollouts}

    def stop(self) -> None:
        """End all services."""
        for part in self.all():
            part.stop()
