"""What the agents train on: transitions of a data set, and goals for each from a declared mix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from farreach.config import Config
from farreach.data.episodes import ACTION, OBSERVATION, EpisodeStore
from farreach_workloads.goals.environments.base import Floats, Ints

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class GoalMix(Config):
    """Which goals transitions are trained with: shares that add up to 1."""

    current: float = Field(0.0, ge=0, le=1)
    """The state that the transition starts from, which is reached already."""
    future: float = Field(1.0, ge=0, le=1)
    """States that the same episode visits later."""
    random: float = Field(0.0, ge=0, le=1)
    """States from anywhere in the data."""
    spread: float | None = Field(None, gt=1)
    """Mean steps to a future goal, geometrically distributed; None takes all later states of the
    episode as equally likely."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> GoalMix:
        total = self.current + self.future + self.random
        if abs(total - 1) > 1e-6:
            shares = f"current {self.current:g}, future {self.future:g}, random {self.random:g}"
            raise ValueError(
                f"current + future + random is {total:g}; they must add up to 1: {shares}"
            )
        return self


class TrainingRows:
    """Draws transitions and goals, all as rows of the data set, and turns them into inputs.

    A transition is known by the row t that it starts from; it leads to row t + 1.
    """

    def __init__(self, store: EpisodeStore, features: Features) -> None:
        """Every transition of the data set is equally likely."""
        self._features = features
        self._observations, self._actions = store[OBSERVATION], store[ACTION]
        lengths = store.lengths
        ends = store.starts[1:] - 1
        is_start = np.ones(store.rows, np.bool_)
        is_start[ends] = False
        self._starts = np.flatnonzero(is_start)
        self._last = np.repeat(ends, lengths)
        self.count = store.rows

    def transitions(self, count: int, rng: np.random.Generator) -> Ints:
        """Rows that transitions start from, (count,)."""
        return self._starts[rng.integers(0, len(self._starts), count)]

    def goals(self, rows: Ints, mix: GoalMix, rng: np.random.Generator) -> Ints:
        """A goal for each transition, (n,) → (n,)."""
        goals = rows.copy()
        at = rng.random(len(rows))
        future = np.flatnonzero((at >= mix.current) & (at < mix.current + mix.future))
        goals[future] = self.later(rows[future], mix.spread, rng)
        anywhere = np.flatnonzero(at >= mix.current + mix.future)
        goals[anywhere] = rng.integers(0, self.count, len(anywhere))
        return goals

    def later(self, rows: Ints, spread: float | None, rng: np.random.Generator) -> Ints:
        """A later state of each row's episode; see `GoalMix.spread`."""
        last = self._last[rows]
        if spread is None:
            left = last - rows  # at least 1: a transition's start is never an episode's end
            steps = 1 + np.minimum((rng.random(len(rows)) * left).astype(np.int64), left - 1)
            return rows + steps
        return np.minimum(rows + rng.geometric(1.0 / spread, len(rows)), last)

    def ahead(self, rows: Ints, steps: int) -> Ints:
        """The state so many steps later, or the episode's last, (n,) → (n,)."""
        return np.minimum(rows + steps, self._last[rows])

    def pair(self, rows: Ints, goals: Ints) -> Floats:
        """Features of states and goals, (n, pair width)."""
        return self._features.pair(self._observations[rows], self._observations[goals])

    def pursuit(self, rows: Ints, goals: Ints) -> dict[str, Floats]:
        """What bootstrapping towards goals needs: a step costs 1 until the goal is reached.

        Returns:
            `pair` and `next_pair` (n, pair width), `reward` (n,), -1 or, at the goal, 0, and
            `continues` (n,), 0 at the goal and 1 elsewhere.
        """
        reached = (goals == rows).astype(np.float32)
        return {
            "pair": self.pair(rows, goals),
            "next_pair": self.pair(rows + 1, goals),
            "reward": reached - 1,
            "continues": 1 - reached,
        }

    def states(self, rows: Ints) -> Floats:
        """Features of states alone, (n, observation width)."""
        return self._features.observation(self._observations[rows])

    def actions(self, rows: Ints) -> Floats:
        """Action of each transition, (n, a) float32; it is stored where the transition leads to."""
        return self._actions[rows + 1].astype(np.float32, copy=False)
