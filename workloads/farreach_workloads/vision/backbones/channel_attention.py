"""Attention between the channels of a head (XCiT, arXiv:2106.09681 section 3.2) on CPUs.

Queries, keys and values stay where the projection wrote them, side by side for each token: products
read them there and gradients are written to the same places, without copies by head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12
# Values of an image's queries, keys and values from which a call for each image pays; with fewer
# it is one for each head.
_LEAST = 3 << 14
# Tokens below which copies by head are the quicker way.
_FEWEST_TOKENS = 32


def suits(qkv: Tensor) -> bool:
    """Whether `attend_channels` takes it and is the quicker way."""
    return (
        qkv.device.type == "cpu"
        and qkv.dtype in (torch.float32, torch.float64)
        and qkv.shape[1] >= _FEWEST_TOKENS
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch.is_autocast_enabled("cpu")
    )


def attend_channels(qkv: Tensor, temperature: Tensor) -> Tensor:
    """V softmax(τ q̂ᵀ k̂)ᵀ, channels of q̂ and k̂ divided by their lengths over the tokens.

    Args:
        qkv: (b, n, 3 × h × d), all queries before all keys before all values.
        temperature: τ, (h, 1, 1).

    Returns:
        (b, n, h × d); can be differentiated once.
    """
    result: Tensor = _ChannelAttention.apply(qkv.contiguous(), temperature)
    return result


class _ChannelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor) -> Tensor:
        heads = len(temperature)
        batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        dim, axis = width // heads, _axis(qkv)
        pieces = _pieces(qkv, 3, heads, axis)
        cosines = qkv.new_empty(batch, heads, dim, dim)
        for (q, k, _), product in zip(pieces, cosines.unbind(axis), strict=True):
            torch.bmm(q.transpose(1, 2), k, out=product)
        lengths = qkv.new_empty(batch, 2 * width)
        for image, length in _blocks(axis, qkv[:, :, : 2 * width], lengths):
            torch.sum(image.square(), dim=1, out=length)
        lengths = lengths.sqrt_().clamp_(min=EPSILON).unflatten(1, (2, heads, dim))
        q_lengths, k_lengths = lengths.unbind(1)
        cosines.div_(q_lengths[..., None]).div_(k_lengths[:, :, None])
        attention = (cosines * temperature).softmax(dim=-1)
        result = qkv.new_empty(batch, tokens, width)
        items = zip(pieces, attention.unbind(axis), _pieces(result, 1, heads, axis), strict=True)
        for (_, _, v), weights, (own,) in items:
            torch.bmm(v, weights.transpose(1, 2), out=own)
        ctx.save_for_backward(qkv, temperature, cosines, attention, lengths)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        qkv, temperature, cosines, attention, lengths = ctx.saved_tensors
        heads, width, axis = len(temperature), qkv.shape[2] // 3, _axis(qkv)
        pieces = _pieces(qkv, 3, heads, axis)
        gradients = _pieces(gradient.contiguous(), 1, heads, axis)
        by_attention = torch.empty_like(attention)
        matrices = by_attention.unbind(axis)
        for (_, _, v), (own,), result in zip(pieces, gradients, matrices, strict=True):
            torch.bmm(own.transpose(1, 2), v, out=result)
        by_logits = torch._softmax_backward_data(by_attention, attention, -1, attention.dtype)
        by_temperature = (by_logits * cosines).sum((0, 2, 3))[:, None, None]
        by_cosines = by_logits * temperature
        along = by_cosines * cosines
        q_lengths, k_lengths = lengths.unbind(1)
        # A length that was raised to ε does not follow its channel.
        share = torch.stack([along.sum(3), along.sum(2)], dim=1) / lengths.square()
        share = (share * (lengths > EPSILON)).flatten(1)[:, None]
        by_product = by_cosines.div_(q_lengths[..., None]).div_(k_lengths[:, :, None])
        by_qkv = torch.empty_like(qkv)
        products = zip(by_product.unbind(axis), attention.unbind(axis), strict=True)
        results = _pieces(by_qkv, 3, heads, axis)
        items = zip(pieces, gradients, products, results, strict=True)
        for (q, k, _), (own,), (by_p, weights), (by_q, by_k, by_v) in items:
            torch.bmm(k, by_p.transpose(1, 2), out=by_q)
            torch.bmm(q, by_p, out=by_k)
            torch.bmm(own, weights, out=by_v)
        both = qkv[:, :, : 2 * width], by_qkv[:, :, : 2 * width]
        for image, result, part in _blocks(axis, *both, share):
            result.addcmul_(image, part, value=-1)
        return by_qkv, by_temperature


def _axis(qkv: Tensor) -> int:
    """Of (b, h, …), that of which every part has a call of its own: images or heads."""
    return 0 if qkv.shape[1] * qkv.shape[2] >= _LEAST else 1


def _pieces(x: Tensor, parts: int, heads: int, axis: int) -> list[tuple[Tensor, ...]]:
    """Views of (b, n, parts × h × d): for each image (h, n, d) or each head (b, n, d) its parts."""
    split = x.unflatten(2, (parts, heads, -1))
    order = (3, 2, 0, 1, 4) if axis else (0, 2, 3, 1, 4)
    return [piece.unbind(0) for piece in split.permute(order).unbind(0)]


def _blocks(axis: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Parts of tensors (b, …) that fit the caches: all at once, or an image at a time."""
    if axis:
        return [tensors]
    return list(zip(*[x.split(1) for x in tensors], strict=True))
