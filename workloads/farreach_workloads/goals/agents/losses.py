"""Losses that several agents share."""

from __future__ import annotations

import torch
from torch import Tensor

# Weight beyond which advantage-weighted regression follows no action more.
LARGEST_WEIGHT = 100.0


def expectile(advantage: Tensor, error: Tensor, level: float) -> Tensor:
    """|level - 1(advantage < 0)| × error², (n,) both → (n,).

    Source: implicit Q-learning (arXiv:2110.06169), equation 5.
    """
    weight = torch.where(advantage >= 0, level, 1 - level)
    return weight * error.square()


def behaviour(mean: Tensor, action: Tensor) -> Tensor:
    """-log π(a|s, g) of a Gaussian with unit variance up to a constant, (n, a) both → (n,)."""
    return 0.5 * (mean - action).square().sum(dim=1)


def advantage_weighted(advantage: Tensor, loss: Tensor, temperature: float) -> Tensor:
    """Mean of exp(temperature × advantage), at most `LARGEST_WEIGHT`, × loss: (n,) both → ().

    Source: advantage-weighted regression (arXiv:1910.00177), equation 5.
    """
    weight = torch.exp(temperature * advantage.detach()).clamp(max=LARGEST_WEIGHT)
    return (weight * loss).mean()


def value_and_behaviour(value: Tensor, loss: Tensor, weight: float) -> Tensor:
    """Mean of -value / mean |value| + weight × loss: (n,) both → ().

    The scale of the values does not matter then. Source: TD3+BC (arXiv:2106.06860), equation 3.
    """
    scale = value.detach().abs().mean() + 1e-6
    return -value.mean() / scale + weight * loss.mean()
