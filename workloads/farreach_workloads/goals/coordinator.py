"""The coordinator: owns the parts, the counters and the clock of a run.

Two loops over the same parts: `lockstep.py` calls them in one fixed order, `overlapped.py` lets all
of them work at the same time. What they have in common is here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from farreach.actors.ratio import RatioController
from farreach.actors.services import Service, death_cause, fetch
from farreach.actors.supervisor import RestartPolicy
from farreach.actors.weights import WeightBoard
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.errors import ActorError
from farreach.stopping import Stopped, StopRequest
from farreach_workloads.goals import continuation
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.parts import Parts
from farreach_workloads.goals.report import Reporter

if TYPE_CHECKING:
    from farreach.rundir import RunDirectory
    from farreach_workloads.goals.config import GoalsRunConfig

SUCCESS = "evaluation/success_final"
NODES = "memory/nodes_"


@dataclass
class Counters:
    """What a run has done; saved with every checkpoint.

    Attributes:
        env_steps: policy and random steps together.
        walk_steps: random steps.
        walk_steps_at_refresh: random steps when the last refresh began.
        refreshes: of network, memory and graph.
        evaluated_at, saved_at, drawn_at: env_steps of the last evaluation, checkpoint, figures.
        train_s: seconds of training, without start-up, summed over resumes.
        evaluations: metrics of the last evaluations, newest last.
        ratio: steps and updates of the ratio controller.
        first_steps_with_nodes: category → env_steps at which the memory first held a node there.
    """

    env_steps: int = 0
    walk_steps: int = 0
    walk_steps_at_refresh: int = 0
    refreshes: int = 0
    evaluated_at: int = 0
    saved_at: int = 0
    drawn_at: int = 0
    train_s: float = 0.0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    ratio: list[int] = field(default_factory=lambda: [0, 0])
    first_steps_with_nodes: dict[str, int] = field(default_factory=dict)


class PartDied(Exception):  # noqa: N818 (a message to the loop, not to the user)
    """An actor that holds state has died; the run continues from its newest checkpoint."""

    def __init__(self, role: str, cause: str) -> None:
        """`role` died of `cause`."""
        super().__init__(role, cause)
        self.role, self.cause = role, cause


class Coordinator(ABC):
    """Runs the parts until training is done, the user stops it, or too much has died."""

    def __init__(
        self, config: GoalsRunConfig, run: RunDirectory, reporter: Reporter, stop: StopRequest
    ) -> None:
        """Start the parts; `begin` or `restore` must follow."""
        self._config, self._run, self._reporter, self._stop = config, run, reporter, stop
        self._store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
        self._policy = RestartPolicy(config.runtime.max_restarts)
        self._incarnations = 0
        self._begun = time.monotonic()
        self._fragment = config.environment.num_envs * config.phases.policy_steps
        self._start_parts()

    def _start_parts(self) -> None:
        self._parts = Parts(self._config)
        if self._parts.pids:
            self._run.event("actors", pids=self._parts.pids)
        self._board = WeightBoard()
        self._counters = Counters()
        self._visits = np.zeros(0, np.int64)
        self._saved_time = time.monotonic()
        actors = self._config.runtime.rollout_actors
        self._ratio = RatioController(
            self._config.agent.updates_per_policy_step, (actors + 1) * self._fragment
        )

    # ---------------------------------------------------------------- start, save, restore

    def begin(self) -> None:
        """First random walks, first network, first memory, first checkpoint.

        Raises:
            ActorError: a part died, and there is nothing to go back to.
        """
        try:
            self._begin()
        except PartDied as death:
            raise ActorError(_nothing_to_go_back_to(death)) from death

    def _begin(self) -> None:
        parts = self._parts
        share = -(-self._config.phases.initial_random_steps // len(parts.rollouts))
        firsts = [rollout.call("first_walks", share, returns=2) for rollout in parts.rollouts]
        for rollout, (walks, info) in zip(parts.rollouts, firsts, strict=True):
            self._take_walks(walks, self._fetch(rollout.role, info))
        start = continuation.load(self._config) if self._config.start.run is not None else None
        if start is not None:
            self._tell(parts.reachability, "begin_with", start.scale, start.unit)
            walks = start.walks_message()
            self._tell(parts.reachability, "add", walks)
            self._tell(parts.memory, "add", walks)
        weights, metrics = parts.reachability.call("refresh", returns=2)
        self._report(self._fetch("reachability", metrics))
        self._new_bundle(*parts.memory.call("integrate", weights, returns=2))
        if start is not None:
            pieces = (start.agent, start.observations, start.actions)
            self._tell(parts.learner, "begin_with", *pieces)
        self._board.publish("policy", parts.learner.call("policy"))
        self.save()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        content = checkpoint.parts()
        parts = self._parts
        mine = content["coordinator"]
        self._counters = Counters(**mine["counters"])
        self._ratio.steps, self._ratio.updates = self._counters.ratio
        self._visits = np.array(mine["visits"])
        for part in (parts.learner, parts.reachability, parts.memory):
            self._tell(part, "restore", content[part.role])
        for rollout in parts.rollouts:
            # A run that continues with more actors gives the new ones a fresh start.
            if rollout.role in content:
                self._tell(rollout, "restore", content[rollout.role])
        bundle = Bundle.from_arrays(content["learner"]["bundle"])
        self._board.publish("bundle", self._shared(bundle))
        self._board.publish("policy", parts.learner.call("policy"))
        self._saved_time = time.monotonic()
        self._reporter.restored(self._counters.env_steps, bundle)

    def save(self) -> None:
        """Write a checkpoint of everything; nothing may be in flight."""
        counters = self._counters
        counters.saved_at = counters.env_steps
        counters.ratio = [self._ratio.steps, self._ratio.updates]
        states = {name: part.call("state") for name, part in self._parts.stateful().items()}
        content: dict[str, Any] = {name: self._fetch(name, state) for name, state in states.items()}
        content["coordinator"] = {"counters": asdict(counters), "visits": self._visits}
        last = counters.evaluations[-1] if counters.evaluations else {}
        info = {"env_steps": counters.env_steps, "updates": self._ratio.updates}
        score = last.get(SUCCESS)
        path = self._store.save(content, step=counters.env_steps, info=info, score=score)
        self._saved_time = time.monotonic()
        self._reporter.flush()
        self._run.event("checkpoint", path=path.name, **info)

    def _shared(self, value: Any) -> Any:
        return ray.put(value) if self._config.runtime.placement == "actor" else value

    def _fetch(self, role: str, result: Any) -> Any:
        try:
            return fetch(result)
        except ray.exceptions.RayActorError as error:
            raise PartDied(role, death_cause(error)) from error

    def _tell(self, part: Service, method: str, *arguments: Any) -> None:
        """Call a method for its effect, and raise what it raises."""
        self._fetch(part.role, part.call(method, *arguments))

    @abstractmethod
    def _loop(self) -> None:
        """Train until `_finished`, evaluate a last time; raises PartDied and Stopped."""

    # ---------------------------------------------------------------- what both loops do

    def run(self) -> dict[str, float]:
        """Train to the end; the final metrics.

        Raises:
            Stopped: the user asked for it; a last checkpoint is written.
            ActorError: a part died more often than the restart policy allows.
        """
        while True:
            try:
                self._loop()
                self.save()
                return self._final_metrics()
            except PartDied as death:  # noqa: PERF203 (once per death)
                self._recover(death)

    def _recover(self, death: PartDied) -> None:
        """Go on from the newest checkpoint with new parts; they too may die meanwhile."""
        reached, pending = self._counters.env_steps, [death]
        while pending:
            death = pending.pop()
            self._died(death.role, death.cause)
            checkpoint = self._store.newest()
            if checkpoint is None:
                raise ActorError(_nothing_to_go_back_to(death))
            self._parts.stop()
            self._start_parts()
            try:
                self.restore(checkpoint)
            except PartDied as again:
                pending.append(again)
        lost = reached - self._counters.env_steps
        self._run.event("recovered", role=death.role, lost_env_steps=lost)
        self._reporter.log(f"{death.role} is back; {lost:,} environment steps are done again")

    def _died(self, role: str, cause: str) -> None:
        self._run.event("actor_died", role=role, cause=cause)
        self._reporter.log(f"{role} died: {cause}")
        if not self._policy.allows(role, time.monotonic()):
            raise ActorError(
                f"{role} died more than {self._policy.max_restarts} times within "
                f"{self._policy.window_s:g} s, the last time: {cause}. Raise "
                "runtime.max_restarts if the machines are that unreliable."
            )

    @property
    def _progress(self) -> float:
        """Share of training that is done, by steps or by time, whichever is further."""
        training = self._config.training
        share = self._counters.env_steps / training.env_steps
        if training.max_minutes is not None:
            share = max(share, self._elapsed() / (60 * training.max_minutes))
        return min(1.0, share)

    def _elapsed(self) -> float:
        return self._counters.train_s + time.monotonic() - self._begun

    def _finished(self) -> bool:
        return self._progress >= 1 or self._succeeded()

    def _succeeded(self) -> bool:
        """Whether the mean of the last evaluations is good enough to stop early."""
        settings = self._config.evaluation
        last = self._counters.evaluations[-settings.last :]
        if settings.stop_success is None or len(last) < settings.last:
            return False
        means = mean_metrics(last)
        worst = [v for k, v in means.items() if k.startswith(f"{SUCCESS}_")] or [means[SUCCESS]]
        return means[SUCCESS] >= settings.stop_success and min(worst) >= settings.stop_worst

    def _take_walks(self, walks: Any, info: Mapping[str, Any]) -> None:
        """Hand random walks on and count what they cost."""
        self._tell(self._parts.reachability, "add", walks)
        self._tell(self._parts.memory, "add", walks)
        counters = self._counters
        counters.walk_steps += info["walk_steps"]
        counters.env_steps += info["walk_steps"] + info["policy_steps"]
        visits = info["visits"]
        self._visits = visits + self._visits if len(self._visits) else visits
        self._reporter.count("env_steps", info["walk_steps"] + info["policy_steps"])
        self._reporter.rollout(counters.env_steps, info["metrics"])

    def _refresh_due(self) -> bool:
        counters = self._counters
        since = counters.walk_steps - counters.walk_steps_at_refresh
        return since >= self._config.reachability.refresh_every_steps

    def _new_bundle(self, bundle: Any, metrics: Any) -> None:
        """Publish a bundle to everybody who reads one."""
        self._counters.refreshes += 1
        found = self._fetch("memory", metrics)
        self._report(found)
        for name, value in found.items():
            if name.startswith(NODES) and value > 0:
                first = self._counters.first_steps_with_nodes
                first.setdefault(name.removeprefix(NODES), self._counters.env_steps)
        self._board.publish("bundle", bundle)
        self._tell(self._parts.learner, "set_bundle", bundle)

    def _updated(self, metrics: Mapping[str, float], weights: Any, count: int) -> None:
        self._board.publish("policy", weights)
        self._reporter.count("updates", count)
        self._reporter.learner(self._counters.env_steps, metrics)

    def _evaluated(self, at: int, metrics: dict[str, float], outcome: Any) -> None:
        counters = self._counters
        counters.evaluations.append(metrics)
        del counters.evaluations[: -max(self._config.evaluation.last, 3)]
        self._report(metrics, at)
        self._reporter.evaluated(at, metrics)
        due = at - counters.drawn_at >= self._config.training.figures_every_steps
        if due or self._finished():
            counters.drawn_at = at
            bundle = fetch(self._board.newest("bundle").value)
            self._reporter.figures(at, bundle, fetch(outcome), self._visits)

    def _report(self, metrics: Mapping[str, float], at: int | None = None) -> None:
        self._reporter.scalars(self._counters.env_steps if at is None else at, metrics)

    def _stop_if_asked(self) -> None:
        if self._stop.signum is not None:
            self._counters.train_s = self._elapsed()
            self.save()
            raise Stopped(self._stop.signum)

    def _final_metrics(self) -> dict[str, float]:
        counters = self._counters
        final = mean_metrics(counters.evaluations[-self._config.evaluation.last :])
        bundle = fetch(self._board.newest("bundle").value)
        self._reporter.final(counters.env_steps)
        totals = {
            "training/env_steps": counters.env_steps,
            "training/updates": self._ratio.updates,
            "training/refreshes": counters.refreshes,
            "training/minutes": counters.train_s / 60,
            "memory/nodes": len(bundle),
        }
        for name, at in counters.first_steps_with_nodes.items():
            totals[f"memory/first_env_steps_{name}"] = at
        return final | {name: float(value) for name, value in totals.items()}

    def _evaluate_now(self) -> None:
        at = self._counters.evaluated_at = self._counters.env_steps
        newest = (self._board.newest("policy").value, self._board.newest("bundle").value)
        metrics, outcome = self._parts.evaluator.call("evaluate", *newest, returns=2)
        self._evaluated(at, self._fetch("evaluator", metrics), outcome)

    def stop(self) -> None:
        """End all parts."""
        self._parts.stop()


def _nothing_to_go_back_to(death: PartDied) -> str:
    return (
        f"{death.role} died before the first checkpoint: {death.cause}. "
        "Start the run again; if it dies again, look at its log with FARREACH_DEBUG=1."
    )


def mean_metrics(evaluations: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over evaluations, {} for none."""
    names = evaluations[-1] if evaluations else {}
    return {n: float(np.mean([e[n] for e in evaluations if n in e])) for n in names}
