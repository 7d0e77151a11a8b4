"""Goal-conditioned SAC with a fixed entropy weight: losses, gradients and one update.

Source: arXiv:2301.02099 and the code arXiv:2206.11733 grew from: twin critics, no gradient
clipping, target network after every step, nothing is terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from farreach import seeding
from farreach_workloads.goals.backward import Chain, Heads, flatten
from farreach_workloads.goals.networks import (
    LOG_STD_RANGE,
    Actor,
    InputWidths,
    TwinCritic,
    sample_squashed,
)
from farreach_workloads.goals.reachability_trainer import load_arrays, load_optimiser

if TYPE_CHECKING:
    from farreach_workloads.goals.config import SacConfig
    from farreach_workloads.goals.features import Features


class GoalSac:
    """Networks, targets and optimisers; `update` is one gradient step of everything."""

    def __init__(
        self, config: SacConfig, features: InputWidths, action_dim: int, seed: int, device: str
    ) -> None:
        """Fresh networks on `device`; all randomness follows from `seed`."""
        self.config, self.device = config, torch.device(device)
        self.action_dim = action_dim
        torch.manual_seed(seeding.child_seed(seed, "agent/init"))
        sizes: tuple[Any, ...] = (features, action_dim, config.network, config.hidden)
        self.actor = Actor(*sizes).to(self.device)
        self.critic = TwinCritic(*sizes).to(self.device)
        self.target = TwinCritic(*sizes).to(self.device)
        self.target.load_state_dict(self.critic.state_dict())
        _, self._actor_optimiser = flatten(self.actor, config.lr)
        self._critic_flat, self._critic_optimiser = flatten(self.critic, config.lr)
        self._target_flat, _ = flatten(self.target, config.lr)
        self.target.requires_grad_(False)
        self._actor_heads, self._actor_trunk = Heads(self.actor.heads), Chain(self.actor.trunk)
        self._critic_heads, self._critics = _twin(self.critic)
        self._target_heads, self._targets = _twin(self.target)
        self._noise = torch.Generator().manual_seed(seeding.child_seed(seed, "agent/noise"))

    def set_lr(self, lr: float) -> None:
        """Learning rate of both optimisers from now on."""
        for optimiser in (self._actor_optimiser, self._critic_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = lr

    @torch.no_grad()
    def update(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of critic, actor and target.

        Args:
            batch: `pair` (n, w) and `next_pair` (n, w) features of (s, g) and (s', g), `action`
                (n, a), `reward` (n,); optionally `continues` (n,), 0 where the transition ends the
                pursuit and the bootstrap is cut, 1 elsewhere.

        Returns:
            `critic_loss`, mean `q_value` and policy `entropy`, each ().
        """
        pair, next_pair, count = batch["pair"], batch["next_pair"], len(batch["pair"])
        # One pass of the actor serves both the target action and the actor's own loss.
        kept = self._actor_trunk.forward(self._actor_heads.forward(torch.cat([next_pair, pair])))
        mean, raw = kept[-1].chunk(2, dim=1)
        log_std = raw.clamp(*LOG_STD_RANGE)
        noise = torch.randn(2 * count, self.action_dim, generator=self._noise).to(self.device)
        sampled, log_prob = sample_squashed(mean, log_std, noise)
        alpha, discount = self.config.entropy_weight, self.config.discount
        first, second = _values(self._target_heads, self._targets, next_pair, sampled[:count])
        following = torch.minimum(first[-1], second[-1])[:, 0]
        later = discount * (following - alpha * log_prob[:count])
        goal = batch["reward"] + (later * batch["continues"] if "continues" in batch else later)
        loss, value = self._critic_step(pair, batch["action"], goal)
        action, own = sampled[count:], slice(count, None)
        # Of the actor's loss, mean of α log π - min Q, by the action and by its two parameters.
        slope = 1 - action.square()
        best, by_best = self._best_and_slope(pair, action)
        by_action = 2 * alpha * action / (slope + 1e-6) - by_best
        by_mean = by_action * slope / count
        by_log_std = by_mean * log_std[own].exp() * noise[own] - alpha / count
        by_log_std *= raw[own] == log_std[own]  # a clamped value has no influence
        if self.config.behaviour_weight > 0:
            likely = torch.tanh(mean[own])
            pull = 2 * self.config.behaviour_weight * best.abs().mean() / count
            by_mean = by_mean + pull * (likely - batch["action"]) * (1 - likely.square())
        gradient = torch.cat([by_mean, by_log_std], dim=1)
        gradient = self._actor_trunk.backward([layer[own] for layer in kept], gradient)
        self._actor_heads.backward(own, [(self._actor_trunk, gradient)])
        self._actor_optimiser.step()
        self._target_flat.lerp_(self._critic_flat, self.config.polyak)
        return {"critic_loss": loss, "q_value": value, "entropy": -log_prob[own].mean()}

    def _critic_step(self, pair: Tensor, action: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """One step on the squared error to `goal` (n,); the loss and the mean value, each ()."""
        both = _values(self._critic_heads, self._critics, pair, action)
        value = torch.stack([kept[-1][:, 0] for kept in both])
        gap = value - goal
        by_value = (2 / len(goal)) * gap
        flows = [
            (critic, critic.backward(kept, gradient[:, None]))
            for critic, kept, gradient in zip(self._critics, both, by_value, strict=True)
        ]
        self._critic_heads.backward(slice(None), flows)
        self._critic_optimiser.step()
        return gap.square().sum() / len(goal), value.mean()

    def _best_and_slope(self, pair: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The smaller value (n,), and its gradient by the action, (n, a)."""
        first, second = _values(self._critic_heads, self._critics, pair, action)
        smaller = (first[-1] <= second[-1]).float()
        columns = slice(-self.action_dim, None)
        by_first, by_second = (
            critic.inputs(critic.backward(kept, chosen, parameters=False), columns)
            for critic, kept, chosen in zip(
                self._critics, (first, second), (smaller, 1 - smaller), strict=True
            )
        )
        return torch.minimum(first[-1], second[-1])[:, 0], by_first + by_second

    @torch.no_grad()
    def first_value(self, pair: Tensor, action: Tensor) -> Tensor:
        """The first critic's value of features (n, w) and actions (n, a), (n,)."""
        return self.critic(pair, action)[0]

    @torch.no_grad()
    def sample(self, pair: Tensor, noise: Tensor) -> Tensor:
        """Actions of the current policy, (n, a), from standard normal noise (n, a)."""
        mean, log_std = self.actor(pair)
        return sample_squashed(mean, log_std, noise)[0]

    def export_policy(self) -> dict[str, np.ndarray]:
        """The actor's parameters as arrays that nobody else writes to."""
        return {k: v.detach().cpu().numpy().copy() for k, v in self.actor.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, optimisers and noise generator included."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "actor_optimiser": self._actor_optimiser.state_dict(),
            "critic_optimiser": self._critic_optimiser.state_dict(),
            "noise": self._noise.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        for name in ("actor", "critic", "target"):
            load_arrays(getattr(self, name), state[name])
        load_optimiser(self._actor_optimiser, state["actor_optimiser"])
        load_optimiser(self._critic_optimiser, state["critic_optimiser"])
        self._noise.set_state(torch.as_tensor(state["noise"]))


def _twin(critic: TwinCritic) -> tuple[Heads, list[Chain]]:
    return Heads(critic.heads), [Chain(critic.first), Chain(critic.second)]


def _values(
    heads: Heads, critics: list[Chain], pair: Tensor, action: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """What both critics keep; see `Chain.forward`."""
    inputs = torch.cat([heads.forward(pair), action], dim=1)
    first, second = critics
    return first.forward(inputs), second.forward(inputs)


class Policy:
    """The actor as a rollout uses it: features in, actions out, no gradients."""

    def __init__(self, config: SacConfig, features: Features, action_dim: int) -> None:
        """An actor with arbitrary weights until `load`."""
        self._features = features
        self._actor = Actor(features, action_dim, config.network, config.hidden).eval()

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copy weights from `GoalSac.export_policy`."""
        load_arrays(self._actor, weights)

    @torch.inference_mode()
    def act(
        self, observations: np.ndarray, goals: np.ndarray, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Actions (n, a) float32: sampled with `rng`, or tanh of the mean without."""
        pair = torch.from_numpy(self._features.pair(observations, goals))
        mean, log_std = self._actor(pair)
        if rng is not None:
            noise = torch.from_numpy(rng.standard_normal(mean.shape, np.float32))
            mean = mean + log_std.exp() * noise
        return torch.tanh(mean).numpy()
