"""Views of labelled images for training, made for many images at once.

Sources: DeiT III's 3-Augment, arXiv:2204.07118; RandAugment, arXiv:1909.13719, as timm has it. The
distributions are those of torchvision's transforms on PIL images (RandomResizedCrop, or Resize and
RandomCrop; RandomHorizontalFlip, ColorJitter, RandomErasing). Colours are not cut down to whole
grey levels after each change; see `view_pixels` for how far pixels differ from PIL's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from farreach import seeding
from farreach.learn.order import Rows
from farreach_workloads.vision.augment import BLUR_RADII, MEAN, seed_globals
from farreach_workloads.vision.view_pixels import (
    FEW_TAPS,
    OPERATIONS,
    TOP,
    at_once,
    blurred,
    change,
    luma,
    normalised,
    solarised,
)
from farreach_workloads.vision.view_plans import (
    BOX_NUMBERS,
    LEAST_ASPECT,
    Flags,
    Numbers,
    blur_taps,
    crop_box,
)

if TYPE_CHECKING:
    from farreach_workloads.vision.config import AugmentConfig

Picture = Image.Image

# Numbers of a view after those of its box: flip, which of three, radius, and for brightness,
# contrast and saturation their places in the order and their factors.
OWN_NUMBERS = 9
GREY, SOLARISED, BLURRED = range(3)
# Border of a padded crop, as in DeiT III at any size; of small images it is an eighth.
MOST_PADDING, PADDED_SHARE = 4, 8
MOST_MAGNITUDE = 9.99


@dataclass(frozen=True)
class _Plan:
    """What happens to the colours of n views.

    Attributes:
        kind: (n,) int64, which of three, or -1.
        taps: (n, 7 or so) float32, see `blur_taps`.
        reach: (n,) int64, number of the last of them that counts.
        order: (n, 3) int64, in which brightness, contrast and saturation change.
        factors: (n, 3) float32, of these in this order.
    """

    kind: Rows
    taps: NDArray[np.float32]
    reach: Rows
    order: Rows
    factors: NDArray[np.float32]

    def __getitem__(self, views: slice) -> _Plan:
        """Of some of the views."""
        return _Plan(*[getattr(self, field.name)[views] for field in fields(self)])


class TrainingViews:
    """Makes views; each follows from the seed and its position, whatever is made with it.

    Attributes:
        needed: pixels of an image's shorter side from which on no view has to be enlarged.
    """

    def __init__(self, config: AugmentConfig, size: int, seed: int) -> None:
        """Views of `size` pixels each side."""
        self._config, self._size, self._seed = config, size, seed
        least = config.min_scale if config.crop == "resized" else 1.0
        self.needed = math.ceil(size / math.sqrt(least * LEAST_ASPECT))
        self._rand = None
        if config.kind == "rand":
            recipe = f"rand-m{config.magnitude}-mstd{config.magnitude_std:g}-inc1"
            mean = tuple(round(TOP * value) for value in MEAN)
            # At 10 it would keep no bits of the colours, which Pillow refuses.
            limits = {"img_mean": mean, "magnitude_max": MOST_MAGNITUDE}
            self._rand = rand_augment_transform(recipe, limits)
        self._erase = v2.RandomErasing(config.erasing, value="random")

    def made(self, images: Iterable[Picture], positions: Rows) -> Tensor:
        """A view of each image.

        Args:
            images: in RGB; any size.
            positions: numbers of the samples, (n,).

        Returns:
            (n, 3, size, size) float32, normalised.
        """
        count, size = len(positions), self._size
        streams = (seeding.generator(self._seed, "view", p) for p in positions.tolist())
        numbers = np.array([rng.random(BOX_NUMBERS + OWN_NUMBERS) for rng in streams])
        numbers = numbers.reshape(count, BOX_NUMBERS + OWN_NUMBERS)
        boxes, own = numbers[:, :BOX_NUMBERS].tolist(), numbers[:, BOX_NUMBERS:]
        flipped = own[:, 0] < (0.5 if self._config.flip else 0.0)
        pixels = np.empty((count, size, size, 3), np.uint8)
        for i, image in enumerate(images):
            view = self._cut_out(image, boxes[i])
            if flipped[i]:
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if self._rand is not None:
                seed_globals(seeding.child_seed(self._seed, "rand", int(positions[i])))
                view = self._rand(view)
            pixels[i] = np.asarray(view)
        views, plan = torch.empty(count, 3, size, size), self._plan(own)
        for some in at_once(count, size):
            np.copyto(views[some].numpy(), pixels[some].transpose(0, 3, 1, 2))
            _change_colours(views[some], plan[some])
        views = normalised(views)
        if self._config.erasing > 0:
            for i, position in enumerate(positions.tolist()):
                seed_globals(seeding.child_seed(self._seed, "erasing", position))
                views[i] = self._erase(views[i])
        return views

    def _cut_out(self, image: Picture, numbers: list[float]) -> Picture:
        size = self._size
        if self._config.crop == "resized":
            scale = self._config.min_scale, 1.0
            top, left, height, width = crop_box(image.height, image.width, scale, numbers)
            crop = image.crop((left, top, left + width, top + height))
            return crop.resize((size, size), Image.Resampling.BICUBIC)
        short = min(image.size)
        sides = (size * image.width // short, size * image.height // short)
        margin = min(MOST_PADDING, size // PADDED_SHARE)
        resized = np.asarray(image.resize(sides, Image.Resampling.BICUBIC))
        padded = np.pad(resized, ((margin, margin), (margin, margin), (0, 0)), "reflect")
        top, left = (
            int(number * (side - size + 1))
            for number, side in zip(numbers[-2:], padded.shape, strict=False)
        )
        return Image.fromarray(padded[top : top + size, left : left + size])

    def _plan(self, numbers: Numbers) -> _Plan:
        kind = np.full(len(numbers), -1)
        if self._config.kind == "three":
            kind = (3 * numbers[:, 1]).astype(np.int64)
        taps = blur_taps(BLUR_RADII[0] + (BLUR_RADII[1] - BLUR_RADII[0]) * numbers[:, 2])
        strength = self._config.jitter
        order = numbers[:, 3:6].argsort(1) if strength > 0 else np.empty((len(numbers), 0), int)
        least, most = max(0.0, 1 - strength), 1 + strength
        factors = (least + (most - least) * numbers[:, 6:]).astype(np.float32)
        return _Plan(kind, taps, (taps > 0).sum(1) - 1, order, factors)


def _change_colours(x: Tensor, plan: _Plan) -> None:
    """One of three, then brightness, contrast and saturation: (n, 3, s, s) float32, in place."""
    colours = x.flatten(2)
    change(colours, plan.kind == GREY, luma)
    change(colours, plan.kind == SOLARISED, solarised)
    for few in (True, False):
        which: Flags = (plan.kind == BLURRED) & ((plan.reach <= FEW_TAPS) == few)
        change(x, which & (plan.reach > 0), blurred, plan.taps)
    for now in plan.order.T:
        for number, operation in enumerate(OPERATIONS[:3]):
            change(colours, now == number, operation, plan.factors[:, number, None, None])
