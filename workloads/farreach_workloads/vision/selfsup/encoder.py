"""A vision transformer whose patches can be dropped, and the head that training puts on it.

Source: MSN, arXiv:2204.07141, section 4 and its code: dropped patches never enter the blocks, and
positions of another image size are interpolated over the whole plane.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.errors import ConfigError
from farreach.learn.collectives import BatchNorm1d

INIT_STD = 0.02


class Encoder(nn.Module):
    """timm's vision transformer, from images and chosen patches to its class token.

    Attributes:
        vit: without a head; its names are those of a checkpoint.
        width: of the features.
    """

    def __init__(self, vit: nn.Module) -> None:
        """Take over a transformer; raises ConfigError if it is none with a class token."""
        super().__init__()
        if not isinstance(vit, VisionTransformer) or not vit.has_class_token:
            raise ConfigError(
                f"backbone.name: {type(vit).__name__} has no class token and no patches that could "
                "be dropped. Choose a vision transformer of timm, such as vit_tiny_patch16_224."
            )
        if vit.pos_embed is None or vit.pos_embed.shape[1] != vit.patch_embed.num_patches + 1:
            raise ConfigError(
                "backbone.name: the transformer has no position of its own for the class token. "
                "Choose another, such as vit_tiny_patch16_224."
            )
        vit.reset_classifier(0)
        vit.patch_embed.strict_img_size = False
        self.vit: Any = vit
        self.width = int(vit.embed_dim)

    def start(self) -> None:
        """The authors' initialisation: class token and positions as wide as all else."""
        for part in (self.vit.cls_token, self.vit.pos_embed):
            nn.init.trunc_normal_(part, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)

    def patches(self, side: int) -> int:
        """How many a square image has; a rest that fills no patch is left out."""
        return (side // int(self.vit.patch_embed.patch_size[0])) ** 2

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Class tokens after the last norm.

        Args:
            images: (b, 3, h, w).
            kept: numbers of the patches that the blocks see, row by row, (m,); None: all.

        Returns:
            (b, width).
        """
        vit = self.vit
        patch = int(vit.patch_embed.patch_size[0])
        rows, columns = images.shape[2] // patch, images.shape[3] // patch
        x = vit.patch_embed(images[:, :, : rows * patch, : columns * patch])
        own, places = vit.pos_embed[:, :1], self._places(rows, columns)
        x = x + places
        if kept is not None:
            x = x.index_select(1, kept)
        x = torch.cat([(vit.cls_token + own).expand(x.shape[0], -1, -1), x], dim=1)
        features: Tensor = vit.norm(vit.blocks(vit.norm_pre(x)))[:, 0]
        return features

    def _places(self, rows: int, columns: int) -> Tensor:
        """Positions of the patches of a grid, (1, rows × columns, width)."""
        grid = self.vit.patch_embed.grid_size
        places: Tensor = self.vit.pos_embed[:, 1:]
        if (rows, columns) == tuple(grid):
            return places
        image = places.unflatten(1, grid).permute(0, 3, 1, 2)
        fitted = F.interpolate(image.float(), (rows, columns), mode="bicubic", align_corners=False)
        return fitted.flatten(2).transpose(1, 2).to(places.dtype)


class Head(nn.Sequential):
    """Three layers with batch normalisation after the first two.

    It runs once per resolution: what it normalises over are the views of one kind.
    """

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        """From `width` by way of `hidden` to `dim`."""
        super().__init__(
            nn.Linear(width, hidden),
            BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, dim),
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)


def kept_patches(count: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Numbers of the patches that stay, the same for a whole batch: (⌊count (1 - ratio)⌋,)."""
    return torch.randperm(count, generator=generator)[: max(1, int(count * (1.0 - ratio)))]
