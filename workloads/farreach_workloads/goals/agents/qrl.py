"""Quasimetric reinforcement learning: the number of steps between states as a learned quasimetric.

d(s, g) obeys the triangle inequality by construction. It is pushed up everywhere while no single
transition may cost more than one step: what remains is the length of the shortest way.

Source: arXiv:2304.01203, with the interval quasimetric embedding of arXiv:2211.15120 and OGBench's
(arXiv:2410.20092) constants and ways to get a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from farreach_workloads.goals.agents import losses
from farreach_workloads.goals.agents.rows import GoalMix, TrainingRows
from farreach_workloads.goals.agents.trunk import FlatActor, Mlp, TrunkAgent, TrunkSettings, frozen

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class QrlSettings(TrunkSettings):
    """Quasimetric reinforcement learning."""

    kind: Literal["qrl"] = "qrl"
    latent: int = Field(512, ge=1)
    """Width of the embedding φ."""
    interval_dims: int = Field(8, ge=1)
    """Dims of the embedding that make up one component of the quasimetric."""
    slack: float = Field(0.05, gt=0)
    """ε: mean squared excess of a transition's distance over one step that is put up with."""
    far_steps: float = Field(500.0, gt=0)
    """Distance of random pairs from which on it is hardly pushed up any more."""
    far_softness: float = Field(100.0, gt=0)
    """Steps over which that fades."""
    extraction: Literal["gradient", "regression"] = "gradient"
    """How the policy shortens the distance: by its gradient through a learned model of the next
    embedding, beside behavioural cloning, or by weighted regression."""
    behaviour_weight: float = Field(0.0003, ge=0)
    """Weight of behavioural cloning, with `extraction: gradient`."""
    temperature: float = Field(3.0, ge=0)
    """Factor of the advantage in the policy's weights, with `extraction: regression`."""
    critic_goals: GoalMix = GoalMix(future=0.0, random=1.0)
    """Goals of the pairs that are pushed apart."""
    actor_goals: GoalMix = GoalMix(future=1.0)
    """Goals that the policy is trained with."""

    @model_validator(mode="after")
    def _components_are_whole(self) -> QrlSettings:
        if self.latent % self.interval_dims:
            raise ValueError(
                f"latent {self.latent} is no multiple of interval_dims {self.interval_dims}"
            )
        return self


class IntervalQuasimetric(nn.Module):
    """d(x, y) from the lengths of unions of intervals, arXiv:2211.15120.

    Each component has k dims; x and y span the intervals [x_i, max(x_i, y_i)], and the component is
    the length of their union. The distance mixes the components' mean and maximum.
    """

    def __init__(self, interval_dims: int) -> None:
        """For embeddings whose width is a multiple of `interval_dims`."""
        super().__init__()
        self._dims = interval_dims
        self.mixing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, latent) both → (n,), ≥ 0, and 0 where x ≥ y in all dims."""
        start = x.unflatten(1, (-1, self._dims))
        end = torch.maximum(start, y.unflatten(1, (-1, self._dims)))
        points, order = torch.cat([start, end], dim=2).sort(dim=2)
        # +1 where an interval begins and -1 where one ends: how many cover what follows a point.
        change = torch.where(order < self._dims, 1, -1)
        is_covered = change.cumsum(dim=2)[..., :-1] > 0
        components = (points.diff(dim=2) * is_covered).sum(dim=2)
        share = torch.sigmoid(self.mixing)
        return share * components.mean(dim=1) + (1 - share) * components.max(dim=1).values


class Qrl(TrunkAgent):
    """An embedding with its quasimetric, the price of a step that is too long, and a policy."""

    config: QrlSettings

    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """Actor, embedding, quasimetric, multiplier and the model of the next embedding."""
        settings = self.config
        networks: dict[str, nn.Module] = {
            "actor": FlatActor(features, action_dim, settings),
            "embedding": Mlp(features.observation_width, settings.latent, settings),
            "quasimetric": IntervalQuasimetric(settings.interval_dims),
            "multiplier": Multiplier(),
        }
        if settings.extraction == "gradient":
            width = settings.latent + action_dim
            networks["model"] = Mlp(width, settings.latent, settings)
        return networks

    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Features of states alone, `state`, `next_state`, `goal` and `actor_goal` (n, w).

        `actor_pair` (n, w) is what the policy sees, `action` (n, a) what was done.
        """
        start = rows.transitions(count, rng)
        goal = rows.goals(start, self.config.critic_goals, rng)
        actor_goal = rows.goals(start, self.config.actor_goals, rng)
        return {
            "state": rows.states(start),
            "next_state": rows.states(start + 1),
            "goal": rows.states(goal),
            "actor_goal": rows.states(actor_goal),
            "actor_pair": rows.pair(start, actor_goal),
            "action": rows.actions(start),
        }

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The quasimetric's, its multiplier's, the model's if there is one, and the actor's."""
        terms, metrics = self.distance_losses(batch)
        if "model" in self.networks:
            terms["model_loss"] = self.model_loss(batch)
        terms["actor_loss"], actor_metrics = self.actor_loss(batch)
        return terms, metrics | actor_metrics

    def distance_losses(
        self, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Random pairs apart, but a transition no longer than a step (equation 8 of QRL)."""
        embed, settings = self.networks["embedding"], self.config
        state = embed(batch["state"])
        apart = self.networks["quasimetric"](state, embed(batch["goal"]))
        step = self.networks["quasimetric"](state, embed(batch["next_state"]))
        push = softplus((settings.far_steps - apart) / settings.far_softness)
        excess = relu(step - 1).square().mean()
        price = self.networks["multiplier"]()
        terms = {
            "critic_loss": settings.far_softness * push.mean() + price.detach() * excess,
            "multiplier_loss": price * (settings.slack - excess.detach()),
        }
        metrics = {"distance": apart.mean(), "step": step.mean(), "multiplier": price}
        return terms, metrics

    def model_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Distance between the predicted and the actual next embedding, there and back."""
        embed, distance = self.networks["embedding"], self.networks["quasimetric"]
        actual = embed(batch["next_state"])
        predicted = self._predicted(embed(batch["state"]), batch["action"])
        return 0.5 * (distance(predicted, actual) + distance(actual, predicted)).mean()

    def actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `QrlSettings.extraction`."""
        embed, distance = self.networks["embedding"], self.networks["quasimetric"]
        mean = self.networks["actor"](batch["actor_pair"])
        loss = losses.behaviour(mean, batch["action"])
        metrics = {"action_error": (mean - batch["action"]).square().mean()}
        with torch.no_grad():
            state, goal = embed(batch["state"]), embed(batch["actor_goal"])
        if self.config.extraction == "gradient":
            with frozen(self.networks["model"]), frozen(distance):
                value = -distance(self._predicted(state, mean.clamp(-1, 1)), goal)
            weight = self.config.behaviour_weight
            return losses.value_and_behaviour(value, loss, weight), metrics
        with torch.no_grad():
            gain = distance(state, goal) - distance(embed(batch["next_state"]), goal)
        weighted = losses.advantage_weighted(gain, loss, self.config.temperature)
        return weighted, metrics | {"advantage": gain.mean()}

    def _predicted(self, state: Tensor, action: Tensor) -> Tensor:
        """Embedding after an action, (n, latent)."""
        return state + self.networks["model"](torch.cat([state, action], dim=1))


class Multiplier(nn.Module):
    """A positive number that is learned, 1 at first."""

    def __init__(self) -> None:
        """Kept as its logarithm."""
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """The number, ()."""
        return self.log.exp()
