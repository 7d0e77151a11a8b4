"""Images in tar files of WebDataset, which are read where they lie."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farreach.data.image_files import SUFFIXES
from farreach.data.image_labels import as_labels
from farreach.data.image_parts import parts_of
from farreach.data.image_set import UNLABELLED, ImageSet
from farreach.errors import DataError

BLOCK_BYTES = 512
READ_BYTES = 2**20


class TarImages(ImageSet):
    """WebDataset's tar files, of which where each image begins is noted down once.

    Attributes:
        split: what part each file is by its name; None if all are the same.
    """

    def __init__(self, files: Sequence[Path], *, labelled: bool = True) -> None:
        """All samples of all files; raises DataError if a file is damaged or a label is missing."""
        self.files = list(files)
        self._places: list[tuple[int, int, int]] = []  # file, first byte, bytes
        self._keys: list[str] = []
        values: list[Any] = []
        for number, file in enumerate(files):
            for key, place, value in read_tar(file, labelled=labelled):
                self._places.append((number, *place))
                self._keys.append(key)
                values.append(value)
        if not values:
            raise DataError(f"{files[0]}: holds no image ({', '.join(SUFFIXES)}).")
        parts = parts_of(files)
        self.split = None if parts is None else [parts[number] for number, _, _ in self._places]
        path = files[0].parent if len(files) > 1 else files[0]
        if None in values:
            labels, classes = np.zeros(len(values), np.int64), [UNLABELLED]
        else:
            labels, classes = as_labels(path, values, self.name)
        super().__init__(path, labels, classes)

    def name(self, index: int) -> str:
        """The file and the key of the sample."""
        return f"{self.files[self._places[index][0]]}, sample {self._keys[index]}"

    def _open(self, index: int) -> Image.Image:
        number, begin, size = self._places[index]
        with open(self.files[number], "rb") as file:
            file.seek(begin)
            return Image.open(io.BytesIO(file.read(size)))


def read_tar(
    file: Path, *, labelled: bool
) -> Iterator[tuple[str, tuple[int, int], int | str | None]]:
    """Key, place (first byte, bytes) and label of each image.

    Raises:
        DataError: it is no tar file, is damaged, or a label is missing.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int | str] = {}
    begin = 0
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                begin = member.offset
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
            _check_end(file, archive.offset)
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: is no tar file that can be read: {error}, in or behind the file in it that "
            f"begins at byte {begin}. Download it again."
        ) from error
    for key, place in images.items():
        if labelled and key not in labels:
            raise DataError(f"{file}: sample {key} has no label: {key}.cls is missing.")
        yield key, place, labels.get(key)


def _check_end(file: Path, end: int) -> None:
    """Raises DataError if a tar file goes on where `tarfile` took it to end, or breaks off there.

    `tarfile` ends without a word at a header that is damaged or cut off. What has no more bytes at
    all is taken as whole, though blocks of zeros should follow: some writers leave them out, and
    one that was cut off exactly there cannot be told from these.
    """
    with open(file, "rb") as content:
        content.seek(end)
        block = content.read(BLOCK_BYTES)
        is_whole = not block or (len(block) == BLOCK_BYTES and not block.strip(b"\0"))
        if not is_whole:
            raise DataError(
                f"{file}: is damaged at byte {end}, where a header should be. Download it again."
            )
        while rest := content.read(READ_BYTES):
            if rest.strip(b"\0"):
                raise DataError(
                    f"{file}: goes on after its end at byte {end}: it is damaged, or several files "
                    "were joined. Download it again, or pack it anew."
                )
