"""Networks of goal-conditioned SAC: actor and twin critics over (state, goal) features.

Source: arXiv:2301.02099 and the code arXiv:2206.11733 grew from, for the separate heads.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)
HEAD_HIDDEN, HEAD_WIDTH = 64, 16


class InputWidths(Protocol):
    """Widths of a network's input: of the state's part, and of all of it; see `Features`."""

    @property
    def observation_width(self) -> int:
        """Of the state."""

    @property
    def pair_width(self) -> int:
        """Of state and goal together."""


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


def _input(network: str, features: InputWidths) -> tuple[nn.Module, int]:
    if network == "heads":
        goal = features.pair_width - features.observation_width
        return PairHeads(features.observation_width, goal), 2 * HEAD_WIDTH
    return nn.Identity(), features.pair_width


class Actor(nn.Module):
    """Squashed Gaussian policy over (state, goal) features."""

    def __init__(self, features: InputWidths, action_dim: int, network: str, hidden: int) -> None:
        """`network` is `concat` or `heads`, see `SacConfig`."""
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

    def __init__(self, features: InputWidths, action_dim: int, network: str, hidden: int) -> None:
        """See `Actor`."""
        super().__init__()
        self.heads, width = _input(network, features)
        self.first = _trunk(width + action_dim, hidden, 1)
        self.second = _trunk(width + action_dim, hidden, 1)

    def forward(self, pair: Tensor, action: Tensor) -> Tensor:
        """(n, pair width), (n, actions) → both values (2, n)."""
        inputs = torch.cat([self.heads(pair), action], dim=1)
        return torch.stack([self.first(inputs)[:, 0], self.second(inputs)[:, 0]])
