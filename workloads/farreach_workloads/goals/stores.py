"""Who keeps the replay: the learner, or shards of which each takes a share of the rollouts'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach.actors.services import Service
from farreach_workloads.goals import experience

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig
    from farreach_workloads.goals.parts import Parts


@dataclass(frozen=True)
class Draw:
    """What a shard was asked for.

    Attributes:
        role: of the shard.
        rows: result of `Experience.draw`, which the learner takes.
        told: the small result beside it, which tells whether the shard has done it.
    """

    role: str
    rows: Any
    told: Any


class Stores:
    """The parts that episodes go to; see `Experience`."""

    def __init__(self, parts: Parts, config: GoalsRunConfig) -> None:
        """They are empty."""
        self._parts, self._batch = parts, config.agent.batch
        self._capacity = experience.capacity(config)
        self._episodes = [0] * len(parts.shards)

    def store_of(self, rollout: int) -> Service:
        """Where the episodes of a rollout go, by its number: always the same."""
        shards = self._parts.shards
        return shards[rollout % len(shards)] if shards else self._parts.learner

    def added(self, rollout: int, episodes: int) -> None:
        """Take note that a rollout's episodes have gone there."""
        if self._episodes:
            self._episodes[rollout % len(self._episodes)] += episodes

    def lost(self, role: str, episodes: int) -> None:
        """Take note that episodes have not arrived at a part."""
        name, _, index = role.partition("-")
        if name == "replay":
            self.added(int(index), -episodes)

    def restored(self, content: Mapping[str, Any]) -> None:
        """Take note of what the parts have from a checkpoint; role → state."""
        for index in range(len(self._episodes)):
            self._episodes[index] = int(content[f"replay-{index}"]["ring"]["total"])

    def draw(self, updates: int) -> list[Draw]:
        """Have the shards draw for so many updates; nothing if there are none.

        Each gives as many rows as it has of the whole replay, which together is as good as drawn
        uniformly from that; the learner mixes them.
        """
        held = np.minimum(self._episodes, self._capacity)
        draws = []
        for index, rows in enumerate(apportioned(updates * self._batch, held)):
            if rows:
                shard = self._parts.shards[index]
                draws.append(Draw(shard.role, *shard.call("draw", int(rows), returns=2)))
        return draws


def apportioned(total: int, weights: Any) -> np.ndarray:
    """Whole numbers in proportion to weights (n,) that add up to `total`, by largest remainder."""
    weights = np.asarray(weights, float)
    if not weights.sum():
        return np.zeros(len(weights), np.int64)
    exact = total * weights / weights.sum()
    shares = np.floor(exact).astype(np.int64)
    most = np.argsort(shares - exact, kind="stable")[: total - shares.sum()]
    shares[most] += 1
    return shares
