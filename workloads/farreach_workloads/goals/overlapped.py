"""The overlapped loop: all parts work at the same time.

Rollouts collect while the learner updates, network and memory refresh while both go on. The only
couplings are the ratio of updates to steps and the bundle that everybody reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from farreach.actors.services import ActorService, Service, death_cause, user_error
from farreach_workloads.goals.coordinator import Coordinator, PartDied

LEARNER_CALLS_IN_FLIGHT = 2  # the second one waits in the actor, so the learner never idles
POLL_S = 0.2


class Overlapped(Coordinator):
    """Hands out work and takes in small messages; see `Coordinator`."""

    _overlapping = False

    def _tell(self, part: Service, method: str, *arguments: Any) -> None:
        """Call a method for its effect; while parts overlap, what it raises comes on arrival."""
        if not self._overlapping:
            super()._tell(part, method, *arguments)
            return
        result = part.call(method, *arguments)
        self._flight[result] = lambda reference: self._fetch(part.role, reference)

    def _loop(self) -> None:
        """All parts at once; this loop only hands out work and takes in small messages."""
        self._begun = time.monotonic()
        self._flight: dict[Any, Callable[[Any], Any]] = {}
        self._overlapping = True
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
        self._overlapping = False
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

    def _recover(self, death: PartDied) -> None:
        self._overlapping = False
        super()._recover(death)

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
