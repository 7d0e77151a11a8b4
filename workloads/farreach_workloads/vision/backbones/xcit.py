"""XCiT (arXiv:2106.09681): attention between channels, so that its cost is linear in the tokens.

Parameters, names and results are timm's, whose classes these extend. What differs is how the
results are computed, exactly: attention between channels in whichever of two forms is the cheaper,
class attention without keys and values of the patches, position encodings once per image size, and
nothing for patch tokens that nobody reads. Temperatures of the attention are not decayed, as the
authors meant (`reference_decay` does as their code did).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any, Literal

import torch
from timm.models import get_arch_pretrained_cfgs, xcit
from timm.models._registry import generate_default_cfgs
from torch import Tensor

from farreach.linear import batched, gram, use_fast_linear
from farreach_workloads.vision.backbones import channel_attention
from farreach_workloads.vision.backbones.building import register
from farreach_workloads.vision.backbones.channel_attention import EPSILON
from farreach_workloads.vision.backbones.class_attention import attend, attend_with_weights
from farreach_workloads.vision.backbones.residual import FusedMlp, add_scaled

Form = Literal["auto", "late", "gram"]


def cheaper_form(tokens: int, width: int, head_dim: int) -> Literal["late", "gram"]:
    """The form of `Xca` with fewer multiplications.

    Late: 4 N C² + 2 N C d. Gram: 2 N C² + 3 C³ + 2 C² d.
    """
    equal = width * (3 * width + 2 * head_dim) / (2 * width + 2 * head_dim)
    return "gram" if tokens > equal else "late"


class Xca(xcit.XCA):
    """Attention between the d channels of a head, over all tokens (section 3.2).

    With q, k, v (N, d) of a head, y = v softmax(τ q̂ᵀ k̂)ᵀ, where each channel of q̂ and k̂ is divided
    by its length over the tokens. Two exact forms:

    - late: the lengths divide the (d, d) product in place of the (N, d) factors.
    - gram: all that the softmax needs of the tokens is S = X̃ᵀ X̃ with X̃ = [x, 1]. With W̃ = [W, b],
      the product is W̃q S W̃kᵀ, and squared lengths are the diagonals of W̃q S W̃qᵀ and W̃k S W̃kᵀ.
      Values, attention and projection then make one (C, C) matrix per image: q, k and v never
      exist.
    """

    form: Form = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) → (b, n, c)."""
        _, tokens, width = x.shape
        form = self.form
        if form == "auto":
            form = cheaper_form(tokens, width, width // self.num_heads)
        return self._gram(x) if form == "gram" else self._late(x)

    def _late(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        dropped = self.training and self.attn_drop.p > 0
        if channel_attention.suits(qkv) and not dropped:
            y = channel_attention.attend_channels(qkv, self.temperature)
        else:
            y = self._late_by_parts(qkv)
        projected: Tensor = self.proj_drop(self.proj(y))
        return projected

    def _late_by_parts(self, qkv: Tensor) -> Tensor:
        """(b, n, 3 c) → (b, n, c)."""
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).unbind(2)  # (b, n, h, d)
        exact = torch.promote_types(q.dtype, torch.float32)
        product = torch.einsum("bnhd,bnhe->bhde", q, k).to(exact)
        # Not `linalg.vector_norm`, which goes number by number along any axis but the last.
        q_length, k_length = (  # (b, h, d)
            t.to(exact).square().sum(1).clamp(min=EPSILON**2).sqrt() for t in (q, k)
        )
        attention = self._softmax(product, q_length, k_length).to(v.dtype)
        return torch.einsum("bhde,bnhe->bnhd", attention, v).flatten(2)

    def _gram(self, x: Tensor) -> Tensor:
        (batch, tokens, width), heads = x.shape, self.num_heads
        exact = torch.promote_types(x.dtype, torch.float32)
        rough = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        with _as_it_is(x.device):
            wqk, wv = self.qkv.weight.to(exact).split([2 * width, width])
            wk = wqk[width:].unflatten(0, (heads, -1))  # (h, d, c)
            by_tokens = x.to(exact)
            # W S, W the weights of queries and keys; its products with Wᵀ are the ones wanted.
            turned = torch.bmm(wqk.expand(batch, -1, -1), gram(by_tokens, rough))  # (b, 2 c, c)
            squares = (turned * wqk).sum(2)  # (b, 2 c)
            product = turned[:, :width].unflatten(1, (heads, -1)) @ wk.transpose(1, 2)
            if self.qkv.bias is not None:
                # W̃ S̃ W̃ᵀ = W S Wᵀ + (W s) bᵀ + b (W s + n b)ᵀ, s the sum over the n tokens.
                bias, value_bias = self.qkv.bias.to(exact).split([2 * width, width])
                sums = by_tokens.sum(1) @ wqk.t()
                more = sums + tokens * bias
                squares = squares + (sums + more) * bias
                q_sums, _ = _by_head(sums, heads)
                _, k_more = _by_head(more, heads)
                q_bias, k_bias = _by_head(bias, heads)
                product = product + q_sums[..., None] * k_bias[..., None, :]
                product = product + q_bias[..., None] * k_more[..., None, :]
            lengths = squares.clamp(min=EPSILON**2).sqrt()
            attention = self._softmax(product, *_by_head(lengths, heads))
            mixed = (attention @ wv.unflatten(0, (heads, -1))).flatten(1, 2)  # (b, c, c)
            projection = self.proj.weight.to(exact).t()
            matrix = torch.bmm(mixed.transpose(1, 2), projection.expand(batch, -1, -1))
            shift = self.proj.bias.to(exact).expand(batch, -1)
            if self.qkv.bias is not None:
                own = (attention * value_bias.unflatten(0, (heads, 1, -1))).sum(3).flatten(1)
                shift = shift + own @ projection
        y = batched(x, matrix.to(x.dtype), shift.to(x.dtype))
        projected: Tensor = self.proj_drop(y)
        return projected

    def _softmax(self, product: Tensor, q_length: Tensor, k_length: Tensor) -> Tensor:
        """(b, h, d, d), and (b, h, d) twice → (b, h, d, d)."""
        q_scale = self.temperature / q_length.clamp(min=EPSILON)[..., None]
        k_scale = k_length.clamp(min=EPSILON)[:, :, None].reciprocal()
        attention: Tensor = self.attn_drop((product * q_scale * k_scale).softmax(dim=-1))
        return attention


def _by_head(values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What belongs to queries and to keys: (…, 2 c) → (…, h, d) twice."""
    queries, keys = values.unflatten(-1, (2 * heads, -1)).split(heads, dim=-2)
    return queries, keys


def _as_it_is(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, which shapes alone (the meta device) do not know."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


class XcaBlock(xcit.XCABlock):
    """Attention between channels, local patch interaction, and then the two-layer network."""

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:  # noqa: N803 (timm calls them that)
        """(b, H × W, c) → (b, H × W, c)."""
        for scale, drop, branch in (
            (self.gamma1, self.drop_path1, lambda x: self.attn(self.norm1(x))),
            (self.gamma3, self.drop_path3, lambda x: self.local_mp(self.norm3(x), H, W)),
            (self.gamma2, self.drop_path2, lambda x: self.mlp(self.norm2(x))),
        ):
            x = add_scaled(x, scale, drop(branch(x)))
        return x


class ClassBlock(xcit.ClassAttentionBlock):
    """One class-attention block (after CaiT, arXiv:2103.17239), as the weights expect it."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1 + n, c) → (b, 1 + n, c); see the module for what patch rows become."""
        z = self.norm1(x)
        x = x + self.drop_path1(self.gamma1 * torch.cat([self._attend(z), z[:, 1:]], dim=1))
        if self.tokens_norm:
            x = self.norm2(x)
        else:
            x = torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
        own = self.gamma2 * self.mlp(x[:, :1])
        return x + self.drop_path2(torch.cat([own, x[:, 1:]], dim=1))

    def class_row(self, x: Tensor) -> Tensor:
        """The first row of what `forward` gives, (b, 1, c), without the others."""
        z = self.norm1(x)
        own = self.norm2(x[:, :1] + self.drop_path1(self.gamma1 * self._attend(z)))
        row: Tensor = own + self.drop_path2(self.gamma2 * self.mlp(own))
        return row

    def attention(self, x: Tensor) -> Tensor:
        """Weights of the class token over all tokens, (b, h, 1 + n)."""
        z = self.norm1(x)
        return attend_with_weights(self._query(z), z, self.attn.k, self.attn.v)[1][:, :, 0]

    def _attend(self, z: Tensor) -> Tensor:
        """(b, 1 + n, c) → (b, 1, c)."""
        attn = self.attn
        drop_rate = attn.attn_drop.p if self.training else 0.0
        result = attend(self._query(z), z, attn.k, attn.v, drop_rate)
        projected: Tensor = attn.proj_drop(attn.proj(result.flatten(1)))
        return projected[:, None]

    def _query(self, z: Tensor) -> Tensor:
        """That of the class token: (b, 1 + n, c) → (b, h, 1, d)."""
        attn = self.attn
        query: Tensor = attn.q(z[:, 0]) * attn.scale
        return query.unflatten(1, (attn.num_heads, 1, -1))


class Stem(xcit.ConvPatchEmbed):
    """Convolutions that halve both sides, three or four times."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(b, 3, height, width) → (b, rows × columns, c), and rows and columns.

        In memory token by token, as all blocks leave it then: sums keep the order of what they
        begin with.
        """
        image = self.proj(x)
        return image.flatten(2).transpose(1, 2).contiguous(), image.shape[2:]


class Positions(xcit.PositionalEncodingFourier):
    """Fourier features of the place, through a learned projection; any resolution."""

    def __init__(self, dim: int) -> None:
        """For a width of `dim`."""
        super().__init__(dim=dim)
        self._waves: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, B: int, H: int, W: int) -> Tensor:  # noqa: N803 (timm calls them that)
        """(B, dim, H, W), a view of one image's."""
        weight = self.token_projection.weight
        if torch.compiler.is_exporting():  # for any size
            made: Tensor = self.token_projection(self._wave(H, W).to(weight))
            return made.expand(B, -1, -1, -1)
        key = (H, W, weight.device)
        if key not in self._waves:
            # What is made in inference mode could not be learned from later.
            with torch.inference_mode(False):
                self._waves[key] = self._wave(H, W).to(weight.device)
        projected: Tensor = self.token_projection(self._waves[key].to(weight.dtype))
        return projected.expand(B, -1, -1, -1)

    def _wave(self, height: int, width: int) -> Tensor:
        """(1, 2 × frequencies, height, width): sines and cosines in turn, of y and then of x."""
        power = 2 * torch.arange(self.hidden_dim).div(2, rounding_mode="floor") / self.hidden_dim
        wave_length = self.temperature**power
        parts = []
        for size in (height, width):
            place = torch.arange(1, size + 1, dtype=torch.float32)
            phase = (place / (size + self.eps) * self.scale)[:, None] / wave_length
            parts.append(torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], 2).flatten(1))
        y, x = parts
        both = [y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)]
        return torch.cat(both, dim=2).permute(2, 0, 1)[None]


