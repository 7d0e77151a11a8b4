"""What a set of images is: images and their labels, in a fixed order."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from farreach.errors import UnreadableImageError

Labels = NDArray[np.int64]
Sample = TypeVar("Sample")

UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)
UNLABELLED = "unlabelled"
# Images that are tried in place of one that cannot be read.
TRIED = 20


class ImageSet(ABC):
    """Images and their labels, in a fixed order.

    Attributes:
        path: where they are.
        labels: (n,) int64 in [0, number of classes).
        classes: name of each class.
        files: that hold the images, in which several may lie; none: `path` alone.
    """

    files: Sequence[Path] = ()

    def __init__(self, path: Path, labels: Labels, classes: Sequence[str]) -> None:
        """See the class."""
        self.path, self.labels, self.classes = path, labels, list(classes)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """How errors name an image."""

    @abstractmethod
    def _open(self, index: int) -> Image.Image:
        """The image as it is stored."""

    def load(self, index: int, needed: int | None = None) -> Image.Image:
        """An image in RGB, on white where it is transparent.

        Args:
            index: of the image.
            needed: pixels that its shorter side keeps at least; a JPEG that has twice, four or
                eight times as many is decoded at that part of its size, several times as fast.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        return self._decoded(index, as_rgb, needed)

    def load_cut_out(self, index: int) -> Image.Image:
        """An image in RGBA; raises as `load` does."""
        return self._decoded(index, lambda image: image.convert("RGBA"))

    def _decoded(
        self,
        index: int,
        convert: Callable[[Image.Image], Image.Image],
        needed: int | None = None,
    ) -> Image.Image:
        try:
            image = self._open(index)
            if needed is not None and (part := min(image.size) // needed) > 1:
                image.draft(None, (image.width // part, image.height // part))
            return convert(image)
        except UNREADABLE as error:
            raise UnreadableImageError(
                f"{self.name(index)}: is no image that can be read: {error}. Remove or replace it."
            ) from error

    def load_or_next(self, index: int, needed: int | None = None) -> tuple[Image.Image, int]:
        """An image, or the next in the set that can be read, and its index.

        Args:
            index: of the image.
            needed: see `load`.

        Raises:
            UnreadableImageError: nor can those after it.
        """
        return first_readable(lambda row: self.load(row, needed), index, len(self))

    def subset(self, rows: NDArray[np.int64]) -> ImageSet:
        """Some of the images, as a set of its own."""
        return _Subset(self, rows)

    def fingerprint(self) -> str:
        """Another one if there are other images, or in another order.

        That is told by labels, names, and the size and time of change of every file: a look at
        each, some 6 s for a million on a local disk.
        """
        content = hashlib.sha256(self.labels.tobytes())
        for index in range(len(self)):
            # Names of files need not be UTF-8.
            content.update(self.name(index).encode("utf-8", "surrogateescape") + b"\n")
        for file in dict.fromkeys(map(os.fspath, self.files or [self.path])):
            content.update(_state_of(file))
        return content.hexdigest()


def _state_of(file: str) -> bytes:
    """Its size and time of change; nothing where there is none, as of sets in memory."""
    try:
        found = os.stat(file)
    except OSError:
        return b""
    return f"{found.st_size} {found.st_mtime_ns}\n".encode()


def first_readable(load: Callable[[int], Sample], index: int, count: int) -> tuple[Sample, int]:
    """A sample, or the next in its set that can be read, and its index.

    Args:
        load: makes a sample of an index; raises UnreadableImageError.
        index: of the sample.
        count: of all samples; the first follows on the last.

    Raises:
        UnreadableImageError: nor can those after it.
    """
    faults = []
    for other in range(index, index + min(TRIED, count)):
        try:
            return load(other % count), other % count
        except UnreadableImageError as error:  # noqa: PERF203
            faults.append(error)
    raise faults[0]


class _Subset(ImageSet):
    def __init__(self, whole: ImageSet, rows: NDArray[np.int64]) -> None:
        super().__init__(whole.path, whole.labels[rows], whole.classes)
        self._whole, self._rows, self.files = whole, rows, whole.files

    def name(self, index: int) -> str:
        return self._whole.name(int(self._rows[index]))

    def _open(self, index: int) -> Image.Image:
        return self._whole._open(int(self._rows[index]))


def as_rgb(image: Image.Image) -> Image.Image:
    """In RGB, on white where it is transparent."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
