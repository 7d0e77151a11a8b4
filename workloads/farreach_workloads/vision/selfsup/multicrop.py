"""Several random views of each image, made for many views at once, for training without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from farreach import seeding
from farreach.data.images import ImageSet
from farreach.learn.order import Rows
from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup import device_views
from farreach_workloads.vision.unreadable import REPLACED
from farreach_workloads.vision.view_pixels import finished, resized_crop
from farreach_workloads.vision.view_plans import (
    BOX_NUMBERS,
    PLAN_NUMBERS,
    Box,
    Numbers,
    Recipe,
    crop_box,
    plan_views,
)


class MultiCrop:
    """Training samples; a view follows from the seed, its sample's position, its kind and number.

    Labels are not looked at.

    Attributes:
        sizes: kind → pixels of each side of its views.
    """

    def __init__(
        self,
        images: ImageSet,
        kinds: Mapping[str, Sequence[Recipe]],
        seed: int,
        *,
        on_device: bool = False,
    ) -> None:
        """Of `images`, a view for each recipe.

        Args:
            images: of which.
            kinds: recipes of the views of each kind.
            seed: of all numbers.
            on_device: batches are what `device_views.made` makes them of.

        Raises:
            ValueError: a kind has no recipes, or they differ in size.
        """
        for kind, recipes in kinds.items():
            sizes = sorted({recipe.size for recipe in recipes})
            if len(sizes) != 1:
                raise ValueError(f"views of one kind have one size; {kind!r} has {sizes}.")
        self._images, self._seed = images, seed
        self._kinds = {kind: tuple(recipes) for kind, recipes in kinds.items()}
        self.sizes = {kind: recipes[0].size for kind, recipes in self._kinds.items()}
        self._needed = max(device_views.side_needed(recipes) for recipes in self._kinds.values())
        self._on_device = on_device

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Kind → (b, its number of recipes, 3, size, size) uint8; and `replaced`, (b,) bool.

        In place of an image that cannot be read comes the next of the set. See `device_views` for
        what else it may be.
        """
        numbers = {kind: self._numbers(kind, positions) for kind in self._kinds}
        plans = {kind: plan_views(recipes, numbers[kind]) for kind, recipes in self._kinds.items()}
        replaced = torch.zeros(len(rows), dtype=torch.bool)
        images: list[Tensor] = []
        boxes: dict[str, list[list[Box]]] = {kind: [] for kind in self._kinds}
        crops: dict[str, list[Tensor]] = {kind: [] for kind in self._kinds}
        for i, row in enumerate(rows.tolist()):
            image, found = self._images.load_or_next(row, self._needed)
            replaced[i] = found != row
            if self._on_device:
                image = device_views.bounded(image, self._needed)
            pixels = torch.from_numpy(np.array(image))
            if self._on_device:
                images.append(pixels)
            for kind, recipes in self._kinds.items():
                of_image = self._boxes(pixels, recipes, numbers[kind][i])
                boxes[kind].append(of_image)
                if not self._on_device:
                    crops[kind] += [resized_crop(pixels, box, self.sizes[kind]) for box in of_image]
        if self._on_device:
            return device_views.unmade(images, boxes, plans) | {REPLACED: replaced}
        batch = {}
        for kind, recipes in self._kinds.items():
            views = finished(crops[kind], plans[kind], self.sizes[kind])
            batch[kind] = views.unflatten(0, (len(rows), len(recipes)))
        return batch | {REPLACED: replaced}

    def _boxes(self, pixels: Tensor, recipes: Sequence[Recipe], numbers: Numbers) -> list[Box]:
        """Where each view of an image lies."""
        height, width = pixels.shape[:2]
        return [
            crop_box(height, width, recipe.scale, of_view)
            for recipe, of_view in zip(recipes, numbers[:, :BOX_NUMBERS].tolist(), strict=True)
        ]

    def _numbers(self, kind: str, positions: Rows) -> Numbers:
        """Uniform on [0, 1), (b, recipes, BOX_NUMBERS + PLAN_NUMBERS)."""
        shape = len(self._kinds[kind]), BOX_NUMBERS + PLAN_NUMBERS
        streams = (seeding.generator(self._seed, f"view/{kind}", p) for p in positions.tolist())
        return np.array([rng.random(shape) for rng in streams]).reshape(-1, *shape)