class Xcit(xcit.Xcit):
    """See the module; arguments are timm's.

    `reference_decay`: also decay the attention's temperatures and the projection of the positions,
    as the authors' code does.
    """

    pos_embed: Any

    def __init__(self, *, reference_decay: bool = False, **arguments: Any) -> None:
        """See the class."""
        super().__init__(**arguments)
        self.reference_decay = reference_decay
        for module in self.modules():
            if type(module) is xcit.XCA:
                module.__class__ = Xca
            elif type(module) is xcit.XCABlock:
                module.__class__ = XcaBlock
            elif type(module) is xcit.ClassAttentionBlock:
                module.__class__ = ClassBlock
            elif type(module) is xcit.ConvPatchEmbed:
                module.__class__ = Stem
            elif type(module) is xcit.Mlp:
                module.__class__ = FusedMlp
        if self.pos_embed is not None:
            projection = self.pos_embed.token_projection
            self.pos_embed = Positions(self.embed_dim)
            self.pos_embed.token_projection = projection
        use_fast_linear(self)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed."""
        if self.reference_decay:
            return {"cls_token"}
        temperatures = {f"blocks.{i}.attn.temperature" for i in range(len(self.blocks))}
        return {"pos_embed.*", "cls_token"} | temperatures

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, height, width) → (b, classes)."""
        if self.global_pool != "token" or self.grad_checkpointing or not self.cls_attn_blocks:
            logits: Tensor = super().forward(x)
            return logits
        x = self._tokens(x)
        *before, last = self.cls_attn_blocks
        for block in before:
            x = block(x)
        head: Tensor = self.forward_head(self.norm(last.class_row(x)))
        return head

    def _tokens(self, x: Tensor) -> Tensor:
        """(b, 3, height, width) → (b, 1 + n, c) before class attention."""
        x, (height, width) = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed(1, height, width).flatten(2).transpose(1, 2)
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x, height, width)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """What the class token looks at, in each class-attention block.

        Args:
            x: (b, 3, height, width).

        Returns:
            `class_attention_0`, …: (b, heads, rows, columns), at most 1 together.
        """
        tokens = self._tokens(x)
        rows, columns = (math.ceil(side / self.patch_embed.patch_size) for side in x.shape[2:])
        maps = {}
        for index, block in enumerate(self.cls_attn_blocks):
            weights = block.attention(tokens)[:, :, 1:]
            maps[f"class_attention_{index}"] = weights.unflatten(2, (rows, columns))
            tokens = block(tokens)
        return maps


