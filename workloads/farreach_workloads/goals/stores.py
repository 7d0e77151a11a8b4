"""Who keeps the replay: the learner, or shards that share what the rollouts collect."""

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
        self._rollouts = config.runtime.rollout_actors
        self._episodes = [0] * len(parts.shards)

    def store_of(self, rollout: int) -> Service:
        """Where the next episodes of a rollout go, by its number.

        Always the same if there are not more shards than rollouts. Else every rollout has several,
        of which the one gets them that has got the fewest: one without any would keep what it has
        for ever, and the replay would be smaller than it is said to be.
        """
        shards = self._parts.shards
        if not shards:
            return self._parts.learner
        own = range(rollout, len(shards), self._rollouts) or [rollout % len(shards)]
        return shards[min(own, key=self._episodes.__getitem__)]

    def added(self, role: str, episodes: int) -> None:
        """Take note that episodes have gone to a part."""
        name, _, index = role.partition("-")
        if name == "replay":
            self._episodes[int(index)] += episodes

    def lost(self, role: str, episodes: int) -> None:
        """Take note that they have not arrived there."""
        self.added(role, -episodes)

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
