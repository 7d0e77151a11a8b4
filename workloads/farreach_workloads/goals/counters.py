"""What a run has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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
        found_at, scored_at: env_steps at which the last evaluation began that is done, and that one
            by which a checkpoint was scored.
        best, best_at: the highest score of an evaluation, and the env_steps at which that began.
        train_s: seconds of training, without start-up, summed over resumes.
        evaluations: metrics of the last evaluations, newest last.
        ratio: steps and updates of the ratio controller.
        first_steps_with_nodes: category → env_steps at which the memory first held a node there.
        incarnations: rollouts that took the place of others.
    """

    env_steps: int = 0
    walk_steps: int = 0
    walk_steps_at_refresh: int = 0
    refreshes: int = 0
    evaluated_at: int = 0
    saved_at: int = 0
    drawn_at: int = 0
    found_at: int = -1
    scored_at: int = -1
    best: float = -1.0
    best_at: int = -1
    train_s: float = 0.0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    ratio: list[int] = field(default_factory=lambda: [0, 0])
    first_steps_with_nodes: dict[str, int] = field(default_factory=dict)
    incarnations: int = 0

    def add_evaluation(self, at: int, metrics: dict[str, float], keep: int) -> None:
        """An evaluation that began at `at` is done; so many of the last ones are kept."""
        self.found_at = at
        self.evaluations.append(metrics)
        del self.evaluations[:-keep]
        if metrics[SUCCESS] > self.best:
            self.best, self.best_at = metrics[SUCCESS], at

    @property
    def best_is_unsaved(self) -> bool:
        """Whether the last evaluation is better than all before, and no checkpoint has it."""
        return self.best_at == self.found_at != self.scored_at

    def take_evaluation(self) -> dict[str, float]:
        """Metrics of the last evaluation, for the next checkpoint; {} if an earlier one has them.

        What is saved at the same step once more has them again.
        """
        if self.found_at in (-1, self.scored_at) and self.found_at != self.env_steps:
            return {}
        self.scored_at = self.found_at
        return self.evaluations[-1]


def mean_metrics(evaluations: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over evaluations, {} for none."""
    names = evaluations[-1] if evaluations else {}
    return {n: float(np.mean([e[n] for e in evaluations if n in e])) for n in names}
