"""Contrastive reinforcement learning: a critic that tells the goals of a transition from others'.

f(s, a, g) = φ(s, a)ᵀ ψ(g) / √d is trained to say whether g is a later state of the transition's
own episode or of another one in the batch; it then tells how likely g is to be visited after
(s, a).

Source: arXiv:2206.07568, with OGBench's (arXiv:2410.20092) networks and ways to get a policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from farreach_workloads.goals.agents import losses
from farreach_workloads.goals.agents.rows import GoalMix, TrainingRows
from farreach_workloads.goals.agents.trunk import FlatActor, TrunkAgent, TrunkSettings, Twin, frozen

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class CrlSettings(TrunkSettings):
    """Contrastive reinforcement learning."""

    kind: Literal["crl"] = "crl"
    latent: int = Field(512, ge=1)
    """Width of φ and ψ."""
    extraction: Literal["gradient", "regression"] = "gradient"
    """How the policy follows f: its gradient beside behavioural cloning, or weighted regression."""
    behaviour_weight: float = Field(0.03, ge=0)
    """Weight of behavioural cloning, with `extraction: gradient`."""
    temperature: float = Field(3.0, ge=0)
    """Factor of the advantage in the policy's weights, with `extraction: regression`."""
    critic_goals: GoalMix = GoalMix(future=1.0, spread=100.0)
    """Goals of the critic's positive pairs; the spread is that of the discounted future."""
    actor_goals: GoalMix = GoalMix(future=1.0)
    """Goals that the policy is trained with."""


class Bilinear(nn.Module):
    """f(x, g) = φ(x)ᵀ ψ(g) / √d, twice."""

    def __init__(self, before: int, goal: int, settings: CrlSettings) -> None:
        """For inputs x (n, before) and goals (m, goal)."""
        super().__init__()
        self.phi = Twin(before, settings.latent, settings)
        self.psi = Twin(goal, settings.latent, settings)
        self._scale = 1 / math.sqrt(settings.latent)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        """Of each x with its own goal: (n, ·) both → (2, n)."""
        return (self.phi(x) * self.psi(goal)).sum(dim=2) * self._scale

    def all_pairs(self, x: Tensor, goal: Tensor) -> Tensor:
        """Of each x with each goal: (n, ·), (m, ·) → (2, n, m)."""
        return torch.bmm(self.phi(x), self.psi(goal).transpose(1, 2)) * self._scale


class Crl(TrunkAgent):
    """A contrastive critic, without bootstrapping or targets, and a policy."""

    config: CrlSettings

    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """Actor and critic; a value without actions too if the policy needs an advantage."""
        state, goal = features.observation_width, features.goal_width
        self._state, self._goal = slice(0, state), slice(state, state + goal)
        networks: dict[str, Bilinear] = {"critic": Bilinear(state + action_dim, goal, self.config)}
        if self.config.extraction == "regression":
            networks["value"] = Bilinear(state, goal, self.config)
        self._bilinear = networks
        return {"actor": FlatActor(features, action_dim, self.config), **networks}

    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """`pair` and `actor_pair` (n, w) of (s, g) with either's goals, `action` (n, a)."""
        start = rows.transitions(count, rng)
        goal = rows.goals(start, self.config.critic_goals, rng)
        actor_goal = rows.goals(start, self.config.actor_goals, rng)
        return {
            "pair": rows.pair(start, goal),
            "actor_pair": rows.pair(start, actor_goal),
            "action": rows.actions(start),
        }

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The critic's, the value's if there is one, and the actor's."""
        state, goal = batch["pair"][:, self._state], batch["pair"][:, self._goal]
        inputs = torch.cat([state, batch["action"]], dim=1)
        terms: dict[str, Tensor] = {}
        terms["critic_loss"], metrics = self.contrastive_loss("critic", inputs, goal)
        if "value" in self._bilinear:
            terms["value_loss"], _ = self.contrastive_loss("value", state, goal)
        terms["actor_loss"], actor_metrics = self.actor_loss(batch)
        return terms, metrics | actor_metrics

    def contrastive_loss(
        self, network: str, inputs: Tensor, goal: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Binary cross-entropy over all pairs of the batch: its own goal is 1, others' are 0."""
        logits = self._bilinear[network].all_pairs(inputs, goal)
        own = torch.eye(len(inputs), device=logits.device).expand_as(logits)
        loss = binary_cross_entropy_with_logits(logits, own)
        hit = logits.mean(dim=0).argmax(dim=1) == torch.arange(len(inputs), device=logits.device)
        return loss, {"own_goal_found": hit.float().mean()}

    def actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `CrlSettings.extraction`."""
        pair, critic = batch["actor_pair"], self.networks["critic"]
        state, goal = pair[:, self._state], pair[:, self._goal]
        mean = self.networks["actor"](pair)
        loss = losses.behaviour(mean, batch["action"])
        metrics = {"action_error": (mean - batch["action"]).square().mean()}
        if self.config.extraction == "gradient":
            with frozen(critic):
                inputs = torch.cat([state, mean.clamp(-1, 1)], dim=1)
                value = critic(inputs, goal).min(dim=0).values
            weight = self.config.behaviour_weight
            return losses.value_and_behaviour(value, loss, weight), metrics
        with torch.no_grad():
            inputs = torch.cat([state, batch["action"]], dim=1)
            best = critic(inputs, goal).min(dim=0).values
            advantage = best - self.networks["value"](state, goal).mean(dim=0)
        weighted = losses.advantage_weighted(advantage, loss, self.config.temperature)
        return weighted, metrics | {"advantage": advantage.mean()}
