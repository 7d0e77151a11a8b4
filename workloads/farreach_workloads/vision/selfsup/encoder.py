"""Networks from images to features: vision transformers whose patches can be dropped, and others.

Source: MSN, arXiv:2204.07141, section 4 and its code: dropped patches never enter the blocks, and
positions of another image size are interpolated over the whole plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from farreach.errors import ConfigError
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.evaluation.classifier import DEPTHS, layers_of
from farreach_workloads.vision.evaluation.features import Kind
from farreach_workloads.vision.models import make_model
from farreach_workloads.vision.selfsup.packing import Groups, pack

INIT_STD = 0.02

Network = TypeVar("Network", bound=nn.Module)


class Seen(NamedTuple):
    """Images of one size, (b, 3, h, w), and which of their patches are seen; None: all.

    The numbers of the patches, row by row: (m,) for all images, or (b, m) for each its own.
    """

    images: Tensor
    kept: Tensor | None = None


class Encoder(nn.Module):
    """A model of timm without a head.

    Attributes:
        trunk: the model; its names are those of a checkpoint.
        width: of the features.
    """

    def __init__(self, trunk: Any) -> None:
        """Take over a model and its weights."""
        super().__init__()
        trunk.reset_classifier(0)
        self.trunk: Any = trunk
        self.width = int(trunk.num_features)

    def forward(self, views: Sequence[Seen]) -> list[Tensor]:
        """Features of each group of views, (b, width)."""
        return [self.trunk(images) for images, _ in views]

    def features(self, images: Tensor, *, is_normal: bool = True) -> Tensor:
        """What evaluations look at: (b, 3, h, w) → (b, width).

        Args:
            images: of one size.
            is_normal: after the last norm, if there is a choice.
        """
        found: Tensor = self.trunk(images)
        return found

    def seen(self, images: Tensor, kinds: Sequence[Kind]) -> dict[str, Tensor]:
        """See `farreach_workloads.vision.evaluation.features.SeesImages`."""
        found: dict[str, Tensor] = {}
        for kind in kinds:
            if kind in ("normal", "raw"):
                found[kind] = self.features(images, is_normal=kind == "normal")
            else:
                found |= layers_of(self.trunk, images, kind)
        return found


class Vit(Encoder):
    """A vision transformer; its feature is the class token."""

    def __init__(self, trunk: Any) -> None:
        """Take over a model of timm; see `make_encoder`."""
        super().__init__(trunk)
        trunk.patch_embed.strict_img_size = False
        self._packs = pack(trunk.blocks)

    def start(self) -> None:
        """The authors' initialisation: class token and positions as wide as all else."""
        for part in (self.trunk.cls_token, self.trunk.pos_embed):
            nn.init.trunc_normal_(part, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)

    def patches(self, side: int) -> int:
        """How many a square image has; a rest that fills no patch is left out."""
        return (side // int(self.trunk.patch_embed.patch_size[0])) ** 2

    def forward(self, views: Sequence[Seen]) -> list[Tensor]:
        """Class tokens after the last norm, of each group of views, (b, width)."""
        return [self.trunk.norm(x[:, 0]) for x in self._mixed(views)]

    def tokens(self, view: Seen) -> Tensor:
        """All tokens after the last norm, the class token first: (b, 1 + patches, width)."""
        [x] = self._mixed([view])
        found: Tensor = self.trunk.norm(x)
        return found

    def features(self, images: Tensor, *, is_normal: bool = True) -> Tensor:
        """The class token, (b, width); see `Encoder.features`."""
        [x] = self._mixed([Seen(images)])
        found: Tensor = self.trunk.norm(x[:, 0]) if is_normal else x[:, 0]
        return found

    def seen(self, images: Tensor, kinds: Sequence[Kind]) -> dict[str, Tensor]:
        """Layers are the class tokens of the last blocks; see `Encoder.seen`."""
        found = super().seen(images, [kind for kind in kinds if kind in ("normal", "raw")])
        if {"layers", "map", "earlier map"} & set(kinds):
            x, depth = self.trunk.norm_pre(self._embedded(Seen(images))), len(self.trunk.blocks)
            grid = self.trunk.patch_embed.dynamic_feat_size(images.shape[2:])
            for number, block in enumerate(self.trunk.blocks, 1):
                x = block(x)
                if "layers" in kinds and number > depth - DEPTHS:
                    found[f"layer {number}"] = x[:, 0]
                name = {depth: "map", depth - 1: "earlier map"}.get(number, "")
                if name in kinds:
                    found[name] = self.trunk.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid)
        return found

    def _mixed(self, views: Sequence[Seen]) -> list[Tensor]:
        """What the blocks make of the tokens of each group."""
        groups = [self.trunk.norm_pre(self._embedded(view)) for view in views]
        # In float32 a CPU is no faster for longer products, and slower for copies.
        gains = groups[0].device.type != "cpu" or torch.is_autocast_enabled("cpu")
        if len(groups) == 1 or not self._packs or not gains:
            return [self._through(x) for x in groups]
        shapes = [(x.shape[0], x.shape[1]) for x in groups]
        x = self._through(torch.cat([x.flatten(0, 1) for x in groups]), shapes)
        parts = x.split([images * tokens for images, tokens in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _through(self, x: Tensor, shapes: Groups | None = None) -> Tensor:
        """The blocks one after another, with or without keeping what they compute inside."""
        again = self.trunk.grad_checkpointing and torch.is_grad_enabled()
        for block in self.trunk.blocks:
            layer = block if shapes is None else partial(block, groups=shapes)
            x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        return x

    def _embedded(self, view: Seen) -> Tensor:
        """Class token and the patches that are seen, with their positions: (b, 1 + m, width)."""
        trunk, (images, kept) = self.trunk, view
        patch = int(trunk.patch_embed.patch_size[0])
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        x: Tensor = trunk.patch_embed(images[:, :, : rows * patch, : columns * patch])
        x = x + self._places(rows, columns)
        if kept is not None and kept.ndim == 1:
            x = x.index_select(1, kept)
        elif kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        own = trunk.cls_token + trunk.pos_embed[:, :1]
        return torch.cat([own.expand(x.shape[0], -1, -1), x], dim=1)

    def _places(self, rows: int, columns: int) -> Tensor:
        """Positions of the patches of a grid, (1, rows × columns, width)."""
        grid = self.trunk.patch_embed.grid_size
        places: Tensor = self.trunk.pos_embed[:, 1:]
        if (rows, columns) == tuple(grid):
            return places
        image = places.unflatten(1, grid).permute(0, 3, 1, 2)
        fitted = F.interpolate(image.float(), (rows, columns), mode="bicubic", align_corners=False)
        return fitted.flatten(2).transpose(1, 2).to(places.dtype)


def make_encoder(backbone: BackboneConfig, size: int) -> Encoder:
    """The backbone for images of a size, as its authors begin it.

    Raises:
        ConfigError: see `make_model`.
    """
    model = make_model(backbone, size, 0)
    if not _has_tokens(model):
        return Encoder(model)
    encoder = Vit(model)
    if backbone.weights is None:
        encoder.start()
    return encoder


def make_vit(backbone: BackboneConfig, size: int) -> Vit:
    """A vision transformer; raises ConfigError if the backbone is none, and as `make_encoder`."""
    encoder = make_encoder(backbone, size)
    if not isinstance(encoder, Vit):
        raise ConfigError(
            f"backbone: {backbone.name} is no vision transformer whose patches can be dropped: one "
            "with a class token that has a position of its own, without registers and without "
            "dynamic_img_size. Choose another, such as vit_tiny_patch16_224."
        )
    return encoder


def _has_tokens(model: Any) -> bool:
    if not isinstance(model, VisionTransformer) or not model.has_class_token:
        return False
    if model.num_prefix_tokens > 1 or model.dynamic_img_size:  # registers; patches as a map
        return False
    places = model.pos_embed
    return places is not None and places.shape[1] == model.patch_embed.num_patches + 1


def steady(network: Network) -> Network:
    """The same network, frozen, that drops no paths and no activations."""
    for module in network.requires_grad_(False).modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def kept_patches(count: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Numbers of the patches that stay, the same for a whole batch: (⌊count (1 - ratio)⌋,)."""
    return torch.randperm(count, generator=generator)[: _left(count, ratio)]


def kept_of_each(count: int, ratio: float, images: int, generator: torch.Generator) -> Tensor:
    """Numbers of the patches that stay, drawn for each image: (images, ⌊count (1 - ratio)⌋)."""
    return shuffled(count, images, generator)[:, : _left(count, ratio)]


def shuffled(count: int, images: int, generator: torch.Generator) -> Tensor:
    """Numbers of all patches in an order of each image's own: (images, count)."""
    return torch.rand(images, count, generator=generator).argsort(dim=1)


def _left(count: int, ratio: float) -> int:
    return max(1, int(count * (1.0 - ratio)))
