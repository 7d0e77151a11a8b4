"""Goal-conditioned SAC with a fixed entropy weight: networks, losses and one update.

Source: arXiv:2301.02099 and the code arXiv:2206.11733 grew from: twin critics, no gradient
clipping, target network after every step, nothing is terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach import seeding
from farreach_workloads.goals.reachability_trainer import load_arrays, load_optimiser

if TYPE_CHECKING:
    from farreach_workloads.goals.config import AgentConfig
    from farreach_workloads.goals.features import Features

LOG_STD_RANGE = (-20.0, 2.0)
HEAD_HIDDEN, HEAD_WIDTH = 64, 16


def _linear(before: int, after: int) -> nn.Linear:
    layer = nn.Linear(before, after)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _trunk(before: int, hidden: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        _linear(before, hidden),
        nn.ReLU(),
        _linear(hidden, hidden),
        nn.ReLU(),
        _linear(hidden, after),
    )


class PairHeads(nn.Module):
    """The paper's input: one small tanh network for the state, another for the goal."""

    def __init__(self, observation: int, goal: int) -> None:
        """For inputs that are `observation` state features followed by `goal` goal features."""
        super().__init__()
        self.sizes = [observation, goal]
        self.heads = nn.ModuleList(
            nn.Sequential(
                _linear(size, HEAD_HIDDEN),
                nn.Tanh(),
                _linear(HEAD_HIDDEN, HEAD_HIDDEN),
                nn.Tanh(),
                _linear(HEAD_HIDDEN, HEAD_WIDTH),
            )
            for size in self.sizes
        )

    def forward(self, pair: Tensor) -> Tensor:
        """(n, observation + goal) → (n, 2 × head width)."""
        parts = zip(self.heads, pair.split(self.sizes, dim=1), strict=True)
        return torch.cat([head(part) for head, part in parts], dim=1)


def _input(network: str, features: Features) -> tuple[nn.Module, int]:
    if network == "heads":
        goal = features.pair_width - features.observation_width
        return PairHeads(features.observation_width, goal), 2 * HEAD_WIDTH
    return nn.Identity(), features.pair_width


class Actor(nn.Module):
    """Squashed Gaussian policy over (state, goal) features."""

    def __init__(self, features: Features, action_dim: int, network: str, hidden: int) -> None:
        """`network` is `concat` or `heads`, see `AgentConfig`."""
        super().__init__()
        self.heads, width = _input(network, features)
        self.trunk = _trunk(width, hidden, 2 * action_dim)

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """(n, pair width) → mean and log standard deviation before squashing, (n, actions)."""
        mean, log_std = self.trunk(self.heads(pair)).chunk(2, dim=1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


def sample_squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Action tanh(u) with u = mean + std × noise, and its log-probability.

    log π = Σ [log N(u) - log(1 - tanh(u)² + 1e-6)].

    Args:
        mean: (n, a).
        log_std: (n, a).
        noise: (n, a), standard normal.

    Returns:
        (n, a) in (-1, 1), and (n,) in nats.
    """
    action = torch.tanh(mean + log_std.exp() * noise)
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = (log_normal - torch.log(1 - action.square() + 1e-6)).sum(dim=1)
    return action, log_prob


class TwinCritic(nn.Module):
    """Two Q functions; they share the heads, if there are any, as in the paper's code."""

    def __init__(self, features: Features, action_dim: int, network: str, hidden: int) -> None:
        """See `Actor`."""
        super().__init__()
        self.heads, width = _input(network, features)
        self.first = _trunk(width + action_dim, hidden, 1)
        self.second = _trunk(width + action_dim, hidden, 1)

    def forward(self, pair: Tensor, action: Tensor) -> Tensor:
        """(n, pair width), (n, actions) → both values (2, n)."""
        inputs = torch.cat([self.heads(pair), action], dim=1)
        return torch.stack([self.first(inputs)[:, 0], self.second(inputs)[:, 0]])


class GoalSac:
    """Networks, targets and optimisers; `update` is one gradient step of everything."""

    def __init__(
        self, config: AgentConfig, features: Features, action_dim: int, seed: int, device: str
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
        self.target.requires_grad_(False)
        self._actor_parameters: list[Tensor] = list(self.actor.parameters())
        self._critic_parameters: list[Tensor] = list(self.critic.parameters())
        self._target_parameters: list[Tensor] = list(self.target.parameters())
        self._actor_optimiser = torch.optim.Adam(self._actor_parameters, lr=config.lr, fused=True)
        self._critic_optimiser = torch.optim.Adam(self._critic_parameters, lr=config.lr, fused=True)
        self._noise = torch.Generator().manual_seed(seeding.child_seed(seed, "agent/noise"))

    def set_lr(self, lr: float) -> None:
        """Learning rate of both optimisers from now on."""
        for optimiser in (self._actor_optimiser, self._critic_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = lr

    def update(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One step of critic, actor and target.

        Args:
            batch: `pair` (n, w) and `next_pair` (n, w) features of (s, g) and (s', g), `action`
                (n, a), `reward` (n,).

        Returns:
            Critic loss, mean Q and policy entropy, each () and detached.
        """
        pair, action = batch["pair"], batch["action"]
        count = len(pair)
        # One pass of the actor serves both the target action and the actor's own loss.
        mean, log_std = self.actor(torch.cat([batch["next_pair"], pair]))
        noise = torch.randn(2 * count, self.action_dim, generator=self._noise).to(self.device)
        sampled, log_prob = sample_squashed(mean, log_std, noise)
        alpha, discount = self.config.entropy_weight, self.config.discount
        with torch.no_grad():
            following = self.target(batch["next_pair"], sampled[:count]).amin(dim=0)
            goal = batch["reward"] + discount * (following - alpha * log_prob[:count])
        values = self.critic(pair, action)
        critic_loss = F.mse_loss(values, goal.expand_as(values), reduction="sum") / count
        _step(self._critic_optimiser, critic_loss, self._critic_parameters)
        # Gradients of the actor's parameters only: the critic's would be computed for nothing.
        best = self.critic(pair, sampled[count:]).amin(dim=0)
        actor_loss = (alpha * log_prob[count:] - best).mean()
        _step(self._actor_optimiser, actor_loss, self._actor_parameters)
        torch._foreach_lerp_(self._target_parameters, self._critic_parameters, self.config.polyak)
        return critic_loss.detach(), values.detach().mean(), -log_prob[count:].detach().mean()

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


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, parameters: list[Tensor]) -> None:
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()


class Policy:
    """The actor as a rollout uses it: features in, actions out, no gradients."""

    def __init__(self, config: AgentConfig, features: Features, action_dim: int) -> None:
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
