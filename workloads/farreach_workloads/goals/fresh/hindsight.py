"""Rows of the baselines: hindsight replay, with negative actions, and Actionable Models.

The paper fills a buffer: a uniform transition t of an episode and a uniform goal g give

    A  (s_t, a, s_t+1) with goal g, reward 0 or the critic's value, ends
    B  the same with its own next state as the goal, reward 1, ends
    and for every earlier transition j of the episode
       (s_j, a, s_j+1) with goal s_t+1, reward 0, goes on
       (s_j, a, s_j+1) with goal g, reward 0, goes on

each followed, if there are negative actions, by a copy with another action, reward 0, that ends.
Here a row is drawn at a time with the same probabilities: t in proportion to the t + 1 pairs of
rows that it gives, then a pair, then a row of it.

Source: arXiv:2301.02099, section on baselines, and its released code; Actionable Models is
arXiv:2104.07749.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from farreach.data.episodes import ACTION, OBSERVATION, EpisodeStore
from farreach_workloads.goals.environments.base import Floats, Ints
from farreach_workloads.goals.fresh.relabel import Batch, Discrete

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features
    from farreach_workloads.goals.fresh.config import HindsightConfig
    from farreach_workloads.goals.sac import GoalSac


@dataclass
class HindsightRows:
    """n rows.

    Attributes:
        following: (n,) row of the data set that the transition leads to; it starts one before.
        goal_row: (n,) row of the goal.
        is_last: (n,) whether it is the transition that the others of its pursuit lead up to.
        is_random: (n,) whether the goal is from anywhere.
        is_negative: (n,) whether another action takes the place of the transition's.
    """

    following: Ints
    goal_row: Ints
    is_last: np.ndarray
    is_random: np.ndarray
    is_negative: np.ndarray


class HindsightSource:
    """Draws the baselines' rows and rewards them; see the module."""

    def __init__(
        self, store: EpisodeStore, features: Features, settings: HindsightConfig, agent: GoalSac
    ) -> None:
        """Rows of all episodes with a transition; `agent` is the one that is being trained."""
        self._agent = agent
        self._store, self._features, self._settings = store, features, settings
        self._begins, self._lengths = _pieces(store, settings.piece_steps)
        # A piece of T transitions gives 1 + 2 + … + T pairs of rows.
        lengths = self._lengths.astype(np.float64)
        self._pieces = Discrete(lengths * (lengths + 1) / 2)

    def draw(self, count: int, rng: np.random.Generator) -> HindsightRows:
        """Draw `count` rows."""
        piece = self._pieces.draw(count, rng)
        length = self._lengths[piece]
        # P(t) ∝ t + 1: the largest t with t (t + 1) / 2 ≤ a uniform number below T (T + 1) / 2.
        at = rng.random(count) * (length * (length + 1) / 2)
        last = ((np.sqrt(8 * at + 1) - 1) / 2).astype(np.int64)
        last = np.minimum(last, length - 1)
        step = np.minimum((rng.random(count) * (last + 1)).astype(np.int64), last)
        is_random = rng.random(count) < 0.5
        goal_row = self._begins[piece] + last
        anywhere = rng.integers(0, self._store.rows, count)
        negatives = 0.5 if self._settings.negative_actions != "none" else 0.0
        return HindsightRows(
            self._begins[piece] + step,
            np.where(is_random, anywhere, goal_row),
            step == last,
            is_random,
            rng.random(count) < negatives,
        )

    def inputs(self, count: int, rng: np.random.Generator) -> dict[str, Floats]:
        """See `RowSource`; negative actions and values are those of the agent now."""
        return self.batch(count, rng).inputs(self._features)

    def batch(self, count: int, rng: np.random.Generator) -> Batch:
        """The same, as what the rows hold."""
        agent = self._agent
        rows, settings = self.draw(count, rng), self._settings
        observations = self._store[OBSERVATION]
        observation, goal = observations[rows.following - 1], observations[rows.goal_row]
        action = self._store[ACTION][rows.following].astype(np.float32, copy=False)
        pair = torch.from_numpy(self._features.pair(observation, goal)).to(agent.device)
        if settings.negative_actions == "uniform":
            drawn = rng.uniform(-1, 1, action.shape).astype(np.float32)
            action = np.where(rows.is_negative[:, None], drawn, action)
        elif settings.negative_actions == "policy":
            noise = torch.from_numpy(rng.standard_normal(action.shape, np.float32))
            drawn = agent.sample(pair, noise.to(agent.device)).cpu().numpy()
            action = np.where(rows.is_negative[:, None], drawn, action)
        reached = rows.is_last & ~rows.is_random & ~rows.is_negative
        reward = settings.scale * reached.astype(np.float32)
        if settings.random_goals == "value":
            valued = rows.is_last & rows.is_random & ~rows.is_negative
            value = agent.first_value(pair, torch.from_numpy(action).to(agent.device)).cpu().numpy()
            # The critic's values are in units of the scaled reward already.
            factor = settings.scale if settings.rescale_values else 1.0
            reward[valued] = factor * value[valued]
        continues = ~(rows.is_last | rows.is_negative)
        return Batch(
            observation,
            action,
            observations[rows.following],
            goal,
            reward,
            continues.astype(np.float32),
        )


def _pieces(store: EpisodeStore, steps: int | None) -> tuple[Ints, Ints]:
    """Row that each piece's first transition leads to, and how many transitions it has."""
    begins, counts = store.starts[:-1] + 1, store.lengths - 1
    if steps is None:
        has_any = counts > 0
        return begins[has_any], counts[has_any]
    parts = [
        (begin + first, min(steps, count - first))
        for begin, count in zip(begins.tolist(), counts.tolist(), strict=True)
        for first in range(0, count, steps)
    ]
    first, length = np.array(parts, np.int64).T
    return first, length
