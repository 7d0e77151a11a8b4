"""Looks at sets of images before they are trained on: is it one, and can all of it be read?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from farreach.data.image_files import idx_pair
from farreach.data.images import ImageSet, is_image
from farreach.errors import DataError


def looks_like_images(path: Path) -> bool:
    """Whether a file or folder holds images in one of these layouts, rather than anything else."""
    if path.is_file():
        if path.suffix == ".parquet":
            return "image" in pq.read_schema(path).names
        return path.suffix == ".tar" or is_image(path)
    if idx_pair(path, "train"):
        return True
    for file in path.rglob("*"):
        if file.suffix == ".parquet":
            return looks_like_images(file)
        if file.suffix == ".tar" or is_image(file):
            return True
    return False


def faults_of(images: ImageSet) -> Iterator[tuple[int, str | None]]:
    """Decode every image; its number, and what is wrong with it or None."""
    for index in range(len(images)):
        fault = None
        try:
            images.load(index)
        except DataError as error:
            fault = str(error)
        yield index, fault
