"""Views of images for training, against torchvision's transforms on PIL images.

`python benchmarks/views.py` prints one JSON line per row. The peer is the first version of the
transforms, which is a tenth faster than v2. Each image gives 1 target, 1 random and 10 focal views,
decoded, augmented and normalised, on one thread. Sources: photo-like noise of 500 × 375 as JPEG of
about 80 KB, as photos of that size have, for `224_96`; clip arts of 64 pixels, which ship with the
package, as PNG for `64_32`, and photo-like noise of 128 pixels as JPEG for `64_32_from_128`.
`224_96_large`: from photos of 2,000 × 1,500, which are decoded at half their size. Rows that end in
`_loader`: what a loader does where views are made on the device; `224_96_gpu`, where there is one:
how many images a second the device then does, against one core. `labelled_…`: one view of each, of
64 or 224 pixels, for training on labels with 3-Augment, against timm's transform for it.
`transforms_ms` and `peer_transforms_ms` are milliseconds per image without decoding.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms as v1

from farreach.data.images import ImageSet, open_images
from farreach.learn.order import Rows
from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.config import AugmentConfig
from farreach_workloads.vision.image_sets import SHIPPED_FILE
from farreach_workloads.vision.selfsup import device_views
from farreach_workloads.vision.selfsup.multicrop import MultiCrop
from farreach_workloads.vision.training_views import TrainingViews
from farreach_workloads.vision.view_pixels import normalised
from farreach_workloads.vision.view_plans import Recipe

UNIT = "images per CPU-second"
ROUNDS = 9
OCTAVES = 8
GPU_BATCH, GPU_ROUNDS = 256, 10
LARGE, SMALL, FOCAL_VIEWS = (0.3, 1.0), (0.05, 0.3), 10
JITTER = (0.4, 0.4, 0.4, 0.1)

Transform = Callable[[Image.Image], Tensor]


class Encoded(ImageSet):
    """Encoded images in memory."""

    def __init__(self, files: list[bytes]) -> None:
        """All of one class."""
        super().__init__(Path("memory"), np.zeros(len(files), np.int64), ["all"])
        self._files = files

    def name(self, index: int) -> str:
        """Its number."""
        return f"image {index}"

    def _open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self._files[index]))


class Decoded(Encoded):
    """The same, decoded beforehand."""

    def __init__(self, images: ImageSet, count: int) -> None:
        """The first `count`."""
        super().__init__([b""] * count)
        self._images = [images.load(i) for i in range(count)]

    def load(self, index: int, needed: int | None = None) -> Image.Image:
        """Without any work."""
        return self._images[index]


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG of smooth noise, whose octaves are the weaker the finer they are."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(1, OCTAVES + 1):
        shape = (3 * 2**octave // 4 + 1, 2**octave + 1)
        grey, *colours = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
        channels = [Image.fromarray(grey + 0.3 * colour) for colour in colours]
        resized = [
            channel.resize((width, height), Image.Resampling.BICUBIC) for channel in channels
        ]
        total += np.stack([np.asarray(channel) for channel in resized], -1) * 0.8**octave
    pixels = 120 + 60 * (total - total.mean()) / total.std()
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


class Blur:
    """PIL's, of a random radius."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Always."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def reference(size: int, scale: tuple[float, float]) -> Transform:
    """PIL image → (3, size, size) float32, normalised."""
    steps = [
        v1.RandomResizedCrop(size, scale=scale),
        v1.RandomHorizontalFlip(),
        v1.RandomApply([v1.ColorJitter(*JITTER)], 0.8),
        v1.RandomGrayscale(0.2),
        v1.RandomApply([Blur()], 0.5),
        v1.ToTensor(),
        v1.Normalize(MEAN, STD),
    ]
    return v1.Compose(steps)


