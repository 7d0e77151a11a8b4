"""Linear layers in float32 at the speed of the CPU.

PyTorch multiplies float32 matrices with MKL, which keeps to 256-bit instructions on CPUs that are
not Intel's. oneDNN, which PyTorch brings along too, uses all that the CPU has: about twice as fast
there, and as exact. Anything else (another device, another type, autocast) goes the ordinary way.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "relu", "tanh"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
# Of fewer outputs there is nothing to gain.
_LEAST_OUTPUTS = 2


def product(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """activation(inputs weightᵀ + bias), without gradients.

    Args:
        inputs: (n, before), contiguous or the transpose of something contiguous.
        weight: (after, before), likewise; a selection of columns would be very slow.
        bias: (after,).
        activation: of the result.

    Returns:
        (n, after).
    """
    if _suits(inputs, weight) and len(weight) >= _LEAST_OUTPUTS:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, weight, bias, activation, [], ""
        )
        return result
    result = F.linear(inputs, weight, bias)
    if activation == "none":
        return result
    return result.relu_() if activation == "relu" else result.tanh_()


class Linear(nn.Linear):
    """`nn.Linear`, gradients included; can be differentiated once."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear calls it that)
        """(…, before) → (…, after)."""
        if not _suits(input, self.weight) or input.ndim < 2 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        flat = input.reshape(-1, input.shape[-1])
        result: Tensor = _Linear.apply(flat, self.weight, self.bias)
        return result.unflatten(0, input.shape[:-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        by_inputs, by_weight, by_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if by_inputs else None,
            weight_gradient(inputs, gradient) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def weight_gradient(inputs: Tensor, gradient: Tensor) -> Tensor:
    """gradientᵀ inputs: (n, before), (n, after) → (after, before), perhaps not contiguous."""
    if inputs.shape[1] < gradient.shape[1]:
        # The other way round, a product with few columns is several times slower on a CPU.
        return product(inputs.t(), gradient.t()).t()
    return product(gradient.t(), inputs.t())


def _suits(inputs: Tensor, weight: Tensor) -> bool:
    kinds = (inputs.dtype, weight.dtype, inputs.device.type)
    return _HAS_ONEDNN and kinds == (torch.float32, torch.float32, "cpu") and inputs.numel() > 0
