"""Copies of images as people make them, for copy detection without a data set of copies.

Kinds of edits follow DISC21 (arXiv:2106.09672): a part of the image, turned, blurred, with other
colours, badly compressed, pasted onto another image, with something pasted over it.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from farreach import seeding
from farreach.data.images import ImageSet

Picture = Image.Image

KINDS = ("part", "turned", "blurred", "colours", "compressed", "pasted", "covered")


class EditedImages(ImageSet):
    """Each image of a set, edited in two ways that its number draws."""

    def __init__(self, images: ImageSet, seed: int) -> None:
        """Of `images`, which also lend what is pasted."""
        super().__init__(images.path, images.labels, images.classes)
        self._images, self._seed = images, seed
        self.files = images.files

    def name(self, index: int) -> str:
        """That of the original, and the seed."""
        return f"{self._images.name(index)}, edited by seed {self._seed}"

    def _open(self, index: int) -> Picture:
        rng = seeding.generator(self._seed, "edit", index)
        image = self._images.load(index)
        for kind in rng.choice(len(KINDS), 2, replace=False):
            other = self._images.load(int(rng.integers(len(self))))
            image = edited(image, KINDS[int(kind)], other, rng)
        return image


def edited(image: Picture, kind: str, other: Picture, rng: np.random.Generator) -> Picture:
    """One of `KINDS`; `other` is what is pasted onto or over the image."""
    width, height = image.size
    if kind == "part":
        side = rng.uniform(0.5, 0.8)
        w, h = max(1, round(width * side)), max(1, round(height * side))
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        return image.crop((left, top, left + w, top + h))
    if kind == "turned":
        angle = float(rng.uniform(8, 30) * rng.choice([-1, 1]))
        return image.rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor="white")
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.01, 0.03)) * width))
    if kind == "colours":
        for enhance in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness):
            image = enhance(image).enhance(float(rng.uniform(0.4, 1.6)))
        return image
    if kind == "compressed":
        content = io.BytesIO()
        image.save(content, "JPEG", quality=int(rng.integers(5, 20)))
        return Image.open(content).convert("RGB")
    share = rng.uniform(0.5, 0.8) if kind == "pasted" else rng.uniform(0.2, 0.4)
    ground, top_layer = (other, image) if kind == "pasted" else (image, other)
    ground = ground.resize(image.size)
    small = top_layer.resize((max(1, round(width * share)), max(1, round(height * share))))
    left = int(rng.integers(width - small.width + 1))
    ground.paste(small, (left, int(rng.integers(height - small.height + 1))))
    return ground