def works(
    images: ImageSet, rows: Rows, size: int, focal: int, *, on_device: bool = False
) -> tuple[measure.Work, measure.Work]:
    """All views of some images, or what a loader does for the device's, and torchvision's."""
    large, small = (Recipe(*of, jitter=JITTER) for of in ((size, LARGE), (focal, SMALL)))
    kinds = {"target": [large], "random": [large], "focal": [small] * FOCAL_VIEWS}
    views = MultiCrop(images, kinds, seed=0, on_device=on_device)
    transforms = [reference(size, LARGE)] * 2 + [reference(focal, SMALL)] * FOCAL_VIEWS

    def ours() -> None:
        batch = views.batch(rows, rows)
        for kind in () if on_device else kinds:
            normalised(batch[kind])

    def peer() -> None:
        for row in rows.tolist():
            image = images.load(row)
            for transform in transforms:
                transform(image)

    return ours, peer


def compare(
    name: str, images: ImageSet, count: int, size: int, focal: int, *, on_device: bool = False
) -> None:
    """Print a row."""
    rows = np.arange(count)
    ours, peer = works(images, rows, size, focal, on_device=on_device)
    decoded = works(Decoded(images, count), rows, size, focal, on_device=on_device)
    times = measure.medians([*decoded], ROUNDS)
    ms = [round(1e3 * seconds / count, 3) for seconds in times]
    extra = {"transforms_ms": ms[0], "peer_transforms_ms": ms[1]}
    measure.compare_rates(name, UNIT, (ours, count), (peer, count), ROUNDS, **extra)


def compare_labelled(name: str, images: ImageSet, count: int, size: int) -> None:
    """Print a row of one view of each image, with 3-Augment."""
    config = AugmentConfig(kind="three", min_scale=LARGE[0], color_jitter=JITTER[0])
    views, rows = TrainingViews(config, size, seed=0), np.arange(count)
    transform = create_transform(
        size,
        is_training=True,
        scale=LARGE,
        color_jitter=JITTER[0],
        auto_augment="3a",
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )

    def ours() -> None:
        views.made((images.load(row, views.needed) for row in rows.tolist()), rows)

    def peer() -> None:
        torch.stack([transform(images.load(row)) for row in rows.tolist()])

    measure.compare_rates(name, UNIT, (ours, count), (peer, count), ROUNDS)


def on_gpu(images: ImageSet, size: int, focal: int) -> None:
    """Print the row of what a GPU does with batches of GPU_BATCH."""
    large, small = (Recipe(*of, jitter=JITTER) for of in ((size, LARGE), (focal, SMALL)))
    kinds = {"target": [large], "random": [large], "focal": [small] * FOCAL_VIEWS}
    views = MultiCrop(images, kinds, seed=0, on_device=True)
    positions = np.arange(GPU_BATCH)
    batch = {k: v.cuda() for k, v in views.batch(positions % len(images), positions).items()}
    times = []
    for _ in range(GPU_ROUNDS + 1):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        device_views.made(batch, views.sizes)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    _, peer = works(images, np.arange(len(images)), size, focal)
    (peer_s,) = measure.medians([peer], 1)
    rates = GPU_BATCH / statistics.median(times[1:]), len(images) / peer_s
    name = torch.cuda.get_device_name()
    measure.row("224_96_gpu", *rates, "images per s", rates[0] / rates[1], device=name)


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    photos = Encoded([photo(500, 375, seed) for seed in range(8)])
    large = Encoded([photo(2000, 1500, seed) for seed in range(2)])
    for suffix, on_device in (("", False), ("_loader", True)):
        compare(f"224_96{suffix}", photos, 8, 224, 96, on_device=on_device)
        compare(f"224_96_large{suffix}", large, 2, 224, 96, on_device=on_device)
    if torch.cuda.is_available():
        on_gpu(photos, 224, 96)
    clipart = open_images(SHIPPED_FILE)[0]
    compare_labelled("labelled_224", photos, 8, 224)
    compare_labelled("labelled_64", clipart, 128, 64)
    compare("64_32", clipart, 64, 64, 32)
    compare("64_32_from_128", Encoded([photo(128, 128, seed) for seed in range(64)]), 64, 64, 32)


if __name__ == "__main__":
    main()
