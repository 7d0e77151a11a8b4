"""Sets of labelled images in the layouts that people have them in.

- a folder with one sub-folder per class, below `train/` and `val/` (or `test/`) or by itself;
- Parquet with a column `image` (encoded bytes, or the structs of Hugging Face's datasets) and a
  column `label`, with a column `split` or in files named `train*` and `val*` (or `test*`);
- tar files of WebDataset: `KEY.jpg` (or another image) beside `KEY.cls` with its label, in files
  named `train*` and `val*` (or `test*`), or all in one part; they are read where they lie;
- the four IDX files of MNIST and its relatives, packed or not.

A set that comes in one piece is split: every tenth image of each class is for evaluation. Where
labels are not needed, all of these may lack them, and a folder may hold images anywhere below it.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from farreach.data.image_files import SUFFIXES, idx_pair, read_idx, read_table, read_tar
from farreach.errors import DataError, UnreadableImageError

Labels = NDArray[np.int64]
Sample = TypeVar("Sample")

HELD_OUT_EVERY = 10
EVALUATION_NAMES = ("val", "test", "eval")
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
    """

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
        """Another one if there are other images, or in another order, as far as names tell."""
        content = hashlib.sha256(self.labels.tobytes())
        for index in range(len(self)):
            content.update(self.name(index).encode())
        if self.path.exists():
            content.update(str(self.path.stat().st_mtime_ns).encode())
        return content.hexdigest()


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
        self._whole, self._rows = whole, rows

    def name(self, index: int) -> str:
        return self._whole.name(int(self._rows[index]))

    def _open(self, index: int) -> Image.Image:
        return self._whole._open(int(self._rows[index]))


class FolderImages(ImageSet):
    """One sub-folder per class; other files than images are passed over."""

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        """All of them, or those of some classes alone, in whose order they are numbered.

        Raises:
            DataError: there is no sub-folder with an image, or one of no class.
        """
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
        found = {f.name: sorted(file for file in f.rglob("*") if is_image(file)) for f in folders}
        found = {name: files for name, files in found.items() if files}
        if not found:
            raise DataError(
                f"{path}: holds no sub-folder with images ({', '.join(SUFFIXES)}). Give a folder "
                "with one sub-folder per class."
            )
        known = sorted(found) if classes is None else list(classes)
        foreign = sorted(set(found) - set(known))
        if foreign:
            raise DataError(f"{path / foreign[0]}: there is no such class to train on.")
        self._files = [file for name in known for file in found.get(name, [])]
        counts = [len(found.get(name, [])) for name in known]
        super().__init__(path, np.repeat(np.arange(len(known)), counts), known)

    def name(self, index: int) -> str:
        """The file."""
        return str(self._files[index])

    def _open(self, index: int) -> Image.Image:
        return Image.open(self._files[index])


class LooseImages(ImageSet):
    """All images anywhere below a folder, without labels."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if there are none."""
        self._files = sorted(file for file in path.rglob("*") if is_image(file))
        if not self._files:
            raise DataError(f"{path}: holds no images ({', '.join(SUFFIXES)}).")
        super().__init__(path, np.zeros(len(self._files), np.int64), [UNLABELLED])

    def name(self, index: int) -> str:
        """The file."""
        return str(self._files[index])

    def _open(self, index: int) -> Image.Image:
        return Image.open(self._files[index])


class ParquetImages(ImageSet):
    """Encoded images in Parquet files, which are mapped.

    Attributes:
        split: the column of that name, or what part each file is by its name; None if neither.
    """

    def __init__(self, files: Sequence[Path], *, labelled: bool = True) -> None:
        """All rows of all files; raises DataError if a column is missing or there are no rows."""
        self._files = list(files)
        tables = [read_table(file, labelled=labelled) for file in files]
        table = pa.concat_tables(tables)
        if not len(table):
            raise DataError(f"{files[0]}: has no rows.")
        self.split: list[str] | None = None
        if "split" in table.column_names:
            self.split = [str(value) for value in table["split"].to_pylist()]
        elif len({_part_of(file) for file in files}) > 1:
            parts = zip(files, tables, strict=True)
            self.split = [_part_of(file) for file, rows in parts for _ in range(len(rows))]
        column = table["image"].combine_chunks()
        self._bytes = column.field("bytes") if pa.types.is_struct(column.type) else column
        if "label" in table.column_names:
            labels, classes = _as_labels(files[0], table["label"].to_pylist())
        else:
            labels, classes = np.zeros(len(table), np.int64), [UNLABELLED]
        super().__init__(files[0], labels, classes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files again."""
        return _mapped, (self._files, self.classes != [UNLABELLED])

    def name(self, index: int) -> str:
        """The (first) file and the row."""
        return f"{self.path}, row {index}"

    def _open(self, index: int) -> Image.Image:
        data = self._bytes[index].as_buffer()
        if data is None:
            raise ValueError("there are no bytes")
        return Image.open(io.BytesIO(data))


class TarImages(ImageSet):
    """WebDataset's tar files, of which where each image begins is noted down once.

    Attributes:
        split: what part each file is by its name; None if all are the same.
    """

    def __init__(self, files: Sequence[Path], *, labelled: bool = True) -> None:
        """All samples of all files; raises DataError if a file is damaged or a label is missing."""
        self._files = list(files)
        self._places: list[tuple[int, int, int]] = []  # file, first byte, bytes
        self._keys: list[str] = []
        values: list[Any] = []
        parts: list[str] = []
        for number, file in enumerate(files):
            for key, place, value in read_tar(file, labelled=labelled):
                self._places.append((number, *place))
                self._keys.append(key)
                values.append(value)
                parts.append(_part_of(file))
        if not values:
            raise DataError(f"{files[0]}: holds no image ({', '.join(SUFFIXES)}).")
        self.split = parts if len(set(parts)) > 1 else None
        if None in values:
            labels, classes = np.zeros(len(values), np.int64), [UNLABELLED]
        else:
            labels, classes = _as_labels(files[0], values)
        super().__init__(files[0].parent if len(files) > 1 else files[0], labels, classes)

    def name(self, index: int) -> str:
        """The file and the key of the sample."""
        return f"{self._files[self._places[index][0]]}, sample {self._keys[index]}"

    def _open(self, index: int) -> Image.Image:
        number, begin, size = self._places[index]
        with open(self._files[number], "rb") as file:
            file.seek(begin)
            return Image.open(io.BytesIO(file.read(size)))


class IdxImages(ImageSet):
    """MNIST's format: (n, rows, columns) uint8 in one file and the labels in another."""

    def __init__(self, path: Path, images: Path, labels: Path) -> None:
        """Raises DataError if a file is damaged or they do not belong together."""
        self._pixels = read_idx(images)
        found = read_idx(labels).astype(np.int64)
        if self._pixels.ndim != 3 or found.shape != self._pixels.shape[:1]:
            raise DataError(
                f"{images}: holds {self._pixels.shape}, {labels.name} {found.shape}; one label per "
                "image is expected. Download both again."
            )
        super().__init__(path, found, [str(number) for number in range(int(found.max()) + 1)])

    def name(self, index: int) -> str:
        """The folder and the number."""
        return f"{self.path}, image {index}"

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])


