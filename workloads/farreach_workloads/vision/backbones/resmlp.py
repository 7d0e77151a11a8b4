"""ResMLP (arXiv:2105.03404): patches are mixed by one matrix, channels by a small network.

Parameters, names and results are timm's, whose classes these extend. What differs is what training
from scratch depends on, and is the authors' here: initialisation, the start of the layer scale
(0.1, 1e-5, 1e-6 for 12, 24, 36 layers), and no weight decay of the affine layers. `class_mlp` is
the paper's other pooling, for which no code was released.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import get_arch_pretrained_cfgs, mlp_mixer
from timm.models._registry import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.linear import add_product, product, use_fast_linear
from farreach_workloads.vision.backbones.building import register
from farreach_workloads.vision.backbones.residual import FusedMlp, add_scaled


class ResBlock(mlp_mixer.ResBlock):
    """x + γ₁ (A Aff₁(x) + b), and then the same with the two-layer network."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) → (b, n, c)."""
        mixed = self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = add_scaled(x, self.ls1, self.drop_path(mixed))
        return add_scaled(x, self.ls2, self.drop_path(self.mlp_channels(self.norm2(x))))


class ClassLayer(nn.Module):
    """One layer of the class-MLP: a weighted sum of all rows, and then the two-layer network.

    As in CaiT's class attention the patches stay as they are; the weights of the sum are learned,
    and the same for all images.
    """

    def __init__(self, dim: int, tokens: int, scale: float) -> None:
        """For `tokens` patches of width `dim`."""
        super().__init__()
        self.norm1, self.norm2 = mlp_mixer.Affine(dim), mlp_mixer.Affine(dim)
        self.pool = nn.Linear(tokens + 1, 1)
        self.mlp = FusedMlp(dim, 4 * dim)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((dim,), scale)) for _ in range(2))

    def forward(self, own: Tensor, patches: Tensor) -> Tensor:
        """(b, 1, c) and (b, n, c) → (b, 1, c)."""
        rows = self.norm1(torch.cat([own, patches], dim=1))
        own = own + self.ls1 * self.pool(rows.transpose(1, 2)).transpose(1, 2)
        result: Tensor = own + self.ls2 * self.mlp(self.norm2(own))
        return result


class Resmlp(mlp_mixer.MlpMixer):
    """See the module; other arguments are timm's.

    `layer_scale`: what γ starts at. `class_mlp`: pool by two `ClassLayer`s in place of the mean.
    `reference_decay`: decay the affine layers, as timm does. A is of one image size; weights for
    another are resized when they are loaded.
    """

    def __init__(
        self,
        *,
        layer_scale: float,
        class_mlp: bool = False,
        reference_decay: bool = False,
        **arguments: Any,
    ) -> None:
        """See the class."""
        block = partial(ResBlock, init_values=layer_scale, mlp_layer=FusedMlp)
        super().__init__(block_layer=block, norm_layer=mlp_mixer.Affine, mlp_ratio=4.0, **arguments)
        self.reference_decay = reference_decay
        self.cls_token: nn.Parameter | None = None
        if class_mlp:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
            trunc_normal_(self.cls_token, std=0.02)
            tokens = self.stem.num_patches
            self.class_layers = nn.ModuleList(
                ClassLayer(self.embed_dim, tokens, layer_scale) for _ in range(2)
            )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        use_fast_linear(self)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed."""
        if self.reference_decay:
            return {"cls_token"}
        affine = {name for name, _ in self.named_parameters() if name.endswith((".alpha", ".beta"))}
        return affine | {"cls_token"}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(b, n, c) → (b, classes), or (b, c) with `pre_logits`."""
        if self.cls_token is not None and self.global_pool == "avg":
            own = self.cls_token.expand(x.shape[0], -1, -1)
            for layer in self.class_layers:
                own = layer(own, x)
            x = own
        logits: Tensor = super().forward_head(x, pre_logits)
        return logits

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """What each patch takes from which others, in each layer.

        Args:
            x: (b, 3, height, width); only the size of b counts, all images have the same.

        Returns:
            `patches_0`, …: (b, n, rows, columns), row i of A as an image.
        """
        grid = self.stem.grid_size
        return {
            f"patches_{index}": block.linear_tokens.weight.unflatten(1, grid).expand(
                len(x), -1, -1, -1
            )
            for index, block in enumerate(self.blocks)
        }

    def fold(self) -> Resmlp:
        """A copy for inference alone, with every affine layer and scale inside its neighbours.

        A acts on patches and α on channels, so they commute: the first branch is s ⊙ (A x) + M with
        s = γ₁ α and one (n, c) constant M. Exact but for rounding.
        """
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        blocks = [_FoldedBlock(block) for block in folded.blocks]
        folded.blocks = nn.Sequential(*blocks)
        return folded


