"""Linear layers in float32 at the speed of the CPU.

PyTorch multiplies float32 matrices with MKL, which keeps to 256-bit instructions on CPUs that are
not Intel's. oneDNN, which PyTorch brings along too, uses all that the CPU has: about twice as fast
on a Zen 5, 0.94 to 1.5 times on a Zen 4, and as exact; a call costs 20 µs more. On Intel's CPUs all
products are left to MKL, which is as fast, and in gradients of weights 1.3 to 1.9 times. What is on
another device, of another type or under autocast goes the ordinary way too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach import cpu

Activation = Literal["none", "relu", "tanh", "gelu"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "gelu": torch.ops.aten.gelu_,
}
_IS_INTEL = cpu.is_intel()
# Whether MKL is as fast as oneDNN but for a tenth or so, less than what half a Gram matrix saves.
_MKL_IS_NEAR = _IS_INTEL or cpu.halves_wide_instructions()
# Multiplications from which oneDNN's call pays.
_LEAST_PRODUCT = 1 << 20
# The most blocks of columns into which a Gram matrix is split, and the fewest columns of one.
_MOST_BLOCKS, _LEAST_BLOCK = 4, 48
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
    if not _pays(inputs, weight) or len(weight) < _LEAST_OUTPUTS:
        result = F.linear(inputs, weight, bias)
        return result if activation == "none" else _ACTIVATIONS[activation](result)
    if torch.compiler.is_compiling():
        return _opaque_product(inputs, weight, bias, activation)
    return _product(inputs, weight, bias, activation)


def add_product(to: Tensor, inputs: Tensor, weight: Tensor) -> None:
    """To += inputs weightᵀ, without gradients: (n, after), (n, before), (after, before)."""
    if _pays(inputs, weight):
        to.add_(product(inputs, weight))
    else:
        to.addmm_(inputs, weight.t())


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    variant = "none" if activation == "gelu" else ""  # not the approximation
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        inputs, weight, bias, activation, [], variant
    )
    return result


@torch.library.custom_op("farreach::product", mutates_args=())
def _opaque_product(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The compiler leaves it as it is; left to itself it would go back to MKL."""
    return _product(inputs, weight, bias, activation)


