"""The overlapped loop: all parts work at the same time.

Rollouts collect while the learner updates, network and memory refresh while both go on. The only
couplings are the ratio of updates to steps and the bundle that everybody reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from farreach.actors.services import DEATHS, LOSSES, ActorService, Service, fetch
from farreach.actors.weights import Published
from farreach_workloads.goals.coordinator import Coordinator
from farreach_workloads.goals.parts import PartDied
from farreach_workloads.goals.stores import Draw

LEARNER_CALLS_IN_FLIGHT = 2  # the second one waits in the actor, so the learner never idles
POLL_S = 0.2
EVALUATOR = -1  # among the numbers of rollouts that start
# Seconds between two looks at how busy the parts are, and those that each part adds.
FACTS_EVERY_S, FACTS_EACH_S = 10.0, 0.05


class Overlapped(Coordinator):
    """Hands out work and takes in small messages; see `Coordinator`."""

    # The second one waits in the actor as well. There is one only while the learner waits for data:
    # its weights are older by a fragment.
    _rollout_calls = 2
    _overlapping = _is_under_way = False
    _evaluation: Any = None  # what the one that is under way gives

    def _tell(self, part: Service, method: str, *arguments: Any) -> None:
        """Call a method for its effect; while parts overlap, what it raises comes on arrival."""
        if not self._overlapping:
            super()._tell(part, method, *arguments)
            return
        result = part.call(method, *arguments)
        self._flight[result] = lambda reference: self._told(part.role, method, reference)

    def _told(self, role: str, method: str, reference: Any) -> None:
        """Take note that a call for its effect is done; what it was to store may be lost."""
        try:
            self._fetch(role, reference)
        except PartDied as death:
            if method != "add" or not isinstance(death.error, LOSSES):
                raise
            self._run.event("lost", role=role, what="a part of a fragment, with its machine")
            self._stores.lost(role, self._config.environment.num_envs)

    def _loop(self) -> None:
        """All parts at once; this loop only hands out work and takes in small messages."""
        self._begun = time.monotonic()
        self._flight: dict[Any, Callable[[Any], Any]] = {}
        self._starting, self._parts.late = self._parts.late, {}
        self._evaluation = None
        self._facts_due, self._asked = self._begun, set[str]()
        self._overlapping = self._is_under_way = True
        rollouts = enumerate(self._parts.rollouts)
        # Number of calls under way → rollouts with so many that may get one more, in that order.
        self._open: list[dict[int, None]] = [{} for _ in range(self._rollout_calls)]
        self._open[0] = {index: None for index, rollout in rollouts if rollout.is_ready}
        self._calls = [0] * len(self._parts.rollouts)
        self._busy: dict[str, int] = {"learner": 0, "refresh": 0, "evaluator": 0}
        while not self._finished():
            if self._stop.signum is not None or self._save_due():
                self._drain(but=self._evaluation)
                self._stop_if_asked()
                self._counters.train_s, self._begun = self._elapsed(), time.monotonic()
                self._begin_save()
            self._look_around()
            self._dispatch()
            self._ask_for_facts()
            self._reporter.levels(self._loads())
            self._take_in(POLL_S)
            self._reporter.progress(self._counters.env_steps, self._progress)
        self._drain()
        self._overlapping = False
        if self._counters.evaluated_at < self._counters.env_steps:
            self._evaluate_now()
        self._counters.train_s = self._elapsed()

    def _look_around(self) -> None:
        """Leave machines that will be taken away: what is on them hands over what it has first."""
        self._tend()
        if not self._guard.news():
            return
        leaving = self._guard.leaving()
        for index, rollout in enumerate(self._parts.rollouts):
            if rollout.role in leaving:
                self._have_replaced(index)
        if "evaluator" in leaving and not self._busy["evaluator"]:
            self._restart_evaluator()
        stateful = [part.role for part in self._parts.singular() if part.role in leaving]
        if stateful:
            self._drain(but=self._evaluation)
            self._overlapping = False
            self._counters.train_s, self._begun = self._elapsed(), time.monotonic()
            self._move(stateful)
            self._overlapping = True

    def _loads(self) -> dict[str, float]:
        """Who waits for whom, and how much is under way."""
        return {
            "throughput/learner_waiting_share": float(self._busy["learner"] == 0),
            "throughput/rollouts_held_share": len(self._open[0]) / len(self._parts.rollouts),
            "queue/calls_in_flight": len(self._flight),
            "queue/learner_calls": self._busy["learner"],
            "queue/steps_waiting": self._ratio.waiting_steps,
        }

    def _ask_for_facts(self) -> None:
        """Now and then ask every part how busy it is; it answers between two calls."""
        now = time.monotonic()
        if now < self._facts_due:
            return
        parts = self._parts.all()
        self._facts_due = now + FACTS_EVERY_S + FACTS_EACH_S * len(parts)
        # An answer behind a long evaluation would keep `_drain` waiting.
        left_out = self._asked | ({"evaluator"} if self._busy["evaluator"] else set())
        for part in parts:
            if isinstance(part, ActorService) and part.is_ready and part.role not in left_out:
                self._asked.add(part.role)
                self._flight[part.ask()] = self._on_facts(part.role)

    def _on_facts(self, role: str) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._asked.discard(role)
            with suppress(*DEATHS):  # a call that matters tells of its death
                self._reporter.busy(role, ray.get(reference)["busy_share"])

        return arrived

    def _save_due(self) -> bool:
        """Time for a checkpoint, and nothing long is running that it would have to wait for."""
        since_s = time.monotonic() - self._saved_time
        due = since_s >= self._config.training.checkpoint_every_s or self._counters.best_is_unsaved
        return due and not self._busy["refresh"]

    def _begin_save(self) -> None:
        """It does not wait for an evaluation: whoever goes back to the checkpoint makes that again.

        Else a long evaluation would put off every checkpoint, and keep a run that is told to stop
        from saving itself before it is killed.
        """
        at = self._counters.evaluated_at
        if self._evaluation is not None:
            self._counters.evaluated_at = self._evaluated_before
        super()._begin_save()
        self._counters.evaluated_at = at

    def _drain(self, but: Any = None) -> None:
        """Hand out nothing and wait until everything in flight has arrived, `but` one call."""
        while self._flight.keys() - {but}:
            self._take_in(POLL_S)

    def _dispatch(self) -> None:
        parts, config, counters = self._parts, self._config, self._counters
        while self._busy["learner"] < LEARNER_CALLS_IN_FLIGHT:
            count = min(self._ratio.due, config.runtime.learner_chunk)
            if count < config.runtime.learner_chunk:
                break
            self._ratio.hand_out(count)
            self._busy["learner"] += 1
            draws, metrics, weights = self._update(count)
            self._flight[metrics] = self._on_update(draws, weights, count)
        while (index := self._next_rollout()) is not None:
            self._collect(index)
        if self._refresh_due() and not self._busy["refresh"]:
            counters.walk_steps_at_refresh = counters.walk_steps
            self._busy["refresh"] = 1
            weights, metrics = parts.reachability.call("refresh", returns=2)
            self._flight[metrics] = self._on_network(weights)
        evaluation_due = counters.env_steps - counters.evaluated_at >= config.evaluation.every_steps
        if evaluation_due and not self._busy["evaluator"]:
            self._evaluated_before = counters.evaluated_at
            at = counters.evaluated_at = counters.env_steps
            self._busy["evaluator"] = 1
            newest = (self._board.newest(name).value for name in ("policy", "bundle"))
            metrics, outcome = parts.evaluator.call("evaluate", *newest, returns=2)
            self._evaluation = metrics
            self._flight[metrics] = self._on_evaluation(at, outcome)

    def _recover(self, death: PartDied) -> None:
        self._overlapping = False
        if self._is_under_way:
            self._parts.late |= self._starting
        super()._recover(death)

    def _to_restore(self) -> list[Service]:
        """Rollouts that are under way go on as they are: they hold nothing that matters.

        One that has not begun yet must not: it would number its messages as the learner has had
        them already, and draw what was drawn before.
        """
        parts = super()._to_restore()
        left = self._parts.rollouts if self._is_under_way else []
        return [part for part in parts if part not in left]

    def _restart(self, roles: Sequence[str]) -> list[Service]:
        """Nobody waits for rollouts."""
        lost = [i for i, rollout in enumerate(self._parts.rollouts) if rollout.role in roles]
        for index in lost:
            self._start_rollout(index)
        return super()._restart([role for role in roles if not role.startswith("rollout-")])

    def _steps_missing(self) -> int:
        """Environment steps to the end of the run, without those that are under way."""
        phases, copies = self._config.phases, self._config.environment.num_envs
        each = copies * (phases.policy_steps + phases.random_steps)
        done = self._counters.env_steps + sum(self._calls) * each
        return self._config.training.env_steps - done

    def _next_rollout(self) -> int | None:
        """Who shall be called now, if anybody: first of all a rollout that does nothing."""
        if self._steps_missing() <= 0:
            return None
        if self._busy["learner"] == 0:
            return next((index for waiting in self._open for index in waiting), None)
        return next(iter(self._open[0]), None) if self._ratio.may_collect else None

    def _set_calls(self, index: int, calls: int, *, may_have_more: bool = True) -> None:
        """Take note of how many calls of a rollout are under way."""
        for waiting in self._open:
            waiting.pop(index, None)
        self._calls[index] = calls
        if may_have_more and calls < len(self._open):
            self._open[calls][index] = None

    def _collect(self, index: int) -> None:
        rollout = self._parts.rollouts[index]
        policy, guide = self._board.newest("policy"), self._board.newest("guide")
        self._ratio.request(self._fragment)
        self._set_calls(index, self._calls[index] + 1)
        result = self._call_rollout(rollout, policy.value, guide.value)
        self._flight[result[2]] = self._on_fragment(index, result[0], result[1], policy)

    def _take_in(self, timeout_s: float) -> None:
        """Wait for the first result and act on all that are there."""
        pending = [*self._flight, *self._starting]
        if not pending:
            time.sleep(timeout_s / 10)
            return
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout_s)
        more, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        for reference in dict.fromkeys([*ready, *more]):
            if reference in self._starting:
                self._started(self._starting.pop(reference), reference)
            else:
                self._flight.pop(reference)(reference)

    def _on_fragment(
        self, index: int, episodes: Any, walks: Any, policy: Published
    ) -> Callable[[Any], None]:
        rollout = self._parts.rollouts[index]

        def is_there() -> bool:
            """Whether it still has its place; else another call has told of its death."""
            return self._parts.rollouts[index] is rollout

        def arrived(reference: Any) -> None:
            try:
                info = fetch(reference)
            except LOSSES:  # what it was to act with; who had that has died or is about to be found
                self._ratio.lost(self._fragment)
                if is_there():
                    self._loans.forget(rollout.role)
                    self._free(index, self._calls[index] - 1)
                return
            except DEATHS as error:
                self._ratio.lost(self._fragment)
                if is_there():
                    self._replace_rollout(index, error)
                return
            if is_there():
                self._free(index, self._calls[index] - 1)
            self._add(index, episodes)
            age = {
                "weights/age_versions": self._board.version("policy") - policy.version,
                "weights/age_s": time.monotonic() - policy.published_s,
            }
            self._reporter.rollout(self._counters.env_steps, age)
            self._take_walks(walks, info)
            self._ratio.collected(self._fragment)

        return arrived

    def _on_update(self, draws: Sequence[Draw], weights: Any, count: int) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._busy["learner"] -= 1
            self._updated(self._updates(draws, reference), weights, count)

        return arrived

    def _on_network(self, weights: Any) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._report(self._fetch("reachability", reference))
            bundle, guide, metrics = self._parts.memory.call("integrate", weights, returns=3)
            self._flight[metrics] = self._on_bundle(bundle, guide)

        return arrived

    def _on_bundle(self, bundle: Any, guide: Any) -> Callable[[Any], None]:
        def arrived(reference: Any) -> None:
            self._busy["refresh"] = 0
            self._new_bundle(bundle, guide, reference)

        return arrived

    def _on_evaluation(self, at: int, outcome: Any) -> Callable[[Any], None]:
        begun = time.monotonic()

        def arrived(reference: Any) -> None:
            self._busy["evaluator"], self._evaluation = 0, None
            try:
                self._evaluated(at, fetch(reference), outcome)
            except LOSSES:
                self._run.event("lost", role="evaluator", what=f"the evaluation at step {at:,}")
                return
            except DEATHS as error:
                lost, then = f"the evaluation at step {at:,}", "a new one makes the next"
                self._deaths.died("evaluator", error, lost=lost, then=then)
                self._restart_evaluator()
                return
            self._report({"evaluation/seconds": time.monotonic() - begun}, at)

        return arrived

    def _restart_evaluator(self) -> None:
        self._guard.forget(["evaluator"])
        evaluator = self._parts.restart_evaluator()
        assert isinstance(evaluator, ActorService)
        self._starting[evaluator.settling()] = EVALUATOR

    def _replace_rollout(self, index: int, error: Exception) -> None:
        """A rollout holds nothing that matters: its running episodes are lost, and that is all."""
        steps = self._calls[index] * self._fragment
        lost = f"what it was asked for, {steps:,} steps of the policy"
        role = self._parts.rollouts[index].role
        self._deaths.died(role, error, lost=lost, then="a new one takes its place")
        self._start_rollout(index)

    def _free(self, index: int, calls: int) -> None:
        """A rollout with only so many calls may have another, or leaves with its machine."""
        self._set_calls(index, calls)
        if self._parts.rollouts[index].role in self._guard.leaving():
            self._have_replaced(index)

    def _have_replaced(self, index: int) -> None:
        """Call a rollout no more, and start another as soon as it has handed over what it has."""
        self._set_calls(index, self._calls[index], may_have_more=False)
        if self._parts.rollouts[index].is_ready and not self._calls[index]:
            self._start_rollout(index)

    def _take_state(self, part: Service, state: Any) -> Any:
        """A rollout that died meanwhile is left out; its next call tells of it."""
        try:
            return super()._take_state(part, state)
        except PartDied:
            if part not in self._parts.rollouts:
                raise
            return None

    def _start_rollout(self, index: int) -> None:
        """Let another rollout take a place; nobody waits until it has found room and is ready."""
        old = self._parts.rollouts[index]
        if self._overlapping:
            self._set_calls(index, 0, may_have_more=False)
        self._guard.forget([old.role])
        self._loans.forget(old.role)
        old.stop()
        incarnation = self._next_incarnation()
        rollout = self._parts.rollouts[index] = self._parts.start_rollout(index, incarnation)
        assert isinstance(rollout, ActorService)
        waiting = self._starting if self._overlapping else self._parts.late
        waiting[rollout.settling()] = index

    def _started(self, index: int, reference: Any) -> None:
        if index == EVALUATOR:
            evaluator = self._parts.evaluator
            assert isinstance(evaluator, ActorService)
            with suppress(*DEATHS):  # the next evaluation tells of its death
                self._deaths.watch({evaluator.role: evaluator.settled(reference)})
            return
        rollout = self._parts.rollouts[index]
        assert isinstance(rollout, ActorService)
        try:
            self._deaths.watch({rollout.role: rollout.settled(reference)})
        except DEATHS as error:
            self._deaths.died(rollout.role, error, lost="nothing", then="a new one takes its place")
            self._start_rollout(index)
        else:
            self._free(index, 0)