class _FoldedBlock(nn.Module):
    mix: Tensor
    scale: Tensor
    shift: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        alpha, beta = block.norm1.alpha[0, 0], block.norm1.beta[0, 0]
        mix, fc1, fc2 = block.linear_tokens, block.mlp_channels.fc1, block.mlp_channels.fc2
        shift = mix.weight.sum(1)[:, None] * (block.ls1 * beta) + mix.bias[:, None] * block.ls1
        second = block.norm2
        # The last bias is added with the first shift, and taken back where the network reads.
        bias2 = fc2.bias * block.ls2
        weight1 = fc1.weight * second.alpha[0, 0]
        values = {
            "mix": mix.weight,
            "scale": block.ls1 * alpha,
            "shift": shift + bias2,
            "weight1": weight1,
            "bias1": fc1.bias + fc1.weight @ second.beta[0, 0] - weight1 @ bias2,
            "weight2": fc2.weight * block.ls2[:, None],
        }
        for name, value in values.items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) → (b, n, c)."""
        x = x.contiguous()
        mixed = torch.matmul(self.mix, x)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            result = torch.addcmul(x + self.shift, self.scale, mixed)
            hidden = product(result.flatten(0, 1), self.weight1, self.bias1, "gelu")
            return result + product(hidden, self.weight2).view_as(x)
        result = torch.addcmul(x, self.scale, mixed, out=mixed).add_(self.shift)
        rows = result.view(-1, x.shape[2])
        add_product(rows, product(rows, self.weight1, self.bias1, "gelu"), self.weight2)
        return result


def adapt_weights(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Weights of the authors, of timm, or of another image size, as the model names them.

    A is resized bilinearly, over the patches that it gives and over those that it takes; what each
    patch takes in all stays the same.
    """
    weights = mlp_mixer.checkpoint_filter_fn(weights.get("model", weights), model)
    own = model.state_dict()
    for name, value in list(weights.items()):
        if ".linear_tokens." not in name or name not in own or own[name].shape == value.shape:
            continue
        weights[name] = _resized(value, len(own[name]))
    return weights


def _resized(value: Tensor, tokens: int) -> Tensor:
    """(n, n) → (tokens, tokens), or (n,) → (tokens,); both square grids."""
    before, after = (round(count**0.5) for count in (len(value), tokens))
    rows = F.interpolate(
        value.reshape(1, before, before, -1).permute(0, 3, 1, 2).float(),
        (after, after),
        mode="bilinear",
    ).flatten(2)[0]  # (n or 1, tokens)
    if value.ndim == 1:
        return rows[0]
    columns = F.interpolate(
        rows.t().reshape(1, tokens, before, before), (after, after), mode="bilinear"
    ).flatten(2)[0]
    return columns * (len(value) / tokens)


# Patch, width, depth, start of the layer scale, and what timm calls it.
_SIZES: dict[str, tuple[int, int, int, float, str | None]] = {
    "resmlp_s12": (16, 384, 12, 0.1, "resmlp_12_224"),
    "resmlp_s24": (16, 384, 24, 1e-5, "resmlp_24_224"),
    "resmlp_s36": (16, 384, 36, 1e-6, "resmlp_36_224"),
    "resmlp_b24": (16, 768, 24, 1e-5, None),
    "resmlp_b24_p8": (8, 768, 24, 1e-6, "resmlp_big_24_224"),
}

_NORMALISED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 0.9}


def _default_cfgs(name: str, known_as: str | None) -> dict[str, Any]:
    if known_as is None:
        plain = {"input_size": (3, 224, 224), "first_conv": "stem.proj", "classifier": "head"}
        return {name: {"num_classes": 1000, "fixed_input_size": True, **plain, **_NORMALISED}}
    known = get_arch_pretrained_cfgs(known_as).items()
    return {f"{name}.{key.partition('.')[2]}": replace(cfg, crop_pct=0.9) for key, cfg in known}


default_cfgs = generate_default_cfgs(
    {key: cfg for name, row in _SIZES.items() for key, cfg in _default_cfgs(name, row[4]).items()}
)
for _name, (_patch, _width, _depth, _scale, _) in _SIZES.items():
    _arguments = {
        "patch_size": _patch,
        "embed_dim": _width,
        "num_blocks": _depth,
        "layer_scale": _scale,
    }
    register(__name__, _name, Resmlp, _arguments, adapt_weights, 3)