def open_images(path: Path, *, labelled: bool = True) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to evaluate on, of the same classes.

    Args:
        path: see the module.
        labelled: whether there must be labels; if not, and there are none, all are of one class.

    Raises:
        DataError: nothing is there, or it is of no known layout.
    """
    if not path.exists():
        raise DataError(f"{path}: there is nothing. Correct data.path.")
    if path.is_file() and path.suffix not in (".parquet", ".tar"):
        raise DataError(f"{path}: is neither a folder nor a .parquet or .tar file.")
    for suffix, kind in ((".parquet", ParquetImages), (".tar", TarImages)):
        files = [path] if path.is_file() else sorted(path.rglob(f"*{suffix}"))
        if files and files[0].suffix == suffix:
            whole = kind(files, labelled=labelled)
            return _shares(whole, whole.split)
    train, held_out = (idx_pair(path, name) for name in ("train", "t10k"))
    if train and held_out:
        digits, others = IdxImages(path, *train), IdxImages(path, *held_out)
        if len(others.classes) > len(digits.classes):
            raise DataError(
                f"{held_out[1]}: has the label {len(others.classes) - 1}, of {len(digits.classes)} "
                "classes to train on. Download the files again."
            )
        others.classes = digits.classes
        return digits, others
    for name in EVALUATION_NAMES:
        if (path / "train").is_dir() and (path / name).is_dir():
            if not labelled and not _has_classes(path / "train"):
                return LooseImages(path / "train"), LooseImages(path / name)
            first = FolderImages(path / "train")
            return first, FolderImages(path / name, first.classes)
    if not labelled and not _has_classes(path):
        return _shares(LooseImages(path), None)
    return _shares(FolderImages(path), None)


def _has_classes(path: Path) -> bool:
    """Whether images lie in folders below a folder, and none beside these."""
    beside = any(is_image(file) for file in path.iterdir())
    return not beside and any(entry.is_dir() for entry in path.iterdir())


def _mapped(files: Sequence[Path], labelled: bool) -> ParquetImages:
    return ParquetImages(files, labelled=labelled)


def _shares(whole: ImageSet, split: list[str] | None) -> tuple[ImageSet, ImageSet]:
    """Both parts of a set in one piece; see the module."""
    held_out = np.zeros(len(whole), np.bool_)
    if split is not None:
        held_out = np.isin(np.array(split), EVALUATION_NAMES)
        unknown = sorted(set(split) - {"train", *EVALUATION_NAMES})
        if unknown:
            known = ", ".join(("train", *EVALUATION_NAMES))
            raise DataError(f"{whole.path}: split {unknown[0]!r} is none of {known}.")
    else:
        for label in range(len(whole.classes)):
            rows = np.flatnonzero(whole.labels == label)
            held_out[rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
    if held_out.all() or not held_out.any():
        raise DataError(
            f"{whole.path}: holds {len(whole)} images, of which {int(held_out.sum())} are to be "
            f"held out. Add a folder `val` beside `train`, or images: every {HELD_OUT_EVERY}th of "
            "a class is held out."
        )
    return whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))


def _part_of(file: Path) -> str:
    """What a file's name says of it: `train`, or a name of the evaluation's part."""
    return next((name for name in EVALUATION_NAMES if file.name.startswith(name)), "train")


def is_image(file: Path) -> bool:
    """Whether it is a file that its name says is an image."""
    return file.suffix.lower() in SUFFIXES and file.is_file()


def _as_labels(file: Path, values: list[Any]) -> tuple[Labels, list[str]]:
    """Numbers as they are, names by their order in the alphabet."""
    if all(isinstance(value, int) for value in values):
        labels = np.array(values, np.int64)
        if labels.min() < 0:
            raise DataError(f"{file}: labels are counted from 0; there is a {labels.min()}.")
        return labels, [str(number) for number in range(int(labels.max()) + 1)]
    names, labels = np.unique([str(value) for value in values], return_inverse=True)
    return labels.astype(np.int64), names.tolist()


def as_rgb(image: Image.Image) -> Image.Image:
    """In RGB, on white where it is transparent."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
