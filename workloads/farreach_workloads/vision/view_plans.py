"""What is to happen to each view of an image: where it is cut out, and how it is changed.

Sources: DINO, arXiv:2104.14294; SwAV, arXiv:2006.09882; MSN, arXiv:2204.07141. The distributions
are those of torchvision's transforms (RandomResizedCrop, RandomHorizontalFlip, ColorJitter,
RandomGrayscale); all follows from uniform random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from farreach.learn.order import Rows
from farreach_workloads.vision.augment import BLUR_RADII

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Box = tuple[int, int, int, int]

TRIES = 10
LEAST_ASPECT, MOST_ASPECT = 3 / 4, 4 / 3
# Numbers of a view: for its box, and for what follows.
BOX_NUMBERS, PLAN_NUMBERS = 2 * TRIES + 2, 14
# Places in a plan's factors.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BOXES_PER_BLUR = 3
LEAST_TAP = 1e-3


@dataclass(frozen=True)
class Recipe:
    """How one of the views is made.

    Attributes:
        size: pixels of each side.
        scale: least and largest share of the image's area that is shown.
        flip: probability.
        jitter: b, c, s, h: brightness, contrast and saturation change by factors in
            [max(0, 1 - x), 1 + x], hue by [-h, h] turns, h ≤ 0.5; in any order.
        jitter_probability: that any of them change.
        grey_probability: that only the luma is left.
        blur_probability: of a Gaussian.
        blur_radii: range of its standard deviation in pixels of the view.
        solarise_probability: that values from 128 on are inverted.
    """

    size: int
    scale: tuple[float, float]
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grey_probability: float = 0.2
    blur_probability: float = 0.5
    blur_radii: tuple[float, float] = BLUR_RADII
    solarise_probability: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What is to happen to n views after they are cut out.

    Attributes:
        jittered: (n,) bool.
        order: (n, 4) int64, in which brightness, contrast, saturation and hue change.
        factors: (n, 4) float32, of these four in this order.
        grey: (n,) bool.
        taps: (n, 7 or so) float32, see `blur_taps`.
        reach: (n,) int64, number of the last of them that counts, 0 where nothing is blurred.
        solarised: (n,) bool.
        flipped: (n,) bool.
    """

    jittered: Flags
    order: Rows
    factors: NDArray[np.float32]
    grey: Flags
    taps: NDArray[np.float32]
    reach: Rows
    solarised: Flags
    flipped: Flags

    def __getitem__(self, views: slice) -> Plan:
        """Of some of the views."""
        return Plan(*[getattr(self, field.name)[views] for field in fields(self)])


def crop_box(height: int, width: int, scale: tuple[float, float], numbers: Sequence[float]) -> Box:
    """Where a view lies, by the rule of torchvision's RandomResizedCrop.

    Args:
        height: of the image.
        width: of the image.
        scale: least and largest share of its area.
        numbers: uniform on [0, 1): TRIES for the area, TRIES for the aspect, 2 for the place.

    Returns:
        top, left, height, width in pixels; the middle of the image if no try fits into it.
    """
    down, right = numbers[2 * TRIES :]
    log_least, log_range = math.log(LEAST_ASPECT), math.log(MOST_ASPECT / LEAST_ASPECT)
    for area_number, aspect_number in zip(numbers[:TRIES], numbers[TRIES:], strict=False):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_number)
        aspect = math.exp(log_least + log_range * aspect_number)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = height, width
    if width < LEAST_ASPECT * height:
        h = round(width / LEAST_ASPECT)
    elif width > MOST_ASPECT * height:
        w = round(height * MOST_ASPECT)
    return (height - h) // 2, (width - w) // 2, h, w


def plan_views(recipes: Sequence[Recipe], numbers: Numbers) -> Plan:
    """What happens to the views of b images, n = b × recipes, those of an image together.

    Args:
        recipes: of each view of an image.
        numbers: uniform on [0, 1), (b, recipes, any + PLAN_NUMBERS); the last are used.
    """
    order, factors, others = np.split(numbers[..., -PLAN_NUMBERS:], (4, 8), axis=-1)
    flip, jitter, grey, blur, radius, solarise = np.moveaxis(others, -1, 0)
    strength = np.array([recipe.jitter for recipe in recipes])
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    least = np.maximum(neutral - strength, [0.0, 0.0, 0.0, -0.5])
    least_radius, most_radius = np.array([recipe.blur_radii for recipe in recipes]).T

    def happens(number: Numbers, name: str) -> Flags:
        return (number < np.array([getattr(recipe, name) for recipe in recipes])).ravel()

    taps = blur_taps((least_radius + (most_radius - least_radius) * radius).ravel())
    return Plan(
        jittered=happens(jitter, "jitter_probability"),
        order=order.argsort(-1).reshape(-1, 4),
        factors=(least + (neutral + strength - least) * factors).reshape(-1, 4).astype(np.float32),
        grey=happens(grey, "grey_probability"),
        taps=taps,
        reach=((taps > 0).sum(1) - 1) * happens(blur, "blur_probability"),
        solarised=happens(solarise, "solarise_probability"),
        flipped=happens(flip, "flip"),
    )


def blur_taps(radii: Numbers) -> NDArray[np.float32]:
    """A Gaussian's weights, as PIL approaches it, for the middle and one side, (n, 1 + reach).

    Source: Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box
    filtering, 2011: three boxes whose ends count in part.

    Args:
        radii: standard deviations in pixels, (n,).
    """
    variance = radii**2 / BOXES_PER_BLUR
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    box = whole + part / (6 * (variance - (whole + 1) ** 2))  # beyond its middle pixel
    ends = int(whole.max(initial=0)) + 1
    distance = np.abs(np.arange(-ends, ends + 1))[:, None]
    weights = np.clip(box + 1 - distance, 0, 1) / (2 * box + 1)
    taps = weights
    for _ in range(BOXES_PER_BLUR - 1):
        wider = np.zeros((len(taps) + 2 * ends, len(radii)))
        for i, weight in enumerate(weights):
            wider[i : i + len(taps)] += taps * weight
        taps = wider
    taps = np.where(taps < LEAST_TAP, 0, taps)[len(taps) // 2 :]
    return (taps / (2 * taps.sum(0) - taps[0])).T.astype(np.float32)
