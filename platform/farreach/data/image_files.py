"""Files that hold many images: Parquet tables, tar files of WebDataset, IDX files of MNIST."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from farreach.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_table(file: Path, *, labelled: bool) -> Any:
    """The columns `image`, `label` and `split` of a table, as far as it has them, mapped.

    Raises:
        DataError: it is none, or lacks a column that is needed.
    """
    try:
        table = pq.read_table(file, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: is no readable Parquet file: {error}.") from error
    needed = ("image", "label") if labelled else ("image",)
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise DataError(
            f"{file}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}. Rename "
            "the columns to image (encoded bytes) and label."
        )
    kept = [name for name in ("image", "label", "split") if name in table.column_names]
    return table.select(kept)


def read_tar(
    file: Path, *, labelled: bool
) -> Iterator[tuple[str, tuple[int, int], int | str | None]]:
    """Key, place (first byte, bytes) and label of each image.

    Raises:
        DataError: it is no tar file, or a label is missing.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int | str] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{stem}".lstrip("/")
                if not member.isfile() or not stem:
                    continue
                if f".{suffix.lower()}" in SUFFIXES:
                    images[key] = (member.offset_data, member.size)
                elif suffix == "cls":
                    content = archive.extractfile(member)
                    assert content is not None
                    text = content.read().decode().strip()
                    labels[key] = int(text) if text.isdecimal() else text
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no tar file that can be read: {error}.") from error
    for key, place in images.items():
        if labelled and key not in labels:
            raise DataError(f"{file}: sample {key} has no label: {key}.cls is missing.")
        yield key, place, labels.get(key)


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
