"""Views of an image: large ones that show most of it, and small ones of a part.

Source: MSN, arXiv:2204.07141, section 4 and its code; every view is drawn on its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from farreach import seeding
from farreach.data.images import ImageSet
from farreach.learn.order import Rows
from farreach.learn.task import Batch
from farreach_workloads.vision.augment import MEAN, STD, seed_globals
from farreach_workloads.vision.selfsup.config import ViewsConfig

Transform = Callable[[Image.Image], Tensor]

JITTER_PROBABILITY, GREY_PROBABILITY, BLUR_PROBABILITY = 0.8, 0.2, 0.5
# Of which brightness, contrast, saturation and hue are parts.
JITTER = (0.8, 0.8, 0.8, 0.2)


class Blur:
    """A Gaussian of a random radius."""

    def __init__(self, radii: tuple[float, float]) -> None:
        """In pixels."""
        self._radii = radii

    def __call__(self, image: Image.Image) -> Image.Image:
        """Always."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self._radii)))


def view_transform(size: int, scale: tuple[float, float], config: ViewsConfig) -> Transform:
    """PIL image → (3, size, size) float32, normalised."""
    jitter = v2.ColorJitter(*[config.jitter * part for part in JITTER])
    steps: list[Callable[..., Any]] = [
        v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([jitter], JITTER_PROBABILITY),
        v2.RandomGrayscale(GREY_PROBABILITY),
    ]
    if config.blur is not None:
        steps.append(v2.RandomApply([Blur(config.blur)], BLUR_PROBABILITY))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    composed: Transform = v2.Compose(steps)
    return composed


class MultiView:
    """Training samples; each view follows from the seed and the sample's position in the run."""

    def __init__(self, images: ImageSet, config: ViewsConfig, seed: int) -> None:
        """Of `images`; labels are not looked at."""
        self._images, self._config, self._seed = images, config, seed
        self._large = view_transform(config.size, config.scale, config)
        self._focal = view_transform(config.focal_size, config.focal_scale, config)

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """`target` (b, 3, size, size), `random` (b, r, 3, size, size), `focal` (b, f, 3, s, s)."""
        large, focal = [], []
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            seed_globals(seeding.child_seed(self._seed, "view", position))
            image = self._images.load(row)
            many = [self._large(image) for _ in range(1 + self._config.random)]
            large.append(torch.stack(many))
            if self._config.focal:
                small = [self._focal(image) for _ in range(self._config.focal)]
                focal.append(torch.stack(small))
        views = torch.stack(large)
        batch = {"target": views[:, 0].contiguous(), "random": views[:, 1:].contiguous()}
        if focal:
            batch["focal"] = torch.stack(focal)
        return batch
