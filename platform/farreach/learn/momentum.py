"""Networks that follow another one: moving averages of its parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from farreach.learn.place import is_split


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """θ̄ ← m θ̄ + (1 - m) θ for all parameters, in their order; buffers stay the target's own.

    Both may be split over workers, in the same way.
    """
    for part in target.modules():
        if is_split(part):
            part.reshard()  # after a pass without gradients some are still whole
    theirs: list[Tensor] = [_local(p) for p in target.parameters()]
    ours: list[Tensor] = [_local(p) for p in source.parameters()]
    torch._foreach_lerp_(theirs, ours, 1.0 - momentum)


def _local(parameter: Tensor) -> Tensor:
    """This worker's part of it."""
    parameter = parameter.detach()
    part: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part
