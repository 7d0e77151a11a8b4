"""Attention between the channels of a head (XCiT, arXiv:2106.09681 section 3.2) on CPUs.

Queries, keys and values stay where the projection wrote them, side by side for each token: products
read them there and gradients are written to the same places, without copies by head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12
# Values of an image's queries, keys and values from which a call for each image pays.
_LEAST = 3 << 14


def suits(qkv: Tensor) -> bool:
    """Whether `attend_channels` takes it and is the quicker way."""
    return (
        qkv.device.type == "cpu"
        and qkv.dtype in (torch.float32, torch.float64)
        and qkv.shape[1] * qkv.shape[2] >= _LEAST
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
        dim = width // heads
        cosines = qkv.new_empty(batch, heads, dim, dim)
        lengths = qkv.new_empty(batch, 2 * width)
        for image, cosine, length in zip(qkv, cosines, lengths, strict=True):
            q, k, _ = _by_head(image, 3, heads)
            torch.bmm(q.transpose(1, 2), k, out=cosine)
            torch.sum(image[:, : 2 * width].square(), dim=0, out=length)
        lengths = lengths.sqrt_().clamp_(min=EPSILON).unflatten(1, (2, heads, dim))
        q_lengths, k_lengths = lengths.unbind(1)
        cosines.div_(q_lengths[..., None]).div_(k_lengths[:, :, None])
        attention = (cosines * temperature).softmax(dim=-1)
        result = qkv.new_empty(batch, tokens, width)
        for image, weights, own in zip(qkv, attention, result, strict=True):
            v = _by_head(image, 3, heads)[2]
            torch.bmm(v, weights.transpose(1, 2), out=_by_head(own, 1, heads)[0])
        ctx.save_for_backward(qkv, temperature, cosines, attention, lengths)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        qkv, temperature, cosines, attention, lengths = ctx.saved_tensors
        heads, width = len(temperature), qkv.shape[2] // 3
        gradient = gradient.contiguous()
        by_attention = torch.empty_like(attention)
        for image, own, result in zip(qkv, gradient, by_attention, strict=True):
            v, own = _by_head(image, 3, heads)[2], _by_head(own, 1, heads)[0]
            torch.bmm(own.transpose(1, 2), v, out=result)
        by_logits = torch._softmax_backward_data(by_attention, attention, -1, attention.dtype)
        by_temperature = (by_logits * cosines).sum((0, 2, 3))[:, None, None]
        by_cosines = by_logits * temperature
        along = by_cosines * cosines
        q_lengths, k_lengths = lengths.unbind(1)
        # A length that was raised to ε does not follow its channel.
        share = torch.stack([along.sum(3), along.sum(2)], dim=1) / lengths.square()
        share = (share * (lengths > EPSILON)).flatten(1)
        by_product = by_cosines.div_(q_lengths[..., None]).div_(k_lengths[:, :, None])
        by_qkv = torch.empty_like(qkv)
        items = zip(qkv, gradient, by_product, attention, share, by_qkv, strict=True)
        for image, own, by_p, weights, part, result in items:
            q, k, _ = _by_head(image, 3, heads)
            by_q, by_k, by_v = _by_head(result, 3, heads)
            torch.bmm(k, by_p.transpose(1, 2), out=by_q)
            torch.bmm(q, by_p, out=by_k)
            torch.bmm(_by_head(own, 1, heads)[0], weights, out=by_v)
            result[:, : 2 * width].addcmul_(image[:, : 2 * width], part, value=-1)
        return by_qkv, by_temperature


def _by_head(image: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Views of one image's tokens: (n, parts × h × d) → (h, n, d) for each part."""
    return image.unflatten(1, (parts, heads, -1)).permute(1, 2, 0, 3).unbind(0)
