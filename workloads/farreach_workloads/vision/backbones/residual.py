"""What the blocks of all families do: add a scaled branch, and a two-layer network."""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from farreach.linear import Linear, activated_linear


def add_scaled(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
    """X + scale × branch in one pass, laid out as x; without gradients in the branch's own memory.

    Args:
        x: (…, c).
        scale: (c,).
        branch: (…, c), which nobody else reads.
    """
    if torch.is_grad_enabled() or branch.dtype != x.dtype:
        return torch.addcmul(x, scale, branch)
    if branch.stride() != x.stride():
        branch = branch.contiguous()
    return torch.addcmul(x, scale, branch, out=branch)


class FusedMlp(Mlp):
    """timm's, with the activation inside the first product while nothing is learnt."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, c) → (…, c)."""
        first = self.fc1
        plain = torch.is_grad_enabled() or self.training or type(first) is not Linear
        if plain or type(self.act) is not nn.GELU or self.act.approximate != "none":
            result: Tensor = super().forward(x)
            return result
        hidden: Tensor = self.fc2(activated_linear(x, first.weight, first.bias, "gelu"))
        return hidden