SIZES: dict[str, dict[str, Any]] = {
    "nano_12": {"embed_dim": 128, "depth": 12, "num_heads": 4, "eta": 1.0, "tokens_norm": False},
    "tiny_12": {"embed_dim": 192, "depth": 12, "num_heads": 4, "eta": 1.0, "tokens_norm": True},
    "tiny_24": {"embed_dim": 192, "depth": 24, "num_heads": 4, "eta": 1e-5, "tokens_norm": True},
    "small_12": {"embed_dim": 384, "depth": 12, "num_heads": 8, "eta": 1.0, "tokens_norm": True},
    "small_24": {"embed_dim": 384, "depth": 24, "num_heads": 8, "eta": 1e-5, "tokens_norm": True},
    "medium_24": {"embed_dim": 512, "depth": 24, "num_heads": 8, "eta": 1e-5, "tokens_norm": True},
    "large_24": {"embed_dim": 768, "depth": 24, "num_heads": 16, "eta": 1e-5, "tokens_norm": True},
}


def _default_cfgs(size: str, patch: int) -> dict[str, Any]:
    """What timm knows of this architecture's weights, at both resolutions."""
    known = {}
    for side in (224, 384):
        for name, cfg in get_arch_pretrained_cfgs(f"xcit_{size}_p{patch}_{side}").items():
            tag = name.partition(".")[2] + ("" if side == 224 else "_384")
            known[f"xcit_{size}_p{patch}.{tag}"] = replace(cfg, fixed_input_size=False)
    return known


# Weights of the authors or of timm, as the model names them.
adapt_weights = xcit.checkpoint_filter_fn

_VARIANTS = [(size, patch) for patch in (16, 8) for size in SIZES]
default_cfgs = generate_default_cfgs(
    {key: cfg for variant in _VARIANTS for key, cfg in _default_cfgs(*variant).items()}
)
for _size, _patch in _VARIANTS:
    register(
        __name__,
        f"xcit_{_size}_p{_patch}",
        Xcit,
        {"patch_size": _patch, **SIZES[_size]},
        adapt_weights,
        3,
    )
