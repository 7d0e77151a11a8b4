"""Goal-conditioned implicit V-learning: an expectile of the value, actions by their advantage.

V(s, g) is fitted to r + γ V(s', g) with a loss that weighs errors above more than errors below, so
that it approaches the value of the best actions in the data without ever asking for another action;
the policy imitates the data's actions in proportion to how much they gain.

Source: implicit Q-learning (arXiv:2110.06169) without Q, as OGBench (arXiv:2410.20092) states it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from farreach_workloads.goals.agents import losses
from farreach_workloads.goals.agents.rows import TrainingRows
from farreach_workloads.goals.agents.trunk import ExpectileSettings, FlatActor, TrunkAgent, Value

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class GcivlSettings(ExpectileSettings):
    """Implicit V-learning."""

    kind: Literal["gcivl"] = "gcivl"
    temperature: float = Field(10.0, ge=0)
    """Factor of the advantage in the policy's weights."""


class Gcivl(TrunkAgent):
    """Twin values with targets, and advantage-weighted regression."""

    TARGETS: ClassVar[tuple[str, ...]] = ("value",)
    config: GcivlSettings

    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """Actor and value."""
        return {
            "actor": FlatActor(features, action_dim, self.config),
            "value": Value(features.pair_width, self.config),
        }

    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Features (n, w) of states and next states with either's goals, and what happened.

        `pair`, `next_pair`, `reward` (n,), `continues` (n,) are the value's, `actor_pair`,
        `actor_next_pair`, `action` (n, a) the policy's.
        """
        start = rows.transitions(count, rng)
        goal = rows.goals(start, self.config.critic_goals, rng)
        actor_goal = rows.goals(start, self.config.actor_goals, rng)
        return {
            **rows.pursuit(start, goal),
            "actor_pair": rows.pair(start, actor_goal),
            "actor_next_pair": rows.pair(start + 1, actor_goal),
            "action": rows.actions(start),
        }

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The value's and the actor's."""
        value_loss, value_metrics = self.value_loss(batch)
        actor_loss, actor_metrics = self.actor_loss(batch)
        return (
            {"critic_loss": value_loss, "actor_loss": actor_loss},
            value_metrics | actor_metrics,
        )

    def value_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile regression of each value to its own target's next value.

        The sign that decides about the weight comes from the targets alone: the smaller of the two
        next values against the mean of the two values.
        """
        discount = self.config.discount * batch["continues"]
        with torch.no_grad():
            following = self.targets["value"](batch["next_pair"])
            before = self.targets["value"](batch["pair"]).mean(dim=0)
            advantage = batch["reward"] + discount * following.min(dim=0).values - before
            goal = batch["reward"] + discount * following
        value = self.networks["value"](batch["pair"])
        loss = losses.expectile(advantage, goal - value, self.config.expectile)
        return loss.mean(dim=1).sum(), {"value": value.mean()}

    def actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log π(a|s, g), weighed by the advantage V(s', g) - V(s, g)."""
        with torch.no_grad():
            before = self.networks["value"](batch["actor_pair"]).mean(dim=0)
            after = self.networks["value"](batch["actor_next_pair"]).mean(dim=0)
        mean = self.networks["actor"](batch["actor_pair"])
        loss = losses.behaviour(mean, batch["action"])
        advantage = after - before
        weighted = losses.advantage_weighted(advantage, loss, self.config.temperature)
        error = (mean - batch["action"]).square().mean()
        return weighted, {"advantage": advantage.mean(), "action_error": error}
