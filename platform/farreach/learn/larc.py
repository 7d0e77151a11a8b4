"""Layer-wise adaptive rates: SGD whose every tensor moves in proportion to its own norm.

Source: LARC of NVIDIA's apex without clipping, as SwAV (arXiv:2006.09882) and SEER
(arXiv:2202.08360) use it; with `adapts` false for norms and biases it is LARS (arXiv:1708.03888).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-8


class Larc(torch.optim.Optimizer):
    """With r = η ‖p‖ / (‖g‖ + λ ‖p‖): v ← μ v + r (g + λ p), p ← p - lr v.

    The norms are those of whole tensors, where they are split over workers too: all of a group are
    summed in one exchange. Where p or g is 0, g alone takes the place of r (g + λ p).

    A parameter group may set `lr`, `weight_decay`, and `adapts`: false leaves r at 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        """Of parameters or groups of them; `trust` is η."""
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapts": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving:
                self._move(group, moving, [p.grad for p in moving])
        return loss

    def _move(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        decay = group["weight_decay"]
        moves = torch._foreach_add(gradients, parameters, alpha=decay)
        if group["adapts"]:
            sizes, slopes = _norms(parameters), _norms(gradients)
            rates = group["trust"] * sizes / (slopes + decay * sizes + EPSILON)
            # What has no size yet moves by its gradient; what has no gradient stays.
            rates = torch.where(sizes > 0, rates, 1.0) * (slopes > 0)
            for move, rate in zip(moves, rates.unbind(), strict=True):
                move.mul_(rate)
        for parameter, move in zip(parameters, moves, strict=True):
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["momentum_buffer"].mul_(group["momentum"]).add_(move)
            parameter.sub_(state["momentum_buffer"], alpha=group["lr"])


def _norms(tensors: Any) -> Tensor:
    """Of each tensor, the parts of all workers together: (n,)."""
    norms = torch.stack(torch._foreach_norm(tensors))
    whole: Tensor = norms.full_tensor() if hasattr(norms, "full_tensor") else norms
    return whole
