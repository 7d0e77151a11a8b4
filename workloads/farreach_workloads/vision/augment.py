"""What happens to an image before the network sees it; views for training: `training_views`."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Picture = Image.Image
Transform = Callable[[Picture], Tensor]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = v2.InterpolationMode.BICUBIC
SOLARISE_THRESHOLD = 128
BLUR_RADII = (0.1, 2.0)


def seed_globals(seed: int) -> None:
    """Seed all generators that transforms draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(seed)


def evaluation_transform(size: int, crop_ratio: float) -> Transform:
    """PIL image → (3, size, size) float32, normalised: the middle of the resized image.

    It is resized to whole pixels as in DeiT and timm, which round down.
    """
    resize = v2.Resize(int(size / crop_ratio), interpolation=BICUBIC)
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    composed: Transform = v2.Compose([resize, v2.CenterCrop(size), *to_tensor])
    return composed
