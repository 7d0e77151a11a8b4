"""Views on a CPU: cutting out, resizing, changing colours, for many at once.

The operations and
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

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from farreach_workloads.vision.augment import MEAN, SOLARISE_THRESHOLD, STD
from farreach_workloads.vision.view_plans import Box, Flags, Plan

Operation = Callable[..., Tensor]

TOP = 255.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as PIL
# Places of pure red, green and blue on the circle of hues, in sixths of it.
PRIMARIES = torch.tensor([0.0, 2.0, -2.0])[:, None]
FEW_TAPS = 3
# So many floats are worked on at once that they stay in the cache.
FLOATS_AT_ONCE = 2**18


def resized_crop(pixels: Tensor, box: Box, size: int) -> Tensor:
    """A box of (height, width, 3) uint8, bilinear and filtered as PIL → (3, size, size) uint8."""
    top, left, height, width = box
    # Strides that torch knows as channels_last, for which it has the fastest kernel.
    crop = pixels[None, top : top + height, left : left + width].permute(0, 3, 1, 2)
    return F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]


def finished(crops: Sequence[Tensor], plan: Plan, size: int) -> Tensor:
    """Everything after the crop: n times (3, size, size) uint8 → (n, 3, size, size) uint8."""
    views = torch.empty(len(crops), 3, size, size, dtype=torch.uint8)
    for some in at_once(len(crops), size):
        _finish(crops[some], plan[some], views[some])
    return views


def at_once(count: int, size: int) -> Iterator[slice]:
    """Parts of so many views of `size` pixels each side that are worked on one after the other."""
    step = max(1, FLOATS_AT_ONCE // (3 * size * size))
    for first in range(0, count, step):
        yield slice(first, first + step)


def _finish(crops: Sequence[Tensor], plan: Plan, views: Tensor) -> None:
    x = torch.empty(views.shape)
    for view, crop in zip(x, crops, strict=True):
        view.copy_(crop)
    colours = x.flatten(2)
    for order in plan.order.T:
        for number in set(order[plan.jittered].tolist()):
            now = plan.jittered & (order == number)
            change(colours, now, OPERATIONS[number], plan.factors[:, number, None, None])
    change(colours, plan.grey, luma)
    for few in (True, False):
        change(x, (plan.reach > 0) & ((plan.reach <= FEW_TAPS) == few), blurred, plan.taps)
    # NumPy's conversion is several times as fast as torch's.
    np.copyto(views.numpy(), x.add_(0.5).numpy(), casting="unsafe")
    change(views, plan.solarised, solarised)
    change(views, plan.flipped, lambda part: part.flip(-1))


def change(x: Tensor, which: Flags, operation: Operation, *values: NDArray[np.float32]) -> None:
    """Put new values in the place of some rows; `values` are of all rows."""
    rows = np.flatnonzero(which)
    if len(rows):
        part = x if len(rows) == len(x) else x.index_select(0, torch.from_numpy(rows))
        changed = operation(part, *[torch.from_numpy(of_all[rows]) for of_all in values])
        if changed is not x:
            x.numpy()[rows] = changed.numpy()  # several times as fast as with torch


def solarised(x: Tensor) -> Tensor:
    """Values from 128 on are inverted, of any type in [0, 255]."""
    return x.where(x < SOLARISE_THRESHOLD, 255 - x)


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
    centres = (PRIMARIES.to(x.device) - 6 * turns + 3).remainder(6) - 3
    rise = (place[:, None] - centres).abs_().sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul((least - chroma)[:, None], rise, chroma[:, None])


OPERATIONS: tuple[Operation, ...] = (brightness, contrast, saturation, hue)


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


def normalised(views: Tensor) -> Tensor:
    """(…, 3, s, s) uint8 → float32, normalised, on the same device; float32 in place."""
    mean, std = (torch.tensor(v, device=views.device)[:, None, None] for v in (MEAN, STD))
    return views.float().mul_(1 / (TOP * std)).sub_(mean / std)
