"""Looks at sets of images before they are trained on: is it one, and can all of it be read?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from farreach.data.cifar import cifar_folder
from farreach.data.image_files import idx_pair, is_image, walk
from farreach.data.image_set import ImageSet
from farreach.data.parquet_images import DAMAGED
from farreach.errors import DataError


def looks_like_images(path: Path) -> bool:
    """Whether a file or folder holds images in one of these layouts, rather than anything else.

    Raises:
        DataError: that is a Parquet file, which is damaged.
    """
    if path.is_file():
        if path.suffix == ".parquet":
            return "image" in _columns(path)
        return path.suffix == ".tar" or is_image(path)
    if idx_pair(path, "train") or cifar_folder(path) is not None:
        return True
    for file in map(Path, walk(path)):
        if file.suffix in (".parquet", ".tar") or is_image(file):
            return looks_like_images(file)
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


def _columns(file: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(file).names
    except DAMAGED as error:
        raise DataError(
            f"{file}: is no readable Parquet file: {error}. Download it again."
        ) from error
    return names
