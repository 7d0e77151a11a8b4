"""The coordinator: owns the parts, the counters and the clock of a run.

Two loops over the same parts. `run_sync` calls them in one fixed order, so a run is bit-equal for
a seed wherever the parts live. `run_async` lets all of them work at the same time: rollouts
collect while the learner updates, network and memory refresh while both go on, and the only
coupling is the ratio of updates to steps and the bundle that everybody reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from farreach.actors.ratio import RatioController
from farreach.actors.services import ActorService, Service, death_cause, fetch, user_error
from farreach.actors.supervisor import RestartPolicy
from farreach.actors.weights import WeightBoard
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.errors import ActorError
from farreach.launch import Stopped, StopRequest
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.parts import Parts
from farreach_workloads.goals.report import Reporter

if TYPE_CHECKING:
    from farreach.rundir import RunDirectory
    from farreach_workloads.goals.config import GoalsRunConfig

LEARNER_CALLS_IN_FLIGHT = 2  # the second one waits in the actor, so the learner never idles
POLL_S = 0.2
SUCCESS = "evaluation/success_final"


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


class Coordinator:
    """Runs the parts until training is done, the user stops it, or too much has died."""

    def __init__(
        self, config: GoalsRunConfig, run: RunDirectory, reporter: Reporter, stop: StopRequest
    ) -> None:
        """Start the parts; `begin` or `restore` must follow."""
        self._config, self._run, self._reporter, self._stop = config, run, reporter, stop
        self._store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
        self._policy = RestartPolicy(config.runtime.max_restarts)
        self._incarnations = 0
        self._fragment = config.environment.num_envs * config.phases.policy_steps
        self._start_parts()

    def _start_parts(self) -> None:
        self._parts = Parts(self._config)
        if self._parts.pids:
            self._run.event("actors", pids=self._parts.pids)
        self._board = WeightBoard()
        self._counters = Counters()
        self._visits = np.zeros(0, np.int64)
        # Result → what to do when it arrives; None while calls are answered one by one.
        self._flight: dict[Any, Callable[[Any], Any]] | None = None
        self._saved_time = time.monotonic()
        actors = self._config.runtime.rollout_actors
        self._ratio = RatioController(
            self._config.agent.updates_per_policy_step, (actors + 1) * self._fragment
        )

    # ---------------------------------------------------------------- start, save, restore

    def begin(self) -> None:
        """First random walks, first network, first memory, first checkpoint."""
        parts = self._parts
        share = -(-self._config.phases.initial_random_steps // len(parts.rollouts))
        firsts = [rollout.call("first_walks", share, returns=2) for rollout in parts.rollouts]
        for walks, info in firsts:
            self._take_walks(walks, fetch(info))
        weights, metrics = parts.reachability.call("refresh", returns=2)
        self._report(fetch(metrics))
        self._new_bundle(*parts.memory.call("integrate", weights, returns=2))
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
        fetch(parts.learner.call("restore", content["learner"]))
        fetch(parts.reachability.call("restore", content["reachability"]))
        fetch(parts.memory.call("restore", content["memory"]))
        for rollout in parts.rollouts:
            # A run that continues with more actors gives the new ones a fresh start.
            if rollout.role in content:
                fetch(rollout.call("restore", content[rollout.role]))
        bundle = Bundle.from_arrays(content["learner"]["bundle"])
        self._board.publish("bundle", self._shared(bundle))
        self._board.publish("policy", parts.learner.call("policy"))
        self._saved_time = time.monotonic()
        self._reporter.restored(self._counters.env_steps, bundle, self._visits)

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
        """Call a method for its effect; what it raises is raised here, at once or on arrival."""
        result = part.call(method, *arguments)
        if self._flight is None:
            self._fetch(part.role, result)
        else:
            self._flight[result] = lambda reference: self._fetch(part.role, reference)

    # ---------------------------------------------------------------- what both loops do

    def run(self) -> dict[str, float]:
        """Train to the end; the final metrics.

        Raises:
            Stopped: the user asked for it; a last checkpoint is written.
            ActorError: a part died more often than the restart policy allows.
        """
        while True:
            try:
                loop = self._run_sync if self._config.runtime.mode == "sync" else self._run_async
                loop()
                self.save()
                return self._final_metrics()
            except PartDied as death:
                self._recover(death)

    def _recover(self, death: PartDied) -> None:
        """Go on from the newest checkpoint with new parts."""
        self._died(death.role, death.cause)
        checkpoint = self._store.newest()
        if checkpoint is None:
            raise ActorError(
                f"{death.role} died before the first checkpoint: {death.cause}. "
                "Start the run again; if it dies again, look at its log with FARREACH_DEBUG=1."
            )
        lost = self._counters.env_steps - int(checkpoint.info["env_steps"])
        self._parts.stop()
        self._start_parts()
        self.restore(checkpoint)
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
        self._report(self._fetch("memory", metrics))
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
        for name, value in metrics.items():
            if name.startswith("memory/nodes_") and value > 0:
                counters.first_steps_with_nodes.setdefault(name.removeprefix("memory/nodes_"), at)
        self._report(metrics, at)
        self._reporter.evaluated(at, metrics)
        if at - counters.drawn_at >= self._config.training.figures_every_steps:
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
        self._reporter.final(counters.env_steps, bundle, self._visits)
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

    # ---------------------------------------------------------------- sync

    def _run_sync(self) -> None:
        """Everything in one fixed order; time decides nothing but `training.max_minutes`."""
        self._begun = time.monotonic()
        parts, config, counters = self._parts, self._config, self._counters
        while not self._finished():
            self._stop_if_asked()
            newest = (self._board.newest("policy").value, self._board.newest("bundle").value)
            before = counters.env_steps
            collected = [r.call("collect", *newest, before, returns=3) for r in parts.rollouts]
            for rollout, (episodes, walks, info) in zip(parts.rollouts, collected, strict=True):
                self._tell(parts.learner, "add", episodes)
                self._take_walks(walks, self._fetch(rollout.role, info))
                self._ratio.request(self._fragment)
                self._ratio.collected(self._fragment)
            if self._refresh_due():
                counters.walk_steps_at_refresh = counters.walk_steps
                weights, metrics = parts.reachability.call("refresh", returns=2)
                self._report(self._fetch("reachability", metrics))
                self._new_bundle(*parts.memory.call("integrate", weights, returns=2))
            while (count := min(self._ratio.due, config.runtime.learner_chunk)) > 0:
                result = parts.learner.call("update", count, self._progress, returns=2)
                self._ratio.hand_out(count)
                self._updated(self._fetch("learner", result[0]), result[1], count)
            if counters.env_steps - counters.evaluated_at >= config.evaluation.every_steps:
                self._evaluate_now()
            if counters.env_steps - counters.saved_at >= config.training.checkpoint_every_steps:
                self.save()
            self._reporter.progress(counters.env_steps, self._progress)
        if counters.evaluated_at < counters.env_steps:
            self._evaluate_now()
        counters.train_s = self._elapsed()

    def _evaluate_now(self) -> None:
        at = self._counters.evaluated_at = self._counters.env_steps
        newest = (self._board.newest("policy").value, self._board.newest("bundle").value)
        metrics, outcome = self._parts.evaluator.call("evaluate", *newest, returns=2)
        self._evaluated(at, self._fetch("evaluator", metrics), outcome)

    # ---------------------------------------------------------------- async

    def _run_async(self) -> None:
        """All parts at once; this loop only hands out work and takes in small messages."""
        self._begun = time.monotonic()
        self._flight = {}
        self._idle = list(range(len(self._parts.rollouts)))
        self._busy: dict[str, int] = {"learner": 0, "refresh": 0, "evaluator": 0}
        while not self._finished():
            if self._stop.signum is not None or self._save_due():
                self._drain()
                self._stop_if_asked()
                self._counters.train_s, self._begun = self._elapsed(), time.monotonic()
                self.save()
            self._dispatch()
            self._take_in(POLL_S)
            self._reporter.progress(self._counters.env_steps, self._progress)
        self._drain()
        self._flight = None
        if self._counters.evaluated_at < self._counters.env_steps:
            self._evaluate_now()
        self._counters.train_s = self._elapsed()

    def _save_due(self) -> bool:
        """Time for a checkpoint, and nothing long is running that it would have to wait for."""
        due = time.monotonic() - self._saved_time >= self._config.training.checkpoint_every_s
        return due and not self._busy["refresh"] and not self._busy["evaluator"]

    def _drain(self) -> None:
        """Hand out nothing and wait until everything in flight has arrived."""
        while self._flight:
            self._take_in(POLL_S)

    def _dispatch(self) -> None:
        parts, config, counters = self._parts, self._config, self._counters
        policy, bundle = (self._board.newest(name).value for name in ("policy", "bundle"))
        while self._idle and self._ratio.may_collect:
            self._collect(self._idle.pop(0), policy, bundle)
        while self._busy["learner"] < LEARNER_CALLS_IN_FLIGHT:
            count = min(self._ratio.due, config.runtime.learner_chunk)
            if count < config.runtime.learner_chunk:
                break
            self._ratio.hand_out(count)
            self._busy["learner"] += 1
            metrics, weights = parts.learner.call("update", count, self._progress, returns=2)
            self._flight[metrics] = self._on_update(weights, count)
        if self._refresh_due() and not self._busy["refresh"]:
            counters.walk_steps_at_refresh = counters.walk_steps
            self._busy["refresh"] = 1
            weights, metrics = parts.reachability.call("refresh", returns=2)
            self._flight[metrics] = self._on_network(weights)
        evaluation_due = counters.env_steps - counters.evaluated_at >= config.evaluation.every_steps
        if evaluation_due and not self._busy["evaluator"]:
            at = counters.evaluated_at = counters.env_steps
            self._busy["evaluator"] = 1
            metrics, outcome = parts.evaluator.call("evaluate", policy, bundle, returns=2)
            self._flight[metrics] = self._on_evaluation(at, outcome)

    def _collect(self, index: int, policy: Any, bundle: Any) -> None:
        rollout = self._parts.rollouts[index]
        self._ratio.request(self._fragment)
        result = rollout.call("collect", policy, bundle, self._counters.env_steps, returns=3)
        self._flight[result[2]] = self._on_fragment(index, result[0], result[1])

    def _take_in(self, timeout_s: float) -> None:
        """Wait for the first result and act on all that are there."""
        if not self._flight:
            time.sleep(timeout_s / 10)
            return
        pending = list(self._flight)
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout_s)
        more, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        for reference in dict.fromkeys([*ready, *more]):
            self._flight.pop(reference)(reference)

    def _on_fragment(self, index: int, episodes: Any, walks: Any) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._idle.append(index)
            try:
                info = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                self._replace_rollout(index, death_cause(error))
                return
            except ray.exceptions.RayTaskError as error:
                raise user_error(error) from error
            self._tell(self._parts.learner, "add", episodes)
            self._take_walks(walks, info)
            self._ratio.collected(self._fragment)

        return arrived

    def _on_update(self, weights: Any, count: int) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._busy["learner"] -= 1
            self._updated(self._fetch("learner", reference), weights, count)

        return arrived

    def _on_network(self, weights: Any) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._report(self._fetch("reachability", reference))
            bundle, metrics = self._parts.memory.call("integrate", weights, returns=2)
            self._flight[metrics] = self._on_bundle(bundle)

        return arrived

    def _on_bundle(self, bundle: Any) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._busy["refresh"] = 0
            self._new_bundle(bundle, reference)

        return arrived

    def _on_evaluation(self, at: int, outcome: Any) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._busy["evaluator"] = 0
            try:
                metrics = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                self._died("evaluator", death_cause(error))
                self._parts.evaluator = self._parts.start_evaluator()
                return
            except ray.exceptions.RayTaskError as error:
                raise user_error(error) from error
            self._evaluated(at, metrics, outcome)

        return arrived

    def _replace_rollout(self, index: int, cause: str) -> None:
        """A rollout holds nothing that matters: its running episodes are lost, and that is all."""
        self._ratio.lost(self._fragment)
        self._died(self._parts.rollouts[index].role, cause)
        self._incarnations += 1
        incarnation = self._incarnations + 1000 * self._counters.refreshes
        rollout: Service = self._parts.start_rollout(index, incarnation)
        self._parts.rollouts[index] = rollout
        assert isinstance(rollout, ActorService)
        self._run.event("actors", pids={rollout.role: rollout.wait_until_ready()})

    def stop(self) -> None:
        """End all parts."""
        self._parts.stop()


def mean_metrics(evaluations: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over evaluations, {} for none."""
    names = evaluations[-1] if evaluations else {}
    return {n: float(np.mean([e[n] for e in evaluations if n in e])) for n in names}
