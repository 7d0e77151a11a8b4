"""Parts of residual blocks that keep less for the backward pass than PyTorch's own do.

Results and gradients are those of the plain operations. They are for eager training;
`torch.compile` decides by itself what it keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ConvNormAct
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn
from torch.nn import functional as F


def parted(x: Tensor, rows: Tensor, mine: bool) -> tuple[Tensor, Tensor]:
    """x, or a copy of it if others read it, and x[rows].

    Args:
        x: (b, …).
        rows: (k,) int64.
        mine: nobody else reads x, which may be written to.
    """
    both: tuple[Tensor, Tensor] = _Parted.apply(x, rows, mine)
    return both


def joined(base: Tensor, rows: Tensor, branch: Tensor, scale: float) -> Tensor:
    """base[rows] += scale · branch, in its place; nothing is kept but the rows.

    Args:
        base: (b, …).
        rows: (k,) int64.
        branch: (k, …).
        scale: what the branch counts.
    """
    both: Tensor = _Joined.apply(base, rows, branch, scale)
    return both


def rectified(x: Tensor) -> Tensor:
    """ReLU in the place of x, of which a byte a number is kept."""
    positive: Tensor = _Rectified.apply(x)
    return positive


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] in memory laid out as that of x, row by row and not number by number."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows) if x.is_contiguous() else x[rows]


def _add_rows(base: Tensor, rows: Tensor, added: Tensor, scale: float = 1.0) -> Tensor:
    """Add scale · added to some rows of base, in its place."""
    if base.device.type != "cpu":
        return base.index_add_(0, rows, added, alpha=scale)
    # Row by row in whole vectors: index_add_ goes number by number and takes longer.
    for row, each in zip(rows.tolist(), added.unbind(), strict=True):
        base[row].add_(each, alpha=scale)
    return base


class _Parted(torch.autograd.Function):
    """x, or a copy of it if others read it, and some of its rows, (k, …).

    PyTorch's own backward pass of indexing makes a whole tensor of zeros for the rows alone, and
    adds it to what came by the other way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, mine: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        taken = rows_of(x, rows)
        if not mine:
            return x.clone(), taken
        ctx.mark_dirty(x)  # what is done to it next is done in its place
        return x, taken

    @staticmethod
    def backward(ctx: Any, whole: Tensor, taken: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return _add_rows(whole.clone(), rows, taken), None, None


class _Joined(torch.autograd.Function):
    """base + scale · branch in the rows of base that are named, in its place.

    PyTorch's own keeps the branch for the backward pass, of which it needs nothing but the shape.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, rows: Tensor, branch: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.scale, ctx.dtype = scale, branch.dtype
        ctx.mark_dirty(base)
        return _add_rows(base, rows, branch.to(base.dtype), scale)

    @staticmethod
    def backward(ctx: Any, whole: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (rows,) = ctx.saved_tensors
        return whole, None, (rows_of(whole, rows) * ctx.scale).to(ctx.dtype), None


class _Rectified(torch.autograd.Function):
    """ReLU in the place of x, of which a byte a number is kept for the backward pass.

    PyTorch's own keeps the result, all of it; but the next branch needs no more than its rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x <= 0)
        ctx.mark_dirty(x)
        return x.relu_()

    @staticmethod
    def backward(ctx: Any, whole: Tensor) -> Tensor:
        (is_flat,) = ctx.saved_tensors
        return whole.masked_fill(is_flat, 0)


def gated(squeeze: Any, after: Any, x: Tensor) -> Tensor:
    """after(squeeze(x)), of which the gated activations are not kept.

    Args:
        squeeze: squeeze-and-excitation, arXiv:1709.01507.
        after: a convolution of single pixels, and what follows it.
        x: (b, c, h, w).
    """
    z: Tensor
    if not (_is_plain_squeeze(squeeze) and _is_of_pixels(after)) or torch.compiler.is_compiling():
        z = after(squeeze(x))
        return z
    narrow = squeeze.act(squeeze.bn(squeeze.fc1(x.mean((2, 3), keepdim=True))))
    gate = squeeze.gate(squeeze.fc2(narrow))
    z = after.bn(_GatedPixels.apply(x, gate, after.conv.weight))
    return z


def strided(shortcut: Any, x: Tensor) -> Tensor:
    """shortcut(x); one that reads a pixel in so many keeps none of the others.

    Args:
        shortcut: maybe a convolution of single pixels with a stride, and what follows it.
        x: (b, c, h, w).
    """
    z: Tensor
    if torch.compiler.is_compiling() or not _is_of_pixels(shortcut, strides=True):
        z = shortcut(x)
        return z
    down, across = shortcut.conv.stride
    if down == across == 1:
        z = shortcut(x)
        return z
    z = shortcut.bn(F.conv2d(x[:, :, ::down, ::across].clone(), shortcut.conv.weight))
    return z


def _is_plain_squeeze(part: Any) -> bool:
    return type(part) is SEModule and not part.add_maxpool


def _is_of_pixels(part: Any, strides: bool = False) -> bool:
    """A convolution of one pixel each, without bias, and a norm."""
    if type(part) is not ConvNormAct or getattr(part, "aa", None) is not None:
        return False
    conv = part.conv
    return (
        type(conv) is nn.Conv2d
        and conv.bias is None
        and conv.kernel_size == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and (strides or conv.stride == (1, 1))
    )


class _GatedPixels(torch.autograd.Function):
    """The convolution of gate · x with (d, c, 1, 1); the product is made again when it is needed.

    x is kept anyway by the activation that it is the result of.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        return F.conv2d(x * gate, weight)

    @staticmethod
    def backward(ctx: Any, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gate, weight = ctx.saved_tensors
        made = (x * gate).to(whole.dtype)
        of_made, of_weight, _ = torch.ops.aten.convolution_backward(
            whole,
            made,
            weight.to(whole.dtype),
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [True, True, False],
        )
        of_gate = (of_made * x).sum((2, 3), keepdim=True)
        return (of_made * gate).to(x.dtype), of_gate.to(gate.dtype), of_weight.to(weight.dtype)
