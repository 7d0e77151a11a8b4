"""Hierarchical implicit Q-learning: one value, a policy over sub-goals and one that reaches them.

A value V(s, φ(s, g)) of goals, seen through a short representation φ, is learned as in GCIVL. The
high-level policy proposes the representation of the state k steps ahead, the low-level policy takes
actions towards it; both imitate the data in proportion to how much value they gain.

Source: arXiv:2307.11949, with OGBench's (arXiv:2410.20092) constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from farreach_workloads.goals.agents import losses
from farreach_workloads.goals.agents.rows import GoalMix, TrainingRows
from farreach_workloads.goals.agents.trunk import ExpectileSettings, Mlp, TrunkAgent, Value

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class HiqlSettings(ExpectileSettings):
    """Hierarchical implicit Q-learning."""

    kind: Literal["hiql"] = "hiql"
    expectile: float = Field(0.7, gt=0, lt=1)
    """Level of the value: 0.5 is the mean over the data's actions, towards 1 the best of them."""
    low_temperature: float = Field(3.0, ge=0)
    """Factor of the advantage in the low-level policy's weights."""
    high_temperature: float = Field(3.0, ge=0)
    """Factor of the advantage in the high-level policy's weights."""
    subgoal_steps: int = Field(25, ge=1)
    """k: steps to a sub-goal."""
    representation: int = Field(10, ge=1)
    """Width of φ."""
    actor_goals: GoalMix = GoalMix(future=1.0)
    """Goals that the high-level policy is trained with."""


class GoalRepresentation(nn.Module):
    """φ(s, g), of length √width."""

    def __init__(self, features: Features, settings: HiqlSettings) -> None:
        """(n, pair width) → (n, representation)."""
        super().__init__()
        self.network = Mlp(features.pair_width, settings.representation, settings)

    def forward(self, pair: Tensor) -> Tensor:
        """See the class."""
        return on_sphere(self.network(pair))


class HierarchicalActor(nn.Module):
    """The high-level policy's sub-goal, and the low-level policy's action towards it."""

    def __init__(self, features: Features, action_dim: int, settings: HiqlSettings) -> None:
        """(n, pair width) → (n, a)."""
        super().__init__()
        self._state = features.observation_width
        self.high = Mlp(features.pair_width, settings.representation, settings)
        self.low = Mlp(self._state + settings.representation, action_dim, settings)

    def forward(self, pair: Tensor) -> Tensor:
        """Mean action for the mean sub-goal."""
        return self.towards(pair[:, : self._state], on_sphere(self.high(pair)))

    def towards(self, state: Tensor, subgoal: Tensor) -> Tensor:
        """Mean action for a sub-goal: (n, state width), (n, representation) → (n, a)."""
        return self.low(torch.cat([state, subgoal], dim=1))


class Hiql(TrunkAgent):
    """Twin values over a shared representation, and two policies."""

    TARGETS: ClassVar[tuple[str, ...]] = ("representation", "value")
    config: HiqlSettings

    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """Both policies as one actor, representation and value."""
        self._state = features.observation_width
        settings = self.config
        self._actor = HierarchicalActor(features, action_dim, settings)
        return {
            "actor": self._actor,
            "representation": GoalRepresentation(features, settings),
            "value": Value(self._state + settings.representation, settings),
        }

    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Features (n, w) of pairs, and what happened.

        `pair`, `next_pair`, `reward` (n,), `continues` (n,) are the value's; `low_pair` and
        `low_next_pair` lead to the state k steps ahead, `action` (n, a) is what was done;
        `high_pair` is (s, g), `high_next_pair` (sub-goal, g), `high_target_pair` (s, sub-goal).
        """
        start, k = rows.transitions(count, rng), self.config.subgoal_steps
        goal = rows.goals(start, self.config.critic_goals, rng)
        near = rows.ahead(start, k)
        high_goal = rows.goals(start, self.config.actor_goals, rng)
        # A goal that comes before k steps are over in the same episode is its own sub-goal.
        subgoal = np.where((high_goal >= start) & (high_goal < near), high_goal, near)
        return {
            **rows.pursuit(start, goal),
            "low_pair": rows.pair(start, near),
            "low_next_pair": rows.pair(start + 1, near),
            "action": rows.actions(start),
            "high_pair": rows.pair(start, high_goal),
            "high_next_pair": rows.pair(subgoal, high_goal),
            "high_target_pair": rows.pair(start, subgoal),
        }

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The value's and both policies'."""
        value_loss, value_metrics = self.value_loss(batch)
        low_loss, low_metrics = self.low_actor_loss(batch)
        high_loss, high_metrics = self.high_actor_loss(batch)
        terms = {"critic_loss": value_loss, "actor_loss": low_loss, "high_actor_loss": high_loss}
        return terms, value_metrics | low_metrics | high_metrics

    def value_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile regression as in GCIVL; it also trains the representation."""
        discount = self.config.discount * batch["continues"]
        with torch.no_grad():
            following = self._value(batch["next_pair"], self.targets)
            before = self._value(batch["pair"], self.targets).mean(dim=0)
            advantage = batch["reward"] + discount * following.min(dim=0).values - before
            goal = batch["reward"] + discount * following
        value = self._value(batch["pair"], self.networks)
        loss = losses.expectile(advantage, goal - value, self.config.expectile)
        return loss.mean(dim=1).sum(), {"value": value.mean()}

    def low_actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log π(a|s, φ(s, s_t+k)), weighed by the advantage V(s', s_t+k) - V(s, s_t+k)."""
        gain = self._gain(batch["low_pair"], batch["low_next_pair"])
        with torch.no_grad():
            subgoal = self.networks["representation"](batch["low_pair"])
        mean = self._actor.towards(batch["low_pair"][:, : self._state], subgoal)
        loss = losses.behaviour(mean, batch["action"])
        weighted = losses.advantage_weighted(gain, loss, self.config.low_temperature)
        error = (mean - batch["action"]).square().mean()
        return weighted, {"advantage": gain.mean(), "action_error": error}

    def high_actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log π(φ(s, sub-goal)|s, g), weighed by the advantage V(sub-goal, g) - V(s, g)."""
        gain = self._gain(batch["high_pair"], batch["high_next_pair"])
        with torch.no_grad():
            target = self.networks["representation"](batch["high_target_pair"])
        proposed = self._actor.high(batch["high_pair"])
        loss = losses.behaviour(proposed, target)
        weighted = losses.advantage_weighted(gain, loss, self.config.high_temperature)
        return weighted, {"high_advantage": gain.mean()}

    @torch.no_grad()
    def _gain(self, pair: Tensor, next_pair: Tensor) -> Tensor:
        """What the mean of both values gains, (n,)."""
        before, after = (self._value(one, self.networks) for one in (pair, next_pair))
        return after.mean(dim=0) - before.mean(dim=0)

    def _value(self, pair: Tensor, networks: nn.ModuleDict) -> Tensor:
        """Both values through the representation: (n, pair width) → (2, n)."""
        return networks["value"](pair[:, : self._state], networks["representation"](pair))


def on_sphere(vectors: Tensor) -> Tensor:
    """Vectors (n, w) scaled to length √w."""
    return normalize(vectors, dim=1) * vectors.shape[1] ** 0.5
