"""Views that are made where the network is: loaders only decode images and draw random numbers.

A core decodes several times as many images as it makes into the twelve views of MSN, and a GPU
makes them in a small part of an update. It does so for all views at once and never waits for a
result:

- cutting out and resizing are two products with matrices, whose rows hold the weights of PIL's
  filter; a flip turns the rows round, and a blur is two more such products;
- brightness, contrast and saturation all are t + (x - t) f with another t; they are computed for
  all views three times before the hue and three times after it, with f = 1 where there is nothing
  to do.

The numbers and so the views are those of `view_pixels`, but for roundings: by less than one grey
level in the mean, and by more where an image is larger than the views need: it is made smaller
first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from farreach.learn.task import Batch
from farreach_workloads.vision.augment import SOLARISE_THRESHOLD
from farreach_workloads.vision.view_pixels import TOP, hue, luma, normalised
from farreach_workloads.vision.view_plans import (
    CONTRAST,
    HUE,
    LEAST_ASPECT,
    SATURATION,
    Box,
    Plan,
    Recipe,
)

IMAGES = "images"
# Of the shorter side that views need, the most that an image has for each side.
MOST_SHORT, MOST_LONG = 1.25, 2.5
# Floats of the largest temporary, more or less.
FLOATS_AT_ONCE = 2**26


def side_needed(recipes: Sequence[Recipe]) -> int:
    """Pixels of an image's shorter side from which on no view has to be enlarged."""
    sides = [recipe.size / math.sqrt(recipe.scale[0] * LEAST_ASPECT) for recipe in recipes]
    return math.ceil(max(sides))


