"""Scenes of cut-outs on a ground: images whose every pixel and object is known.

Scene `i` of a part is the same whenever it is asked for. Cut-outs and grounds of the held-out
scenes are in none of those to train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from farreach import seeding
from farreach.data.fetched import here
from farreach.data.image_files import SUFFIXES
from farreach.data.images import ImageSet, as_rgb, open_images
from farreach.data.instances import Instances, InstanceSet
from farreach.data.label_maps import IGNORED, LabelMap, LabelMapSet
from farreach.errors import DataError

SHIPPED_FILE = Path(__file__).parents[1] / "assets" / "cutouts_64.parquet"
GROUND = "ground"
# Of an object whose share this small can be seen nobody has to know what it is.
LEAST_VISIBLE = 0.25
SOLID_ALPHA = 128
OCTAVES = (2, 4, 8, 16, 32)
HELD_OUT_EVERY = 3
GROUND_SIDE = 640


class Scenes:
    """Composes scenes."""

    def __init__(
        self, cut_outs: ImageSet, grounds: Sequence[Path], side: int, most: int, seed: int
    ) -> None:
        """Of cut-outs.

        Args:
            cut_outs: with clear grounds.
            grounds: photos of which crops lie below; none: they are drawn.
            side: of a scene, in pixels.
            most: objects of a scene; there are one to so many.
            seed: of all of them.
        """
        self.cut_outs = cut_outs
        self._grounds, self._side, self._most, self._seed = list(grounds), side, most, seed
        self._rows = [
            np.flatnonzero(cut_outs.labels == label) for label in range(len(cut_outs.classes))
        ]
        self._known = [label for label, rows in enumerate(self._rows) if len(rows)]

    def compose(self, index: int) -> tuple[Image.Image, Instances]:
        """Scene `index`: its image, and its objects from the lowest to the highest."""
        rng = seeding.generator(self._seed, "scene", index)
        side = self._side
        image = self._ground(rng)
        labels: list[int] = []
        masks: list[NDArray[np.bool_]] = []
        areas: list[int] = []
        for _ in range(int(rng.integers(1, self._most + 1))):
            label = int(rng.choice(self._known))
            cut_out = _loaded(self.cut_outs, int(rng.choice(self._rows[label]))).copy()
            cut_out = ImageOps.mirror(cut_out) if rng.random() < 0.5 else cut_out
            scale = int(rng.integers(side // 4, side // 2 + 1)) / max(cut_out.size)
            size = tuple(max(1, round(scale * length)) for length in cut_out.size)
            cut_out = cut_out.resize((size[0], size[1]), Image.Resampling.LANCZOS)
            left, top = (int(rng.integers(0, side - length + 1)) for length in size)
            image.paste(cut_out, (left, top), cut_out)
            mask = np.zeros((side, side), np.bool_)
            mask[top : top + size[1], left : left + size[0]] = (
                np.asarray(cut_out)[..., 3] > SOLID_ALPHA
            )
            for below in masks:
                below &= ~mask
            labels.append(label)
            masks.append(mask)
            areas.append(max(1, int(mask.sum())))
        kept = [i for i, mask in enumerate(masks) if mask.any()]
        hidden = [masks[i].sum() < LEAST_VISIBLE * areas[i] for i in kept]
        stack = np.array([masks[i] for i in kept], np.bool_).reshape(-1, side, side)
        return image, Instances(
            boxes=np.array([_box(mask) for mask in stack], np.float32).reshape(-1, 4),
            labels=np.array([labels[i] for i in kept], np.int64),
            masks=stack,
            crowd=np.array(hidden, np.bool_),
        )

    def _ground(self, rng: np.random.Generator) -> Image.Image:
        side = self._side
        if not self._grounds:
            return drawn_ground(rng, side)
        photo = _photo(self._grounds[int(rng.integers(len(self._grounds)))])
        part = int(rng.integers(min(side, *photo.size), min(photo.size) + 1))
        left, top = (int(rng.integers(0, length - part + 1)) for length in photo.size)
        return photo.resize((side, side), box=(left, top, left + part, top + part))


class SceneInstances(InstanceSet):
    """Scenes as images with objects."""

    def __init__(self, scenes: Scenes, count: int) -> None:
        """The first `count`."""
        super().__init__(scenes.cut_outs.path, scenes.cut_outs.classes)
        self._scenes, self._count = scenes, count

    def __len__(self) -> int:
        """How many."""
        return self._count

    def image(self, index: int) -> Image.Image:
        """See the class above."""
        return self._scenes.compose(index)[0]

    def instances(self, index: int) -> Instances:
        """See the class above."""
        return self._scenes.compose(index)[1]


class SceneLabelMaps(LabelMapSet):
    """Scenes as images with a class for every pixel; the ground is class 0."""

    def __init__(self, scenes: Scenes, count: int) -> None:
        """The first `count`; raises DataError if there are more classes than pixels can have."""
        super().__init__(scenes.cut_outs.path, [GROUND, *scenes.cut_outs.classes])
        if len(self.classes) > IGNORED:
            raise DataError(
                f"{self.path}: has {len(self.classes) - 1} classes; of pixels {IGNORED - 1} can be "
                "told apart from the ground. Give cut-outs of fewer."
            )
        self._scenes, self._count = scenes, count

    def __len__(self) -> int:
        """How many."""
        return self._count

    def load(self, index: int) -> tuple[Image.Image, LabelMap]:
        """See the class above."""
        image, objects = self._scenes.compose(index)
        classes = np.zeros(image.size[::-1], np.uint8)
        for label, mask in zip(objects.labels, objects.masks, strict=True):
            classes[mask] = label + 1
        return image, classes


def open_scenes(
    cut_outs: str | None, grounds: str | None, side: int, most: int
) -> tuple[Scenes, Scenes]:
    """Scenes to train on and scenes to evaluate on.

    Args:
        cut_outs: images on clear grounds, in a layout that `open_images` knows; None: shipped.
        grounds: folder of photos, every third of which is for evaluation; None: they are drawn.
        side: of a scene, in pixels.
        most: objects of a scene.

    Raises:
        DataError: a cut-out covers all of its ground, or there are fewer than three photos.
    """
    train, held_out = open_images(SHIPPED_FILE if cut_outs is None else here(cut_outs))
    alpha = np.asarray(train.load_cut_out(0).getchannel("A"))
    if alpha.min() > SOLID_ALPHA:
        raise DataError(f"{train.name(0)}: has no clear ground to cut it out by. Give RGBA images.")
    photos = [] if grounds is None else _photos(here(grounds))
    is_held_out = np.arange(len(photos)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    parts = [
        [photo for photo, out in zip(photos, is_held_out, strict=True) if out == part]
        for part in (False, True)
    ]
    return (
        Scenes(train, parts[0], side, most, seeding.child_seed(0, "train")),
        Scenes(held_out, parts[1], side, most, seeding.child_seed(0, "held out")),
    )


def _photos(folder: Path) -> list[Path]:
    found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if len(found) < HELD_OUT_EVERY:
        raise DataError(
            f"{folder}: holds {len(found)} photos; {HELD_OUT_EVERY} are the fewest of which some "
            "can be held out."
        )
    return found


@lru_cache(maxsize=64)
def _photo(path: Path) -> Image.Image:
    photo = as_rgb(Image.open(path))
    photo.thumbnail((GROUND_SIDE, GROUND_SIDE))
    return photo


@lru_cache(maxsize=4096)
def _loaded(images: ImageSet, row: int) -> Image.Image:
    return images.load_cut_out(row)


def drawn_ground(rng: np.random.Generator, side: int) -> Image.Image:
    """Clouds of a few colours, coarse and fine."""
    ground = np.zeros((side, side, 3))
    for octave in OCTAVES:
        cells = rng.uniform(-1, 1, (octave, octave, 3))
        picture = Image.fromarray(((cells + 1) * 127.5).astype(np.uint8))
        grown = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), float)
        ground += (grown / 127.5 - 1) / octave**0.5
    base = rng.uniform(60, 200, 3)
    return Image.fromarray((base + 60 * ground).clip(0, 255).astype(np.uint8))


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
