"""Masked autoencoders (arXiv:2111.06377): the pixels of dropped patches are to be painted.

The encoder sees the patches that are kept; a small decoder sees what it made of them, and a mark in
place of each of the others.
"""

from __future__ import annotations

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from farreach import seeding
from farreach.learn.collectives import workers
from farreach.learn.order import share
from farreach.learn.task import Batch
from farreach.linear import use_fast_linear
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import INIT_STD, Encoder, Seen, make_vit, shuffled
from farreach_workloads.vision.selfsup.method import Method, Span, view_major
from farreach_workloads.vision.selfsup.method_configs import MaeConfig

# Added to the variance of a patch's pixels.
EPSILON = 1e-6


class Student(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: PretrainConfig, mae: MaeConfig) -> None:
        """Raises ConfigError; see `make_vit`."""
        super().__init__()
        self.encoder = make_vit(config.backbone, config.views.size)
        self.patch = int(self.encoder.trunk.patch_embed.patch_size[0])
        side = config.views.size // self.patch
        self.embed = nn.Linear(self.encoder.width, mae.width)
        self.mark = nn.Parameter(torch.zeros(1, 1, mae.width))
        places = build_sincos2d_pos_embed([side, side], mae.width).unsqueeze(0)
        self.register_buffer("places", places, persistent=False)
        self.blocks = nn.Sequential(
            *[Block(mae.width, mae.heads, qkv_bias=True) for _ in range(mae.depth)]
        )
        self.norm = nn.LayerNorm(mae.width)
        self.paint = nn.Linear(mae.width, 3 * self.patch**2)
        nn.init.normal_(self.mark, std=INIT_STD)
        for module in (self.embed, self.paint, *self.blocks.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        use_fast_linear(self)

    def forward(self, images: Tensor, order: Tensor, kept: int) -> Tensor:
        """Painted patches, (b, n - kept, 3 p²) float32.

        Args:
            images: (b, 3, h, w).
            order: of the n patches, of which the first are kept, (b, n).
            kept: how many.
        """
        tokens = self.embed(self.encoder.tokens(Seen(images, order[:, :kept])))
        places = self.places.expand(len(images), -1, -1)  # type: ignore[operator]
        placed = places.gather(1, order[:, :, None].expand(-1, -1, places.shape[2]))
        marks = self.mark.expand(len(images), order.shape[1] - kept, -1)
        # The decoder's class token has no place; where a patch lies, its position says alone.
        patches = torch.cat([tokens[:, 1:], marks.to(tokens.dtype)], dim=1) + placed
        x = self.blocks(torch.cat([tokens[:, :1], patches], dim=1))
        painted: Tensor = self.paint(self.norm(x[:, 1 + kept :]))
        return painted.float()


def pixels_of_patches(images: Tensor, patch: int) -> Tensor:
    """(b, 3, h, w) → (b, n, 3 p²): row by row, each patch's channels one after another."""
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    cut = images[:, :, : rows * patch, : columns * patch]
    return cut.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(
        0, 2, 4, 1, 3, 5
    ).flatten(3).flatten(1, 2)  # fmt: skip


class Mae(Method):
    """See `farreach_workloads.vision.selfsup.method.Method`."""

    def __init__(self, config: PretrainConfig, span: Span) -> None:
        """Make the network; raises ConfigError as `make_vit` does."""
        assert isinstance(config.method, MaeConfig)
        self._config, self._mae = config, config.method
        self.model: Student = Student(config, config.method)

    @property
    def encoder(self) -> Encoder:
        """The one that learns."""
        return self.model.encoder

    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the pixels of dropped patches."""
        images = view_major(views["large"])
        pixels = pixels_of_patches(images, self.model.patch)
        if self._mae.normalised:
            middle, spread = pixels.mean(2, keepdim=True), pixels.var(2, keepdim=True)
            pixels = (pixels - middle) / (spread + EPSILON).sqrt()
        count, batch = pixels.shape[1], self._config.training.batch
        kept = max(1, int(count * (1.0 - self._mae.mask)))
        seed = seeding.child_seed(self._config.seed, "mask", step)
        drawn = shuffled(count, batch, torch.Generator().manual_seed(seed))
        order = drawn[share(batch, rank, workers())].to(images.device)
        painted = model(images, order, kept)
        hidden = order[:, kept:, None].expand(-1, -1, pixels.shape[2])
        return (painted - pixels.gather(1, hidden)).square().mean(), {}
