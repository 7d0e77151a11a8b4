"""The lockstep loop: one fixed order, bit-equal for a seed wherever the parts live."""

from __future__ import annotations

import time

from farreach_workloads.goals.coordinator import Coordinator


class Lockstep(Coordinator):
    """Runs the parts one after the other; see `Coordinator`."""

    def _loop(self) -> None:
        """Everything in one fixed order; time decides nothing but `training.max_minutes`."""
        self._begun = time.monotonic()
        parts, config, counters = self._parts, self._config, self._counters
        while not self._finished():
            self._stop_if_asked()
            self._look_around()
            newest = [self._board.newest(name).value for name in ("policy", "guide")]
            collected = [self._call_rollout(rollout, *newest) for rollout in parts.rollouts]
            for index, (episodes, walks, info) in enumerate(collected):
                self._add(index, episodes)
                self._take_walks(walks, self._fetch(parts.rollouts[index].role, info))
                self._ratio.request(self._fragment)
                self._ratio.collected(self._fragment)
            if self._refresh_due():
                counters.walk_steps_at_refresh = counters.walk_steps
                weights, metrics = parts.reachability.call("refresh", returns=2)
                self._report(self._fetch("reachability", metrics))
                self._new_bundle(*parts.memory.call("integrate", weights, returns=3))
            while (count := min(self._ratio.due, config.runtime.learner_chunk)) > 0:
                draws, metrics, weights = self._update(count)
                self._ratio.hand_out(count)
                self._updated(self._updates(draws, metrics), weights, count)
            if counters.env_steps - counters.evaluated_at >= config.evaluation.every_steps:
                self._evaluate_now()
            since = counters.env_steps - counters.saved_at
            if counters.best_is_unsaved or since >= config.training.checkpoint_every_steps:
                counters.train_s, self._begun = self._elapsed(), time.monotonic()
                self._begin_save()
            self._reporter.progress(counters.env_steps, self._progress)
        if counters.evaluated_at < counters.env_steps:
            self._evaluate_now()
        counters.train_s = self._elapsed()

    def _look_around(self) -> None:
        """Leave machines that will be taken away; nothing is in flight between two rounds."""
        self._tend()
        if self._guard.news() and (leaving := self._guard.leaving()):
            self._counters.train_s, self._begun = self._elapsed(), time.monotonic()
            self._move([part.role for part in self._parts.all() if part.role in leaving])
