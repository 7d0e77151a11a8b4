"""What happens to an image before the network sees it.

Randomness comes from the global generators of Python, NumPy and torch; whoever calls seeds them per
sample.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

if TYPE_CHECKING:
    from farreach_workloads.vision.config import AugmentConfig

Picture = Image.Image
Transform = Callable[[Picture], Tensor]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = v2.InterpolationMode.BICUBIC
SOLARISE_THRESHOLD = 128
BLUR_RADII = (0.1, 2.0)
MOST_MAGNITUDE = 9.99


class OneOfThree:
    """Grey, solarised or blurred, one third each: the core of 3-Augment (arXiv:2204.07118)."""

    def __call__(self, image: Picture) -> Picture:
        """Always one of them."""
        kind = random.randrange(3)
        if kind == 0:
            return ImageOps.grayscale(image).convert("RGB")
        if kind == 1:
            return ImageOps.solarize(image, SOLARISE_THRESHOLD)
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*BLUR_RADII)))


def seed_globals(seed: int) -> None:
    """Seed all generators that transforms draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(seed)


def training_transform(config: AugmentConfig, size: int) -> Transform:
    """PIL image → (3, size, size) float32, normalised."""
    steps: list[Callable[[Picture], Picture]] = []
    if config.crop == "resized":
        scale = (config.min_scale, 1.0)
        steps.append(v2.RandomResizedCrop(size, scale=scale, interpolation=BICUBIC))
    else:
        steps.append(v2.Resize(size, interpolation=BICUBIC))
        steps.append(v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.kind == "three":
        steps.append(OneOfThree())
    if config.kind == "rand":
        recipe = f"rand-m{config.magnitude}-mstd{config.magnitude_std:g}-inc1"
        mean = tuple(round(255 * value) for value in MEAN)
        # At 10 it would keep no bits of the colours, which Pillow refuses.
        limits = {"img_mean": mean, "magnitude_max": MOST_MAGNITUDE}
        steps.append(rand_augment_transform(recipe, limits))
    if config.color_jitter > 0:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    last = [v2.RandomErasing(config.erasing, value="random")] if config.erasing > 0 else []
    return _composed(steps, last)


def evaluation_transform(size: int, crop_ratio: float) -> Transform:
    """PIL image → (3, size, size) float32, normalised: the middle of the resized image."""
    resize = v2.Resize(round(size / crop_ratio), interpolation=BICUBIC)
    return _composed([resize, v2.CenterCrop(size)], [])


def _composed(
    pictures: list[Callable[[Picture], Picture]], tensors: list[Callable[[Tensor], Tensor]]
) -> Transform:
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    composed: Transform = v2.Compose([*pictures, to_tensor, v2.Normalize(MEAN, STD), *tensors])
    return composed
