"""Several random views of each image, made for many views at once, for training without labels.

Sources: DINO, arXiv:2104.14294; SwAV, arXiv:2006.09882; MSN, arXiv:2204.07141. The operations and
their distributions are those of torchvision's transforms on PIL images (RandomResizedCrop,
RandomHorizontalFlip, ColorJitter, RandomGrayscale) and of PIL's GaussianBlur and solarize. Where
the pixels differ from theirs, in grey levels of 0 to 255:

- crop and resize: by 1 at most;
- brightness, contrast, saturation: values are clamped after each, as there, but not cut down to
  whole numbers, so that each leaves up to half a level more in the mean, and 1.4 at most;
- hue: by 0.15 to 0.4 in the mean for photos and clip arts, 1.3 for very saturated colours, and 15
  at most, since PIL rounds hue and saturation to 8 bits;
- all four, at strengths of 0.8, 0.8, 0.8, 0.2: by 1.4 in the mean, for clip arts 0.6, and by more
  than 12 for one value in a thousand;
- blur, for radii up to 2: by 0.2 to 0.9 in the mean and 3 at most, or 4 near the borders, since PIL
  rounds six times on its way, and extends the borders as often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from farreach import seeding
from farreach.data.images import ImageSet
from farreach.learn.order import Rows
from farreach.learn.task import Batch
from farreach_workloads.vision.augment import BLUR_RADII, MEAN, SOLARISE_THRESHOLD, STD

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Box = tuple[int, int, int, int]
Operation = Callable[..., Tensor]

REPLACED = "replaced"
TRIES = 10
LEAST_ASPECT, MOST_ASPECT = 3 / 4, 4 / 3
TOP = 255.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as PIL
# Places of pure red, green and blue on the circle of hues, in sixths of it.
PRIMARIES = torch.tensor([0.0, 2.0, -2.0])[:, None]
BOXES_PER_BLUR = 3
LEAST_TAP = 1e-3
FEW_TAPS = 3
# So many floats are worked on at once that they stay in the cache.
FLOATS_AT_ONCE = 2**18


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
        order: (n, 4) int64, of OPERATIONS.
        factors: (n, 4) float32, of OPERATIONS in their own order.
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


class MultiCrop:
    """Training samples; a view follows from the seed, its sample's position, its kind and number.

    Labels are not looked at.
    """

    def __init__(self, images: ImageSet, kinds: Mapping[str, Sequence[Recipe]], seed: int) -> None:
        """Of `images`, a view for each recipe.

        Raises:
            ValueError: a kind has no recipes, or they differ in size.
        """
        for kind, recipes in kinds.items():
            sizes = sorted({recipe.size for recipe in recipes})
            if len(sizes) != 1:
                raise ValueError(f"views of one kind have one size; {kind!r} has {sizes}.")
        self._images, self._seed = images, seed
        self._kinds = {kind: tuple(recipes) for kind, recipes in kinds.items()}

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Kind → (b, its number of recipes, 3, size, size) uint8; and `replaced`, (b,) bool.

        In place of an image that cannot be read comes the next of the set.
        """
        numbers = {kind: self._numbers(kind, positions) for kind in self._kinds}
        replaced = torch.zeros(len(rows), dtype=torch.bool)
        crops: dict[str, list[Tensor]] = {kind: [] for kind in self._kinds}
        for i, row in enumerate(rows.tolist()):
            image, replaced[i] = self._images.load_or_next(row)
            pixels = torch.from_numpy(np.array(image))
            for kind, recipes in self._kinds.items():
                of_image = numbers[kind][i, :, :_CROP_NUMBERS].tolist()
                for recipe, of_view in zip(recipes, of_image, strict=True):
                    box = crop_box(pixels.shape[0], pixels.shape[1], recipe.scale, of_view)
                    crops[kind].append(resized_crop(pixels, box, recipe.size))
        batch = {}
        for kind, recipes in self._kinds.items():
            views = finished(crops[kind], plan_views(recipes, numbers[kind]), recipes[0].size)
            batch[kind] = views.unflatten(0, (len(rows), len(recipes)))
        return batch | {REPLACED: replaced}

    def _numbers(self, kind: str, positions: Rows) -> Numbers:
        """Uniform on [0, 1), (b, recipes, _CROP_NUMBERS + _PLAN_NUMBERS)."""
        shape = len(self._kinds[kind]), _CROP_NUMBERS + _PLAN_NUMBERS
        streams = (seeding.generator(self._seed, f"view/{kind}", p) for p in positions.tolist())
        return np.array([rng.random(shape) for rng in streams]).reshape(-1, *shape)


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


def resized_crop(pixels: Tensor, box: Box, size: int) -> Tensor:
    """A box of (height, width, 3) uint8, bilinear and filtered as PIL → (3, size, size) uint8."""
    top, left, height, width = box
    # Strides that torch knows as channels_last, for which it has the fastest kernel.
    crop = pixels[None, top : top + height, left : left + width].permute(0, 3, 1, 2)
    return F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]


