"""Files that hold images: finding them below a folder, and IDX files of MNIST."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farreach.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def is_image(file: Path) -> bool:
    """Whether it is a file that its name says is an image; hidden ones are none."""
    return is_named_image(file.name) and not file.name.startswith(".") and file.is_file()


def is_named_image(file: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(file)[1].lower() in SUFFIXES


def walk(folder: Path | str) -> Iterator[str]:
    """All files anywhere below a folder, in no order.

    Hidden files and folders are passed over, as are folders that may not be read and links to
    folders.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        return
    for entry in visible:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif entry.is_file():
            yield entry.path


def images_in(folder: Path) -> list[Path]:
    """All images anywhere below a folder, by the order of their paths; see `walk`."""
    return _sorted(file for file in walk(folder) if is_named_image(file))


def files_with(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """All files anywhere below a folder that end so, by the order of their paths; see `walk`."""
    return _sorted(file for file in walk(folder) if file.endswith(suffixes))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by the order of their names, without hidden ones."""
    found = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in found if entry.is_dir())


def _sorted(files: Iterator[str]) -> list[Path]:
    # As paths themselves are ordered, in a fraction of the time.
    return [Path(file) for file in sorted(files, key=lambda file: file.split(os.sep))]


def idx_pair(path: Path, name: str) -> tuple[Path, Path] | tuple[()]:
    """The files of images and labels of a part, packed or not; () if they are not there."""
    for suffix in (".gz", ""):
        pair = tuple(
            path / f"{name}-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1")
        )
        if all(file.is_file() for file in pair):
            return pair[0], pair[1]
    return ()


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in an IDX file: two zeros, a type (8: uint8), a number of dims, the dims, data.

    Raises:
        DataError: it cannot be read, is of another type, or is cut off.
    """
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Download it again.") from error
    dims = data[3] if len(data) > 3 else 0
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    body = np.frombuffer(data, np.uint8)[4 + 4 * dims :]
    if data[:3] != b"\x00\x00\x08" or body.size != int(np.prod(shape)):
        raise DataError(f"{file}: is no IDX file of bytes, or is cut off. Download it again.")
    return body.reshape(shape)
