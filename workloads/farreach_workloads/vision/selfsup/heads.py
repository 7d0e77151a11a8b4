"""What training puts on an encoder: layers to an embedding space, and prototypes in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from farreach.learn.collectives import BatchNorm1d
from farreach.linear import Linear

INIT_STD = 0.02


def projector(
    widths: Sequence[int],
    activation: type[nn.Module] = nn.GELU,
    *,
    normalised: bool = True,
    init_std: float | None = INIT_STD,
) -> nn.Sequential:
    """Linear layers from the first of `widths` to the last, with an activation between two.

    Args:
        widths: of features, of what is between, and of embeddings.
        activation: made anew for every layer but the last, which is plain.
        normalised: batch normalisation comes before every activation. What it normalises over are
            the rows of one call, of all workers.
        init_std: of the normal distribution that weights are drawn from; None: PyTorch's own.
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        linear = Linear(before, after)
        if init_std is not None:
            nn.init.trunc_normal_(linear.weight, std=init_std)
            nn.init.zeros_(linear.bias)
        layers.append(linear)
        if number < len(widths) - 2:
            layers += [BatchNorm1d(after), activation()] if normalised else [activation()]
    return nn.Sequential(*layers)


def prototypes(count: int, dim: int) -> nn.Parameter:
    """(count, dim) float32, uniform in ±1/√dim."""
    bound = 1 / math.sqrt(dim)
    return nn.Parameter(torch.empty(count, dim).uniform_(-bound, bound))


def product(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows, (n, d) and (k, d) → (n, k), as precise under autocast as without.

    Losses divide them by temperatures of some hundredths, which bfloat16's error would not survive.
    """
    with torch.autocast(one.device.type, enabled=False):
        return one @ other.t()


@torch.no_grad()
def whole(parameter: Tensor) -> Tensor:
    """All of a parameter that may be split over workers, without a gradient."""
    parameter = parameter.detach()
    found: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return found