def plan_views(recipes: Sequence[Recipe], numbers: Numbers) -> Plan:
    """What happens to the views of b images, n = b × recipes, those of an image together.

    Args:
        recipes: of each view of an image.
        numbers: uniform on [0, 1), (b, recipes, any + _PLAN_NUMBERS); the last are used.
    """
    order, factors, others = np.split(numbers[..., -_PLAN_NUMBERS:], (4, 8), axis=-1)
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


def finished(crops: Sequence[Tensor], plan: Plan, size: int) -> Tensor:
    """Everything after the crop: n times (3, size, size) uint8 → (n, 3, size, size) uint8."""
    views = torch.empty(len(crops), 3, size, size, dtype=torch.uint8)
    step = max(1, FLOATS_AT_ONCE // (3 * size * size))
    for first in range(0, len(crops), step):
        some = slice(first, first + step)
        _finish(crops[some], plan[some], views[some])
    return views


def _finish(crops: Sequence[Tensor], plan: Plan, views: Tensor) -> None:
    x = torch.empty(views.shape)
    for view, crop in zip(x, crops, strict=True):
        view.copy_(crop)
    colours = x.flatten(2)
    for order in plan.order.T:
        for number in set(order[plan.jittered].tolist()):
            now = plan.jittered & (order == number)
            _change(colours, now, OPERATIONS[number], plan.factors[:, number, None, None])
    _change(colours, plan.grey, luma)
    for few in (True, False):
        _change(x, (plan.reach > 0) & ((plan.reach <= FEW_TAPS) == few), blurred, plan.taps)
    # NumPy's conversion is several times as fast as torch's.
    np.copyto(views.numpy(), x.add_(0.5).numpy(), casting="unsafe")
    _change(views, plan.solarised, lambda part: part.where(part < SOLARISE_THRESHOLD, 255 - part))
    _change(views, plan.flipped, lambda part: part.flip(-1))


def _change(x: Tensor, which: Flags, operation: Operation, *values: NDArray[np.float32]) -> None:
    """Put new values in the place of some rows; `values` are of all rows."""
    rows = np.flatnonzero(which)
    if len(rows):
        part = x if len(rows) == len(x) else x.index_select(0, torch.from_numpy(rows))
        changed = operation(part, *[torch.from_numpy(of_all[rows]) for of_all in values])
        if changed is not x:
            x.numpy()[rows] = changed.numpy()  # several times as fast as with torch


def luma(x: Tensor) -> Tensor:
    """(n, 3, pixels) → (n, 1, pixels), float32."""
    red, green, blue = x.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Times f, clamped, in place: (n, 3, pixels) float32 and (n, 1, 1)."""
    return x.mul_(factor).clamp_(0, TOP)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """From the mean luma m, rounded as PIL does, to m + (x - m) f; see `brightness`."""
    mean = luma(x.mean(2, keepdim=True)).round_()
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, TOP)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """From each pixel's luma y to y + (x - y) f; see `brightness`."""
    grey = luma(x).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, TOP)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """HSV's hue moves on, without HSV: (n, 3, pixels) float32 and (n, 1, 1) → (n, 3, pixels).

    With c the largest of r, g, b less the least, a pixel lies 1 + (g + b - r - least) / c sixths of
    a turn from red, on green's side if g > b; and a channel is least + c w, whose w falls from 1 to
    0 between one and two sixths of a turn from its primary.
    """
    red, green, blue = x.unbind(1)
    least = x.amin(1)
    chroma = x.amax(1).sub_(least)
    place = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-6)).add_(1)
    place.copysign_(green - blue)
    centres = (PRIMARIES - 6 * turns + 3).remainder(6) - 3
    rise = (place[:, None] - centres).abs_().sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul((least - chroma)[:, None], rise, chroma[:, None])


OPERATIONS: tuple[Operation, ...] = (brightness, contrast, saturation, hue)
_CROP_NUMBERS, _PLAN_NUMBERS = 2 * TRIES + 2, 14


def blurred(x: Tensor, taps: Tensor) -> Tensor:
    """A symmetric filter along both sides: (n, 3, h, w) and `blur_taps` → (n, 3, h, w)."""
    reach = int(taps.any(0).nonzero().max())
    weights = taps.t()[..., None, None, None]
    for dim, pad in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        padded, length = F.pad(x, pad, mode="replicate"), x.shape[dim]
        x = padded.narrow(dim, reach, length) * weights[0]
        pair = torch.empty_like(x)
        for i in range(1, reach + 1):
            before, after = (padded.narrow(dim, reach + j, length) for j in (-i, i))
            x.addcmul_(torch.add(before, after, out=pair), weights[i])
    return x


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


def normalised(views: Tensor) -> Tensor:
    """(…, 3, s, s) uint8 → float32, normalised, on the same device."""
    mean, std = (torch.tensor(v, device=views.device)[:, None, None] for v in (MEAN, STD))
    return views.float().mul_(1 / (TOP * std)).sub_(mean / std)