def bounded(image: Image.Image, needed: int) -> Image.Image:
    """An image that is not much larger than views need; see `side_needed`."""
    short, long = sorted(image.size)
    if short <= MOST_SHORT * needed and long <= MOST_LONG * needed:
        return image
    share = min(needed / short, MOST_LONG * needed / long, 1.0)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def unmade(
    images: Sequence[Tensor],
    boxes: Mapping[str, Sequence[Sequence[Box]]],
    plans: Mapping[str, Plan],
) -> dict[str, Tensor]:
    """What `made` needs.

    Args:
        images: (height, width, 3) uint8 each.
        boxes: kind → of each image, its views' boxes.
        plans: kind → what happens to them, n = images × views.

    Returns:
        `images`, (b, most height, most width, 3) uint8; and `KIND/…`, (b, views, …).
    """
    count = len(images)
    height, width = (max(image.shape[dim] for image in images) for dim in (0, 1))
    canvas = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    for place, image in zip(canvas, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    batch = {IMAGES: canvas}
    for kind, plan in plans.items():
        is_blend = plan.order != HUE
        arrays = {
            "boxes": np.array(boxes[kind], np.int32).reshape(-1, 4),
            "blends": plan.order[is_blend].reshape(-1, 3).astype(np.int8),
            "hue_at": (plan.order == HUE).argmax(-1).astype(np.int8),
            "factors": plan.factors,
            "jittered": plan.jittered,
            "grey": plan.grey,
            "taps": _trimmed(plan),
            "solarised": plan.solarised,
            "flipped": plan.flipped,
        }
        for name, array in arrays.items():
            batch[f"{kind}/{name}"] = torch.from_numpy(array.reshape(count, -1, *array.shape[1:]))
    return batch


def _trimmed(plan: Plan) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Taps that leave alone what is not blurred, and no more of them than count."""
    taps = plan.taps[:, : int(plan.reach.max(initial=0)) + 1].copy()
    taps[plan.reach == 0] = 0
    taps[plan.reach == 0, 0] = 1
    return taps


@torch.no_grad()
def made(batch: Batch, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The views of a batch.

    Args:
        batch: of `unmade`, on the device.
        sizes: kind → pixels of each side of its views.

    Returns:
        Kind → (b, views, 3, size, size) float32, normalised.
    """
    images = batch[IMAGES]
    with torch.autocast(images.device.type, enabled=False):
        return {kind: _made(batch, kind, size) for kind, size in sizes.items()}


def _made(batch: Batch, kind: str, size: int) -> Tensor:
    images = batch[IMAGES]
    plan = {
        name.partition("/")[2]: value
        for name, value in batch.items()
        if name.startswith(f"{kind}/")
    }
    count, each = plan["flipped"].shape
    views = torch.empty(count, each, 3, size, size, device=images.device)
    # Rows of the views in an image's columns are the largest of what is computed on the way.
    step = max(1, FLOATS_AT_ONCE // (each * 3 * size * max(size, images.shape[2])))
    for first in range(0, count, step):
        some = slice(first, first + step)
        of_some = {name: value[some].flatten(0, 1) for name, value in plan.items()}
        x = _cut(images[some], of_some["boxes"], of_some["flipped"], size)
        x = _coloured(x.flatten(2), of_some).unflatten(2, (size, size))
        x = _blurred(x, of_some["taps"]).add_(0.5).floor_()
        is_inverted = of_some["solarised"][:, None, None, None] & (x >= SOLARISE_THRESHOLD)
        views[some] = normalised(torch.where(is_inverted, TOP - x, x)).unflatten(0, (-1, each))
    return views


def _cut(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """(b, h, w, 3) uint8 and (n, 4), n = b × views → (n, 3, size, size) float32, whole numbers."""
    count, height, width, _ = images.shape
    kind = _precise(images)
    top, left, tall, wide = boxes.unbind(1)
    down = _resampling(top, tall, size, height).to(kind)
    across = _resampling(left, wide, size, width)
    across = torch.where(flipped[:, None, None], across.flip(1), across).to(kind)
    planes = images.transpose(2, 3).to(kind, memory_format=torch.contiguous_format)
    # (b, views × size, h) (b, h, 3 × w), then (n, size × 3, w) (n, w, size).
    rows = down.reshape(count, -1, height) @ planes.reshape(count, height, 3 * width)
    cut = rows.reshape(len(boxes), size * 3, width) @ across.transpose(1, 2)
    cut = cut.reshape(len(boxes), size, 3, size).transpose(1, 2)
    return cut.to(torch.float32, memory_format=torch.contiguous_format).add_(0.5).floor_()


def _resampling(begin: Tensor, length: Tensor, size: int, pixels: int) -> Tensor:
    """Weights of `pixels` in each of `size`, for parts of a side: (n,), (n,) → (n, size, pixels).

    As PIL has them: a triangle that reaches as far as the distance of what is asked for, or 1.
    """
    device = begin.device
    step = (length / size)[:, None]
    centres = begin[:, None] + (torch.arange(size, device=device) + 0.5) * step
    places = torch.arange(pixels, device=device)
    distance = (places + 0.5 - centres[..., None]).abs_()
    weights = distance.div_(-step.clamp(min=1)[..., None]).add_(1).clamp_(min=0)
    end = (begin + length)[:, None]
    weights *= ((places >= begin[:, None]) & (places < end))[:, None]
    return weights.div_(weights.sum(-1, keepdim=True))


def _coloured(x: Tensor, plan: Mapping[str, Tensor]) -> Tensor:
    """Jitter and grey: (n, 3, pixels) → (n, 3, pixels)."""
    neutral = torch.ones_like(plan["factors"])
    neutral[:, HUE] = 0
    factors = torch.where(plan["jittered"][:, None], plan["factors"], neutral)
    blends, hue_at = plan["blends"].long(), plan["hue_at"]
    for turn in range(3):
        x = _blended(x, blends[:, turn], factors, turn < hue_at)
    x = hue(x, factors[:, HUE, None, None])
    for turn in range(3):
        x = _blended(x, blends[:, turn], factors, turn >= hue_at)
    return torch.where(plan["grey"][:, None, None], luma(x), x)


def _blended(x: Tensor, operation: Tensor, factors: Tensor, now: Tensor) -> Tensor:
    """Each view's own of brightness, contrast and saturation, where it is `now` to be: (n,)."""
    factor = factors.gather(1, operation[:, None])[..., None]
    factor = torch.where(now[:, None, None], factor, 1.0)
    to_mean, to_grey = ((operation == kind)[:, None, None] for kind in (CONTRAST, SATURATION))
    target = luma(x) * to_grey
    target += luma(x.mean(2, keepdim=True)).round_() * to_mean
    return (x * factor).add_(target * (1 - factor)).clamp_(0, TOP)


def _blurred(x: Tensor, taps: Tensor) -> Tensor:
    """A symmetric filter along both sides: (n, 3, s, s) and (n, 1 + reach) → (n, 3, s, s)."""
    reach = taps.shape[1] - 1
    if reach == 0:
        return x
    count, size, kind = len(x), x.shape[-1], _precise(x)
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    places = (torch.arange(size, device=x.device)[:, None] + offsets).clamp_(0, size - 1)
    weights = taps[:, offsets.abs()]
    filters = torch.zeros(count, size, size, device=x.device)
    shape = count, size, len(offsets)
    filters.scatter_add_(2, places.expand(shape), weights[:, None].expand(shape))
    filters = filters.to(kind)
    across = (x.to(kind).flatten(1, 2) @ filters.transpose(1, 2)).unflatten(1, (3, size))
    return (filters[:, None] @ across).float()


def _precise(x: Tensor) -> torch.dtype:
    """Of matrices: eleven bits are enough for grey levels where they are much faster."""
    return torch.float16 if x.device.type == "cuda" else torch.float32
