"""The coordinator: owns the parts, the counters and the clock of a run.

Two loops over the same parts: `lockstep.py` calls them in one fixed order, `overlapped.py` lets all
of them work at the same time. What they have in common is here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from farreach.actors.ratio import RatioController
from farreach.actors.services import DEATHS, LOSSES, Service, fetch
from farreach.actors.weights import Loans, WeightBoard
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.errors import ActorError, CheckpointError, FarreachError
from farreach.saver import Saved, Saver
from farreach.stopping import Stopped, StopRequest
from farreach_workloads.goals import continuation, experience
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.counters import SUCCESS, Counters, mean_metrics
from farreach_workloads.goals.deaths import Deaths
from farreach_workloads.goals.parts import PartDied, Parts
from farreach_workloads.goals.report import Reporter
from farreach_workloads.goals.rollout import guide_for_rollouts
from farreach_workloads.goals.stores import Draw, Stores

if TYPE_CHECKING:
    from farreach.rundir import RunDirectory
    from farreach_workloads.goals.config import GoalsRunConfig

NODES = "memory/nodes_"


class Coordinator(ABC):
    """Runs the parts until training is done, the user stops it, or too much has died."""

    _rollout_calls = 1  # of each at a time

    def __init__(
        self, config: GoalsRunConfig, run: RunDirectory, reporter: Reporter, stop: StopRequest
    ) -> None:
        """Start the parts; `begin` or `go_on` must follow.

        Raises:
            ActorError: a part died more often than the restart policy allows.
        """
        self._config, self._run, self._reporter, self._stop = config, run, reporter, stop
        self._store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
        self._saver = Saver(self._store)
        self._deaths = Deaths(config, run, reporter.log)
        self._guard = self._deaths.guard
        self._begun = time.monotonic()
        self._fragment = config.environment.num_envs * config.phases.policy_steps
        self._start_parts()

    def _start_parts(self) -> None:
        """All of them, with nothing in them; those that were there have ended."""
        while True:
            try:
                self._parts = Parts(self._config)
                break
            except PartDied as death:
                self._deaths.before_all(death)
        self._stores = Stores(self._parts, self._config)
        self._deaths.watch(self._parts.places)
        self._reset()

    def _reset(self, incarnations: int = 0) -> None:
        """Forget what was done, but for the numbers that rollouts have had which go on."""
        self._board, self._loans = WeightBoard(), Loans(self._rollout_calls)
        self._counters = Counters(incarnations=incarnations)
        self._visits = np.zeros(0, np.int64)
        self._saved_time = time.monotonic()
        actors = self._config.runtime.rollout_actors
        self._ratio = RatioController(
            self._config.agent.updates_per_policy_step, (actors + 1) * self._fragment
        )

    # ---------------------------------------------------------------- start, save, restore

    def begin(self) -> None:
        """First random walks, first network, first memory, first checkpoint.

        If a part dies meanwhile all begin anew.

        Raises:
            ActorError: a part died more often than the restart policy allows.
        """
        while True:
            try:
                self._begin()
                return
            except PartDied as death:  # noqa: PERF203 (once per death)
                self._deaths.before_all(death)
                self._guard.forget([part.role for part in self._parts.all()])
                self._parts.stop()
                self._start_parts()

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint; raises as `begin` does."""
        try:
            self._restore(checkpoint)
        except PartDied as death:
            self._recover(death)

    def _begin(self) -> None:
        parts = self._parts
        rollouts = parts.ready()
        share = -(-self._config.phases.initial_random_steps // len(rollouts))
        firsts = [rollout.call("first_walks", share, returns=2) for rollout in rollouts]
        for rollout, (walks, info) in zip(rollouts, firsts, strict=True):
            self._take_walks(walks, self._fetch(rollout.role, info))
        start = continuation.load(self._config) if self._config.start.run is not None else None
        if start is not None:
            self._tell(parts.reachability, "begin_with", start.scale, start.unit)
            walks = start.walks_message()
            self._tell(parts.reachability, "add", walks)
            self._tell(parts.memory, "add", walks)
        weights, metrics = parts.reachability.call("refresh", returns=2)
        self._report(self._fetch("reachability", metrics))
        self._new_bundle(*parts.memory.call("integrate", weights, returns=3))
        if start is not None:
            self._tell(parts.learner, "begin_with", start.agent)
            stores = parts.shards or [parts.learner]
            for index, store in enumerate(stores):
                own = slice(index, None, len(stores))
                self._tell(store, "take_over", start.observations[own], start.actions[own])
                self._stores.added(store.role, len(start.observations[own]))
        self._board.publish("policy", parts.learner.call("policy"))
        self.save()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Give all parts what a checkpoint has of them."""
        content = experience.dealt_out(checkpoint.parts(), self._config)
        mine = content["coordinator"]
        incarnations = self._counters.incarnations
        self._counters = Counters(**mine["counters"])
        self._counters.incarnations = max(incarnations, self._counters.incarnations)
        self._ratio.steps, self._ratio.updates = self._counters.ratio
        self._visits = np.array(mine["visits"])
        bundle = self._fill(self._to_restore(), content)
        self._saved_time = time.monotonic()
        self._reporter.restored(self._counters.env_steps, bundle)

    def _to_restore(self) -> list[Service]:
        """Parts that get their states from a checkpoint that all go back to."""
        return self._parts.all()

    def _fill(self, parts: Iterable[Service], content: Mapping[str, Any]) -> Bundle:
        """Give parts the states of a checkpoint, and publish what it holds for all; its bundle."""
        bundle = Bundle.from_arrays(content["learner"]["bundle"])
        shared = self._shared(bundle)
        for part in parts:
            # Of a part that has no room yet nobody waits for the answer.
            tell = partial(self._tell, part) if part.is_ready else part.call
            if part.role in content:
                more = (shared,) if part in self._parts.shards else ()
                tell("restore", content[part.role], *more)
            elif part in self._parts.rollouts:  # it is new, or was just starting or dying then
                tell("begin_anew", self._next_incarnation())
        self._stores.restored(content)
        self._board.publish("bundle", shared)
        self._board.publish("guide", self._shared(guide_for_rollouts(bundle, self._config)))
        self._board.publish("policy", self._parts.learner.call("policy"))
        return bundle

    def save(self) -> Path:
        """Write a checkpoint of everything, its folder; nothing may be in flight."""
        self._begin_save()
        [saved] = self._tell_of(self._saver.wait())
        return saved.path

    def _begin_save(self) -> None:
        """Take a checkpoint of everything, and have it written beside what comes next."""
        counters = self._counters
        counters.saved_at = counters.env_steps
        counters.ratio = [self._ratio.steps, self._ratio.updates]
        last = counters.take_evaluation()
        states = [(part, part.call("state")) for part in self._parts.stateful()]
        taken = {part.role: self._take_state(part, state) for part, state in states}
        content = {role: state for role, state in taken.items() if state is not None}
        content["coordinator"] = {"counters": asdict(counters), "visits": self._visits}
        info = {"env_steps": counters.env_steps, "updates": self._ratio.updates}
        step, score = counters.env_steps, last.get(SUCCESS)
        before = self._saver.begin(content, step=step, info=info, score=score)
        self._saved_time = time.monotonic()
        self._tell_of(before)

    def _tell_of(self, checkpoints: list[Saved]) -> list[Saved]:
        """Note down which checkpoints are complete."""
        for saved in checkpoints:
            self._reporter.flush()
            self._run.event("checkpoint", path=saved.path.name, **saved.info)
        return checkpoints

    def _tend(self) -> None:
        """Look after the machines, and after the checkpoint that is being written."""
        self._guard.tend()
        self._tell_of(self._saver.done())

    def _take_state(self, part: Service, state: Any) -> Any:
        """The state of a part for a checkpoint; None if there shall be none."""
        return self._fetch(part.role, state)

    def _next_incarnation(self) -> int:
        """A number that no rollout had whose messages the learner knows."""
        self._counters.incarnations += 1
        return self._counters.incarnations

    def _move(self, roles: Sequence[str]) -> None:
        """Have parts go on elsewhere, from a checkpoint of now; nothing may be in flight.

        Args:
            roles: whose machines are about to leave.
        """
        begun = time.monotonic()
        path = self.save()
        try:
            content = CheckpointStore.load(path).parts()
        except CheckpointError as error:
            raise PartDied(roles[0], error) from error
        self._guard.forget(roles)
        self._fill(self._restart(roles), content)
        took_s = round(time.monotonic() - begun, 1)
        self._run.event("moved", roles=list(roles), seconds=took_s, lost_env_steps=0)
        self._reporter.log(f"{', '.join(roles)} went on elsewhere; nothing is done again")

    def _restart(self, roles: Sequence[str]) -> list[Service]:
        """Parts in place of others, watched, with nothing in them."""
        for role in roles:
            self._loans.forget(role)
        started = self._parts.restart(roles)
        self._deaths.watch({part.role: part.place for part in started if part.place is not None})
        return started

    def _shared(self, value: Any) -> Any:
        return ray.put(value) if self._config.runtime.placement == "actor" else value

    def _fetch(self, role: str, result: Any) -> Any:
        try:
            return fetch(result)
        except (*DEATHS, *LOSSES) as error:
            raise PartDied(role, error) from error

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
        """Go on from the newest checkpoint, with another part; it too may die meanwhile."""
        begun, pending = time.monotonic(), [death]
        reached, updates = self._counters.env_steps, self._ratio.updates
        while pending:
            death = pending.pop()
            self._tell_of(self._saver.wait())
            checkpoint = self._store.newest()
            if checkpoint is None:
                raise ActorError(self._deaths.nothing_to_go_back_to(death))
            step, before = checkpoint.step, int(checkpoint.info["updates"])
            lost = f"{reached - step:,} environment steps and {updates - before:,} updates "
            lost += "since the last checkpoint"
            then = f"all parts go back to the checkpoint at step {step:,}"
            gone = self._deaths.gone_with(death, lost, then)
            self._reset(self._counters.incarnations)
            try:
                self._restart(gone)
                self._restore(checkpoint)
            except PartDied as again:
                pending.append(again)
        lost_steps, took_s = reached - self._counters.env_steps, time.monotonic() - begun
        self._run.event(
            "recovered", role=death.role, lost_env_steps=lost_steps, seconds=round(took_s, 1)
        )
        self._reporter.log(f"{death.role} is back; {lost_steps:,} environment steps are done again")

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

    def _new_bundle(self, bundle: Any, guide: Any, metrics: Any) -> None:
        """Publish a bundle to everybody who reads one, and its guide to the rollouts."""
        self._counters.refreshes += 1
        found = self._fetch("memory", metrics)
        self._report(found)
        for name, value in found.items():
            if name.startswith(NODES) and value > 0:
                first = self._counters.first_steps_with_nodes
                first.setdefault(name.removeprefix(NODES), self._counters.env_steps)
        self._board.publish("bundle", bundle)
        self._board.publish("guide", guide)
        for part in (self._parts.learner, *self._parts.shards):
            self._tell(part, "set_bundle", bundle)

    def _call_rollout(self, rollout: Service, policy: Any, guide: Any) -> Any:
        """Have a fragment collected with these; references to episodes, walks and information."""
        policy, guide = (
            self._loans.box(rollout.role, name, value)
            for name, value in (("policy", policy), ("guide", guide))
        )
        return rollout.call("collect_newest", policy, guide, self._counters.env_steps, returns=3)

    def _add(self, rollout: int, episodes: Any) -> None:
        """Hand the episodes of a rollout to where they are kept."""
        store = self._stores.store_of(rollout)
        self._tell(store, "add", episodes)
        self._stores.added(store.role, self._config.environment.num_envs)

    def _update(self, count: int) -> tuple[list[Draw], Any, Any]:
        """Have the learner take updates; what it needs for that, its metrics, and the weights."""
        draws = self._stores.draw(count)
        rows = [draw.rows for draw in draws]
        learner = self._parts.learner
        return draws, *learner.call("update", count, self._progress, *rows, returns=2)

    def _updates(self, draws: Sequence[Draw], metrics: Any) -> dict[str, float]:
        """Metrics of updates that are done; raises for the shard that has not drawn, if any."""
        for draw in draws:
            self._fetch(draw.role, draw.told)
        found: dict[str, float] = self._fetch("learner", metrics)
        return found

    def _updated(self, metrics: Mapping[str, float], weights: Any, count: int) -> None:
        self._board.publish("policy", weights)
        self._reporter.count("updates", count)
        self._reporter.reached({"training/updates": float(self._ratio.updates)})
        self._reporter.learner(self._counters.env_steps, metrics)

    def _evaluated(self, at: int, metrics: dict[str, float], outcome: Any) -> None:
        counters = self._counters
        counters.add_evaluation(at, metrics, max(self._config.evaluation.last, 3))
        self._report(metrics, at)
        self._reporter.evaluated(at, metrics)
        due = at - counters.drawn_at >= self._config.training.figures_every_steps
        if due or self._finished():
            counters.drawn_at = at
            bundle = self._fetch("memory", self._board.newest("bundle").value)
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
        bundle = self._fetch("memory", self._board.newest("bundle").value)
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
        begun = time.monotonic()
        metrics, outcome = self._parts.evaluator.call("evaluate", *newest, returns=2)
        self._evaluated(at, self._fetch("evaluator", metrics), outcome)
        self._report({"evaluation/seconds": time.monotonic() - begun}, at)

    def stop(self) -> None:
        """End all parts, and what is still being written."""
        with suppress(FarreachError):  # whatever ended the run tells more
            self._tell_of(self._saver.wait())
        self._saver.close()
        self._parts.stop()
        self._guard.close()
