"""Adaptive sharpness-aware minimisation (ASAM, arXiv:2102.11600), over any optimizer.

The gradient of an update is taken where the loss is highest nearby. Near is measured in units of
the weights' own sizes, so that scaling layers against one another changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from farreach.learn.collectives import total


class Asam(torch.optim.Optimizer):
    """Steps of another optimizer, with gradients that a second pass over the batch gives.

    ```
    loss().backward(); optimizer.ascend()     # the weights move uphill
    optimizer.zero_grad(); loss().backward(); optimizer.step()   # they return, and the other steps
    ```
    Groups and state are the other optimizer's.
    """

    def __init__(self, inner: torch.optim.Optimizer, radius: float, floor: float) -> None:
        """Around an optimizer.

        Args:
            inner: it takes the steps.
            radius: ρ, how far uphill.
            floor: η, what is added to the sizes of the weights.
        """
        self._inner, self._radius, self._floor = inner, radius, floor
        self._before: list[tuple[Tensor, Tensor]] = []
        self._made = False
        super().__init__(inner.param_groups, {})
        self._made = True
        self.param_groups = inner.param_groups
        self.state = inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the other optimizer."""
        if self._made:
            self._inner.add_param_group(param_group)

    @torch.no_grad()
    def ascend(self) -> None:
        """W ← w + ρ T² g / ‖T g‖ with T = |w| + η, of all weights with a gradient (equation 5)."""
        moving = [
            (weight, (weight.abs() + self._floor), weight.grad)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        if not moving:
            return
        square = torch.zeros((), device=moving[0][0].device)
        for _, size, gradient in moving:
            square += _sum_of_squares(size * gradient)
        scale = self._radius / square.sqrt().clamp(min=1e-12)
        self._before = [(weight, weight.detach().clone()) for weight, _, _ in moving]
        for weight, size, gradient in moving:
            weight.add_(size.square() * gradient * scale)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Return to where the weights were, and let the other optimizer step."""
        for weight, before in self._before:
            weight.copy_(before)
        self._before.clear()
        return self._inner.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """The other optimizer's."""
        return self._inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the other optimizer."""
        self._inner.load_state_dict(state_dict)
        self.param_groups, self.state = self._inner.param_groups, self._inner.state


def _sum_of_squares(x: Tensor) -> Tensor:
    """Over all workers, if each has a part of it."""
    if hasattr(x, "to_local"):
        return total(x.to_local().float().square().sum())
    return x.float().square().sum()
