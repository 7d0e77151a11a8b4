"""Sets of images with a class for every pixel, in ADE20k's layout.

`images/{training,validation}/NAME.jpg` and `annotations/{training,validation}/NAME.png`, NAME with
or without folders; a pixel of the annotation is 0 for what has no class, else the number of its
class, counted from 1. The names of the classes are in `objectInfo150.txt`, or one a line in
`classes.txt`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from farreach.data.image_files import SUFFIXES
from farreach.data.image_set import UNREADABLE, as_rgb
from farreach.errors import DataError, UnreadableImageError

LabelMap = NDArray[np.uint8]

# Pixels that have no class: neither loss nor evaluation counts them.
IGNORED = 255
PARTS = ("training", "validation")
NAMES_FILES = ("objectInfo150.txt", "classes.txt")


class LabelMapSet(ABC):
    """Images and a class for each of their pixels, in a fixed order.

    Attributes:
        path: where they are.
        classes: name of each class.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        """See the class."""
        self.path, self.classes = path, list(classes)

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def load(self, index: int) -> tuple[Image.Image, LabelMap]:
        """An image in RGB, and (height, width) uint8: classes, or IGNORED.

        Raises:
            UnreadableImageError: one of them cannot be read.
            DataError: they do not belong together.
        """


class AdeLabelMaps(LabelMapSet):
    """One part of a set in ADE20k's layout."""

    def __init__(self, path: Path, part: str, classes: Sequence[str]) -> None:
        """All images of `part` that have an annotation.

        Raises:
            DataError: there are none, or one lacks its annotation.
        """
        super().__init__(path, classes)
        folder, annotations = path / "images" / part, path / "annotations" / part
        self._images = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
        if not self._images:
            raise DataError(f"{folder}: holds no images ({', '.join(SUFFIXES)}).")
        self._maps = [
            (annotations / file.relative_to(folder)).with_suffix(".png") for file in self._images
        ]
        missing = [file for file in self._maps if not file.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: is missing, as are {len(missing) - 1} other annotations of "
                f"{len(self._images)} images. Every image in {folder} needs one."
            )

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images)

    def load(self, index: int) -> tuple[Image.Image, LabelMap]:
        """See the class above; the annotation's 0 becomes IGNORED, n becomes n - 1."""
        file, annotation = self._images[index], self._maps[index]
        try:
            image = as_rgb(Image.open(file))
            numbers = np.asarray(Image.open(annotation))
        except UNREADABLE as error:
            raise UnreadableImageError(
                f"{file} or {annotation.name}: is no image that can be read: {error}. Replace it."
            ) from error
        if numbers.ndim != 2 or numbers.shape != image.size[::-1]:
            raise DataError(
                f"{annotation}: has the shape {numbers.shape}, its image (height, width) "
                f"{image.size[::-1]}. One number per pixel is expected."
            )
        if numbers.max() > len(self.classes):
            raise DataError(
                f"{annotation}: has a pixel of class {numbers.max()}, of {len(self.classes)} that "
                f"are named. Correct it, or add the names to {self.path / NAMES_FILES[1]}."
            )
        return image, (numbers.astype(np.int16) - 1).astype(np.uint8)  # 0 → 255


def open_label_maps(path: Path) -> tuple[LabelMapSet, LabelMapSet]:
    """The images to train on and those to evaluate on.

    Raises:
        DataError: nothing is there, or it is of another layout.
    """
    for part in PARTS:
        if not (path / "images" / part).is_dir():
            raise DataError(
                f"{path / 'images' / part}: is no folder. Give a folder in ADE20k's layout: "
                "images/ and annotations/, each with training/ and validation/."
            )
    classes = _class_names(path)
    first, last = (AdeLabelMaps(path, part, classes) for part in PARTS)
    return first, last


def _class_names(path: Path) -> list[str]:
    table, plain = (path / name for name in NAMES_FILES)
    if table.is_file():
        lines = table.read_text().splitlines()[1:]  # number, share, counts, names
        names = [line.rsplit("\t", 1)[-1].split(",")[0].strip() for line in lines if line.strip()]
    elif plain.is_file():
        names = [line.strip() for line in plain.read_text().splitlines() if line.strip()]
    else:
        raise DataError(f"{plain}: is missing. Write the names of the classes into it, one a line.")
    if not 1 <= len(names) <= IGNORED - 1:
        raise DataError(
            f"{path}: names {len(names)} classes; 1 to {IGNORED - 1} can be told apart."
        )
    return names
