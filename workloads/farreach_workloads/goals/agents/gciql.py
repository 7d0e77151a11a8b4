"""Goal-conditioned implicit Q-learning: an expectile of Q over the data's actions as the value.

Source: implicit Q-learning (arXiv:2110.06169), as OGBench (arXiv:2410.20092) conditions it on
goals, with its two ways to get a policy: by the gradient of Q beside behavioural cloning, or by
advantage-weighted regression.
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
from farreach_workloads.goals.agents.trunk import (
    ExpectileSettings,
    FlatActor,
    Mlp,
    TrunkAgent,
    Value,
    frozen,
)

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class GciqlSettings(ExpectileSettings):
    """Implicit Q-learning."""

    kind: Literal["gciql"] = "gciql"
    extraction: Literal["gradient", "regression"] = "gradient"
    """How the policy follows Q: its gradient beside behavioural cloning, or weighted regression."""
    behaviour_weight: float = Field(0.003, ge=0)
    """Weight of behavioural cloning, with `extraction: gradient`."""
    temperature: float = Field(3.0, ge=0)
    """Factor of the advantage in the policy's weights, with `extraction: regression`."""


class Gciql(TrunkAgent):
    """A value, twin Q functions with targets, and a policy."""

    TARGETS: ClassVar[tuple[str, ...]] = ("critic",)
    config: GciqlSettings

    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """Actor, value and critic."""
        width = features.pair_width
        return {
            "actor": FlatActor(features, action_dim, self.config),
            "value": Mlp(width, 1, self.config),
            "critic": Value(width + action_dim, self.config),
        }

    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Features (n, w) of states and next states with either's goals, and what happened.

        `pair`, `next_pair`, `reward` (n,), `continues` (n,) are the values', `actor_pair` is the
        policy's, `action` (n, a) both's.
        """
        start = rows.transitions(count, rng)
        goal = rows.goals(start, self.config.critic_goals, rng)
        actor_goal = rows.goals(start, self.config.actor_goals, rng)
        return {
            **rows.pursuit(start, goal),
            "actor_pair": rows.pair(start, actor_goal),
            "action": rows.actions(start),
        }

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The value's, the critic's and the actor's."""
        value_loss, value_metrics = self.value_loss(batch)
        critic_loss, critic_metrics = self.critic_loss(batch)
        actor_loss, actor_metrics = self.actor_loss(batch)
        return (
            {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss},
            value_metrics | critic_metrics | actor_metrics,
        )

    def value_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile regression of V(s, g) to the smaller target Q(s, a, g)."""
        with torch.no_grad():
            goal = self.targets["critic"](batch["pair"], batch["action"]).min(dim=0).values
        value = self.networks["value"](batch["pair"])[:, 0]
        error = goal - value
        loss = losses.expectile(error.detach(), error, self.config.expectile)
        return loss.mean(), {"value": value.mean()}

    def critic_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of both Q(s, a, g) to r + γ V(s', g)."""
        with torch.no_grad():
            following = self.networks["value"](batch["next_pair"])[:, 0]
            goal = batch["reward"] + self.config.discount * batch["continues"] * following
        value = self.networks["critic"](batch["pair"], batch["action"])
        return (value - goal).square().mean(dim=1).sum(), {"q_value": value.mean()}

    def actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `GciqlSettings.extraction`."""
        pair, critic = batch["actor_pair"], self.networks["critic"]
        mean = self.networks["actor"](pair)
        loss = losses.behaviour(mean, batch["action"])
        metrics = {"action_error": (mean - batch["action"]).square().mean()}
        if self.config.extraction == "gradient":
            with frozen(critic):
                value = critic(pair, mean.clamp(-1, 1)).min(dim=0).values
            weight = self.config.behaviour_weight
            return losses.value_and_behaviour(value, loss, weight), metrics
        with torch.no_grad():
            best = critic(pair, batch["action"]).min(dim=0).values
            advantage = best - self.networks["value"](pair)[:, 0]
        weighted = losses.advantage_weighted(advantage, loss, self.config.temperature)
        return weighted, metrics | {"advantage": advantage.mean()}
