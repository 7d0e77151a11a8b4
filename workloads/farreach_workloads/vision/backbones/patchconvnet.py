"""PatchConvNet (arXiv:2112.13692): a column of convolutions, pooled by attention.

Resolution and width are the same from stem to end; the pooling's weights over the patches are a
picture of what the network looks at, one per class in the multi-class version. Parameters and
names are those of the authors' checkpoints. Convolutions of one pixel are products on (b, n, c),
and the pooling needs neither keys nor values of the patches (see `class_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models._registry import generate_default_cfgs
from torch import Tensor, nn

from farreach.convolution import gelu_convolution
from farreach.linear import activated_linear, linear, use_fast_linear
from farreach_workloads.vision.backbones.building import register
from farreach_workloads.vision.backbones.class_attention import attend_with_weights, weights_over
from farreach_workloads.vision.backbones.residual import FusedMlp, add_scaled

PATCH = 16
POOL_MLP_RATIO = 3


class Stem(nn.Module):
    """Four convolutions that halve both sides each, without norms and biases."""

    patch_size = 16

    def __init__(self, in_chans: int, dim: int) -> None:
        """(b, in_chans, height, width) → (b, dim, height / 16, width / 16), rounded up."""
        super().__init__()
        widths = [in_chans, dim // 8, dim // 4, dim // 2, dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            # The checkpoints' names want a sequence of one.
            layers += [nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """See the constructor."""
        result: Tensor = self.proj(x)
        return result


class Pointwise(nn.Conv2d):
    """A convolution of one pixel, as a product on the last axis."""

    def __init__(self, before: int, after: int) -> None:
        """(…, before) → (…, after)."""
        super().__init__(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the constructor."""
        return linear(x, self.weight.flatten(1), self.bias)

    def activated(self, x: Tensor) -> Tensor:
        """GELU of `forward`, in one go while nothing is learnt."""
        if torch.is_grad_enabled():
            return nn.functional.gelu(self(x))
        return activated_linear(x, self.weight.flatten(1), self.bias, "gelu")


class SqueezeExcite(nn.Module):
    """Each channel times a share that all channels' means over the patches decide."""

    def __init__(self, dim: int) -> None:
        """For a width of `dim`, reduced to a quarter."""
        super().__init__()
        reduced = round(dim * 0.25)
        self.conv_reduce, self.conv_expand = Pointwise(dim, reduced), Pointwise(reduced, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) → (b, n, c)."""
        mean = x.mean(dim=1, keepdim=True)
        share = self.conv_expand(self.conv_reduce(mean).relu()).sigmoid()
        return x * share if torch.is_grad_enabled() else x.mul_(share)


class ConvBranch(nn.Module):
    """One pixel, three by three per channel, squeeze and excite, one pixel."""

    def __init__(self, dim: int) -> None:
        """For a width of `dim`."""
        super().__init__()
        self.qkv_pos = nn.Sequential(
            Pointwise(dim, dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            SqueezeExcite(dim),
            Pointwise(dim, dim),
        )

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(b, rows × columns, c) → the same."""
        first, _, depthwise, _, excite, last = cast(list[Any], self.qkv_pos)
        image = first.activated(x).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        x = gelu_convolution(depthwise, image).flatten(2).transpose(1, 2)
        result: Tensor = last(excite(x))
        return result


class ConvBlock(nn.Module):
    """x + γ f(norm(x))."""

    def __init__(self, dim: int, drop_path: float, scale: float) -> None:
        """For a width of `dim`; γ starts at `scale`."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ConvBranch(dim)
        self.gamma_1 = nn.Parameter(torch.full((dim,), scale))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(b, rows × columns, c) → the same."""
        branch = self.attn(self.norm1(x), rows, columns)
        return add_scaled(x, self.gamma_1, self.drop_path(branch))