@_opaque_product.register_fake
def _(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return inputs.new_empty(len(inputs), len(weight))


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, gradients included; can be differentiated once.

    Args:
        inputs: (…, before).
        weight: (after, before).
        bias: (after,).
    """
    if not _pays(inputs, weight) or inputs.ndim < 2 or torch.is_autocast_enabled("cpu"):
        return F.linear(inputs, weight, bias)
    flat = inputs.reshape(-1, inputs.shape[-1])
    result: Tensor = _Linear.apply(flat, weight, bias)
    return result.unflatten(0, inputs.shape[:-1])


def activated_linear(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
) -> Tensor:
    """activation(`linear`), without gradients."""
    if not _pays(inputs, weight) or torch.is_autocast_enabled("cpu"):
        return _ACTIVATIONS[activation](F.linear(inputs, weight, bias))
    flat = inputs.reshape(-1, inputs.shape[-1])
    return product(flat, weight, bias, activation).unflatten(0, inputs.shape[:-1])


def gelu_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """linear(gelu(inputs)), gradients included, without keeping gelu(inputs); arguments as there.

    It is computed again in the backward pass: a fifth of a transformer block's memory for a
    hundredth of its time.
    """
    if not _suits(inputs, weight) or inputs.ndim < 2 or torch.is_autocast_enabled("cpu"):
        return F.linear(F.gelu(inputs), weight, bias)
    flat = inputs.reshape(-1, inputs.shape[-1])
    result: Tensor = _GeluLinear.apply(flat, weight, bias)
    return result.unflatten(0, inputs.shape[:-1])


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear calls it that)
        """(…, before) → (…, after)."""
        return linear(input, self.weight, self.bias)


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


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(F.gelu(inputs), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        by_inputs, by_weight, by_bias = ctx.needs_input_grad
        return (
            torch.ops.aten.gelu_backward(product(gradient, weight.t()), inputs)
            if by_inputs
            else None,
            weight_gradient(F.gelu(inputs), gradient) if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


def weight_gradient(inputs: Tensor, gradient: Tensor) -> Tensor:
    """gradientᵀ inputs: (n, before), (n, after) → (after, before), perhaps not contiguous."""
    if _IS_INTEL:
        return gradient.t() @ inputs
    if inputs.shape[1] < gradient.shape[1]:
        # The other way round, a product with few columns is several times slower on a CPU.
        return product(inputs.t(), gradient.t()).t()
    return product(gradient.t(), inputs.t())


def _suits(inputs: Tensor, weight: Tensor) -> bool:
    if not _HAS_ONEDNN or torch.compiler.is_exporting():
        return False
    kinds = (inputs.dtype, weight.dtype, inputs.device.type)
    return kinds == (torch.float32, torch.float32, "cpu") and inputs.numel() > 0


def _pays(inputs: Tensor, weight: Tensor, size: int | None = None) -> bool:
    """Whether oneDNN is the faster one; `size` is how many multiplications there are at a time."""
    if _IS_INTEL or not _suits(inputs, weight):
        return False
    return (inputs.numel() * len(weight) if size is None else size) >= _LEAST_PRODUCT


def use_fast_linear(module: nn.Module) -> None:
    """Turn every `nn.Linear` in it into a `Linear`; parameters and their names stay."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


def batched(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A b + bias for each item of a batch of large matrices, gradients included.

    Args:
        a: (batch, n, k).
        b: (batch, k, m).
        bias: (batch, m).

    Returns:
        (batch, n, m).
    """
    size = a.shape[1] * a.shape[2] * b.shape[2]
    if not _pays(a, b, size=size) or torch.is_autocast_enabled("cpu"):
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias[:, None], a, b)
    result: Tensor = _Batched.apply(_dense(a), _dense(b), bias)
    return result


class _Batched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        rows = [None] * len(a) if bias is None else bias
        return torch.stack([product(x, y.t(), z) for x, y, z in zip(a, b, rows, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        gradient = _dense(gradient)
        by_a, by_b, by_bias = ctx.needs_input_grad
        items = list(zip(a, b, gradient, strict=True))
        return (
            torch.stack([product(g, y) for _, y, g in items]) if by_a else None,
            torch.stack([product(x.t(), g.t()) for x, _, g in items]) if by_b else None,
            gradient.sum(1) if by_bias else None,
        )


def gram(x: Tensor, backward_type: torch.dtype | None = None) -> Tensor:
    """Gram matrices xᵀ x, gradients included: (batch, n, k) → (batch, k, k).

    They are symmetric: where MKL multiplies, blocks below the diagonal are copied, and on CPUs the
    backward pass is one product. Can be differentiated once.

    Args:
        x: (batch, n, k).
        backward_type: in which CPUs multiply in the backward pass, unless in that of x.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return torch.bmm(x.transpose(1, 2), x)
    result: Tensor = _Gram.apply(x.contiguous(), backward_type or x.dtype)
    return result


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backward_type: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        ctx.backward_type = backward_type
        if not _MKL_IS_NEAR and _pays(x, x, size=x.shape[1] * x.shape[2] ** 2):
            return torch.stack([product(item.t(), item.t()) for item in x])
        width = x.shape[2]
        count = max(1, min(width // _LEAST_BLOCK, _MOST_BLOCKS))
        result = x.new_empty(len(x), width, width)
        for block in range(count):
            begin, end = (width * i // count for i in (block, block + 1))
            rows = result[:, begin:end]
            torch.bmm(x[:, :, begin:end].transpose(1, 2), x[:, :, begin:], out=rows[:, :, begin:])
            result[:, end:, begin:end] = rows[:, :, end:].transpose(1, 2)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        both = (gradient + gradient.transpose(1, 2)).to(ctx.backward_type)
        return batched(x.to(ctx.backward_type), both).to(x.dtype), None


def _dense(matrices: Tensor) -> Tensor:
    """The same with each matrix, or its transpose, in one piece."""
    if matrices.is_contiguous() or matrices.transpose(1, 2).is_contiguous():
        return matrices
    return matrices.contiguous()
