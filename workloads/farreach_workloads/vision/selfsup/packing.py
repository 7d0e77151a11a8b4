"""Blocks of a vision transformer over the tokens of views of several sizes at once.

Linear layers, norms and activations see the tokens of all views in one piece; attention goes view
by view size. Each token's result is what the block makes of its view alone.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.linear import gelu_linear

# (images, tokens of each) of the views of one size; they follow one another.
Groups = list[tuple[int, int]]


class PackedAttention(Attention):
    """timm's attention, of all groups' tokens."""

    def forward(self, x: Tensor, groups: Groups | None = None, **kwargs: Any) -> Tensor:
        """(tokens of all groups, width) → the same; without groups as in timm."""
        if groups is None:
            alone: Tensor = super().forward(x, **kwargs)
            return alone
        sizes = [images * tokens for images, tokens in groups]
        mixed = []
        for part, (images, tokens) in zip(self.qkv(x).split(sizes), groups, strict=True):
            shape = (images, tokens, 3, self.num_heads, self.head_dim)
            q, k, v = part.reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
            seen = _attended(self.q_norm(q), self.k_norm(k), v)
            mixed.append(seen.transpose(1, 2).reshape(images * tokens, self.attn_dim))
        projected: Tensor = self.proj(torch.cat(mixed))
        return projected


class PackedBlock(Block):
    """timm's block, of all groups' tokens."""

    def forward(self, x: Tensor, groups: Groups | None = None, **kwargs: Any) -> Tensor:
        """(tokens of all groups, width) → the same; without groups as in timm."""
        if groups is None:
            alone: Tensor = super().forward(x, **kwargs)
            return alone
        x = x + self.ls1(self.attn(self.norm1(x), groups))
        return x + self.ls2(self.mlp(self.norm2(x)))


class LeanMlp(Mlp):
    """timm's two layers with a GELU between, which is not kept for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → the same."""
        return gelu_linear(self.fc1(x), self.fc2.weight, self.fc2.bias)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention; on a CPU in bfloat16 step by step, as PyTorch's backward pass is far slower."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return weights.float().softmax(-1).to(q.dtype) @ v


def pack(blocks: nn.Module) -> bool:
    """Let blocks take groups, in place; false if they are of another kind or drop anything."""
    if not all(_is_plain(block) for block in blocks.children()):
        return False
    block: Any
    for block in blocks.children():
        block.__class__ = PackedBlock
        block.attn.__class__ = PackedAttention
        if type(block.mlp.act) is nn.GELU and block.mlp.act.approximate == "none":
            block.mlp.__class__ = LeanMlp
    return True


def _is_plain(block: Any) -> bool:
    """Whether a block does no more than `PackedBlock`."""
    if (type(block), type(block.attn), type(block.mlp)) != (Block, Attention, Mlp):
        return False
    attention = block.attn
    idle = (block.drop_path1, block.drop_path2, attention.norm, block.mlp.norm)
    chances = (attention.attn_drop.p, attention.proj_drop.p, block.mlp.drop1.p, block.mlp.drop2.p)
    return (
        all(type(part) is nn.Identity for part in idle)
        and attention.gate is None
        and not any(chances)
    )