class PoolAttention(nn.Module):
    """Projections of the pooling; one head."""

    def __init__(self, dim: int, qk_scale: float | None) -> None:
        """For a width of `dim`; scores are scaled by 1 / √dim where nothing else is said."""
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.scale = dim**-0.5 if qk_scale is None else qk_scale

    def forward(self, own: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(1, k, c) and (b, n, c) → (b, k, c), and the weights (b, k, n)."""
        query = (self.q(own) * self.scale)[:, None]
        if torch.compiler.is_exporting() or own.shape[1] <= tokens.shape[1]:
            result, weights = attend_with_weights(query, tokens, self.k, self.v)
            return self.proj(result[:, 0]), weights[:, 0]
        # Fewer tokens than queries: values are projected before they are averaged.
        weights = weights_over(query, tokens, self.k)
        return torch.bmm(weights, self.proj(self.v(tokens))), weights


class AttentionPool(nn.Module):
    """Learned queries over the patches, and a two-layer network on what they get (section 3.2)."""

    def __init__(self, dim: int, scale: float, multi: bool, qk_scale: float | None) -> None:
        """For a width of `dim`; `multi`: queries look at the patches alone, not at one another."""
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = PoolAttention(dim, qk_scale)
        self.mlp = FusedMlp(dim, POOL_MLP_RATIO * dim)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), scale)) for _ in range(2))
        self.multi = multi

    def forward(self, queries: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, k, c) and (b, n, c) → (b, k, c), and the weights over the patches (b, k, n)."""
        own, tokens = self.norm1(queries), self.norm1(x)
        if not self.multi:
            tokens = torch.cat([own.expand(x.shape[0], -1, -1), tokens], dim=1)
        pooled, weights = self.attn(own, tokens)
        rows = queries + self.gamma_1 * pooled
        rows = rows + self.gamma_2 * self.mlp(self.norm2(rows))
        return rows, weights if self.multi else weights[:, :, 1:]


class ClassHeads(nn.Module):
    """One linear layer per class, each on its own row; saved one by one, as the authors did."""

    def __init__(self, dim: int, classes: int) -> None:
        """For rows of width `dim`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes))
        trunc_normal_(self.weight, std=0.02)
        self.register_state_dict_post_hook(_split_heads)
        self.register_load_state_dict_pre_hook(_join_heads)

    def forward(self, rows: Tensor) -> Tensor:
        """(b, k, c) → (b, k)."""
        return torch.einsum("bkc,kc->bk", rows, self.weight) + self.bias


def _split_heads(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    weight, bias = state.pop(prefix + "weight"), state.pop(prefix + "bias")
    for number in range(len(weight)):
        state[f"{prefix}{number}.weight"] = weight[number : number + 1]
        state[f"{prefix}{number}.bias"] = bias[number : number + 1]


def _join_heads(module: nn.Module, state: dict[str, Any], prefix: str, *ignored: Any) -> None:
    count = sum(key.startswith(prefix) and key.endswith(".weight") for key in state)
    if f"{prefix}0.weight" not in state:
        return
    for kind in ("weight", "bias"):
        state[prefix + kind] = torch.cat([state.pop(f"{prefix}{i}.{kind}") for i in range(count)])


class PatchConvNet(nn.Module):
    """See the module.

    Args:
        embed_dim: width.
        depth: blocks of the column.
        layer_scale: what γ starts at.
        multi_class: one query and one head per class, in place of one for all.
        num_classes: 0 leaves the head out; with `multi_class` it is also the number of queries.
        global_pool: `token`, the pooling; empty: none, and features are what the column gives.
        drop_path_rate: stochastic depth, the same in all blocks.
        drop_rate: dropout before the head.
        qk_scale: of the pooling's scores.
        in_chans: channels of an image.
    """

    norm: Any
    cls_token: Any

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        layer_scale: float = 1e-6,
        multi_class: bool = False,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        qk_scale: float | None = None,
        in_chans: int = 3,
    ) -> None:
        """See the class."""
        super().__init__()
        if multi_class and num_classes < 1:
            raise ValueError("multi_class pools once per class: num_classes must be at least 1")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.multi_class, self.grad_checkpointing = multi_class, False
        queries = num_classes if multi_class else 1
        self.cls_token = nn.Parameter(torch.zeros(1, queries, embed_dim))
        self.patch_embed = Stem(in_chans, embed_dim)
        self.blocks = nn.ModuleList(
            ConvBlock(embed_dim, drop_path_rate, layer_scale) for _ in range(depth)
        )
        pool = AttentionPool(embed_dim, layer_scale, multi_class, qk_scale)
        self.blocks_token_only = nn.ModuleList([pool])
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": PATCH, "module": f"blocks.{i}"}
            for i in range(depth)
        ]
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.head = self._new_head()
        use_fast_linear(self)

    def _new_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        if self.multi_class:
            return ClassHeads(self.embed_dim, self.num_classes)
        head = nn.Linear(self.embed_dim, self.num_classes)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How parameters group into layers, for decay by layer."""
        last = [(r"^blocks_token_only", None), (r"^(cls_token|norm)", (99999,))]
        return {"stem": r"^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), *last]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass, to save memory."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for another number of classes; in the multi-class version new queries too."""
        if self.multi_class and num_classes not in (0, self.cls_token.shape[1]):
            queries = self.cls_token.new_zeros(1, num_classes, self.embed_dim)
            self.cls_token = nn.Parameter(trunc_normal_(queries, std=0.02))
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = self._new_head().to(self.cls_token.device).train(self.training)
        use_fast_linear(self)

    def _column(self, x: Tensor, take: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """(b, 3, height, width) → (b, n, c), and what the blocks in `take` give (b, c, ·, ·)."""
        x = self.patch_embed(x)
        rows, columns = x.shape[2:]
        # In memory token by token, as all blocks leave it then: sums keep the order of theirs.
        x = x.flatten(2).transpose(1, 2).contiguous()
        taken = []
        for index, block in enumerate(self.blocks):
            if self.grad_checkpointing:
                x = checkpoint(block, x, rows, columns)
            else:
                x = block(x, rows, columns)
            if index in take:
                taken.append(x.unflatten(1, (rows, columns)).permute(0, 3, 1, 2).contiguous())
        return x, taken

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, weights = self.blocks_token_only[0](self.cls_token, x)
        return self.norm(rows), weights

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """What some blocks give, as timm's models do; there is no norm to apply to it."""
        if norm or output_fmt != "NCHW":
            raise ValueError("PatchConvNet's features are (b, c, rows, columns), without norm")
        take, last = feature_take_indices(len(self.blocks), indices)
        blocks = self.blocks
        try:
            if stop_early:
                self.blocks = blocks[: last + 1]
            x, taken = self._column(x, take)
        finally:
            self.blocks = blocks
        return taken if intermediates_only else (self._features(x), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the blocks at `indices` do not need."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.global_pool, self.num_classes, self.head = "", 0, nn.Identity()
            del self.blocks_token_only
            self.cls_token = None
        taken: list[int] = take
        return taken

    def _features(self, x: Tensor) -> Tensor:
        return self._pool(x)[0] if self.global_pool else x

    def forward_features(self, x: Tensor) -> Tensor:
        """(b, 3, height, width) → (b, queries, c), or (b, n, c) without pooling."""
        return self._features(self._column(x)[0])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gives → (b, classes), or the features with `pre_logits`."""
        x = self.head_drop(x)
        if self.global_pool and not self.multi_class:
            x = x[:, 0]
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, height, width) → (b, classes)."""
        return self.forward_head(self.forward_features(x))

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """What the pooling looks at.

        Args:
            x: (b, 3, height, width).

        Returns:
            `pool`: (b, queries, rows, columns); with `multi_class` query k is class k.
        """
        rows, columns = (-(-side // PATCH) for side in x.shape[2:])
        weights = self._pool(self._column(x)[0])[1]
        return {"pool": weights.unflatten(2, (rows, columns))}


def adapt_weights(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Weights as the authors saved them."""
    inner: dict[str, Any] = weights.get("model", weights)
    return inner


# Width, depth, start of γ, several classes.
_SIZES: dict[str, tuple[int, int, float, bool]] = {
    "patchconvnet_s60": (384, 60, 1e-4, False),
    "patchconvnet_s120": (384, 120, 1e-6, False),
    "patchconvnet_b60": (768, 60, 1e-6, False),
    "patchconvnet_b120": (768, 120, 1e-6, False),
    "patchconvnet_l60": (1024, 60, 1e-6, False),
    "patchconvnet_l120": (1024, 120, 1e-6, False),
    "patchconvnet_s60_multi": (384, 60, 1e-4, True),
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj.0.0",
            "classifier": "head",
        }
        for name in _SIZES
    }
)
for _name, (_width, _depth, _scale, _multi) in _SIZES.items():
    _arguments = {
        "embed_dim": _width,
        "depth": _depth,
        "layer_scale": _scale,
        "multi_class": _multi,
    }
    register(__name__, _name, PatchConvNet, _arguments, adapt_weights, 3)
