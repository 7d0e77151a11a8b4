"""Targets of a batch: smoothed labels, and two images mixed into one.

Source: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; as the recipes of DeiT use them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(b,) → (b, classes): 1 - ε + ε / K for the label, ε / K elsewhere."""
    target = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return target.scatter_(1, labels[:, None], 1.0 - smoothing + smoothing / classes)


@dataclass(frozen=True)
class Mixing:
    """One weight and one kind per batch; the partner of row i is row b - 1 - i.

    Attributes:
        mixup: parameter of the Beta distribution of mixup's weight; 0 switches it off.
        cutmix: the same for CutMix.
        switch: probability of CutMix where both are on.
        smoothing: see `smoothed`.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    smoothing: float = 0.0

    def __call__(
        self, images: Tensor, labels: Tensor, classes: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """(b, 3, height, width) and (b,) → mixed images and targets (b, classes)."""
        target = smoothed(labels, classes, self.smoothing)
        kind = self._kind(rng)
        if kind == "none":
            return images, target
        alpha = self.mixup if kind == "mixup" else self.cutmix
        weight = float(rng.beta(alpha, alpha))
        if kind == "mixup":
            images = weight * images + (1.0 - weight) * images.flip(0)
        else:
            top, bottom, left, right = _box(images.shape[2], images.shape[3], weight, rng)
            images = images.clone()
            images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
            area = (bottom - top) * (right - left)
            weight = 1.0 - area / (images.shape[2] * images.shape[3])
        return images, weight * target + (1.0 - weight) * target.flip(0)

    def _kind(self, rng: np.random.Generator) -> str:
        if self.mixup > 0 and self.cutmix > 0:
            return "cutmix" if rng.random() < self.switch else "mixup"
        if self.mixup > 0:
            return "mixup"
        return "cutmix" if self.cutmix > 0 else "none"


def _box(
    height: int, width: int, weight: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of 1 - weight of the area around a uniform point, cut off at the border."""
    side = (1.0 - weight) ** 0.5
    cut_height, cut_width = int(height * side), int(width * side)
    middle_y, middle_x = int(rng.integers(height)), int(rng.integers(width))
    top, left = (max(0, m - c // 2) for m, c in ((middle_y, cut_height), (middle_x, cut_width)))
    bottom = min(height, middle_y + cut_height // 2)
    right = min(width, middle_x + cut_width // 2)
    return top, bottom, left, right
