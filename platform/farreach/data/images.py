"""Sets of labelled images in the layouts that people have them in.

- a folder with one sub-folder per class, below `train/` and `val/` or by itself;
- Parquet with a column `image` (encoded bytes, or the structs of Hugging Face's datasets) and a
  column `label`, with a column `split` or in files of two parts;
- tar files of WebDataset: `KEY.jpg` (or another image) beside `KEY.cls` with its label, in files
  of two parts, or all in one; they are read where they lie;
- the four IDX files of MNIST and its relatives, packed or not;
- the pickles of CIFAR-10 and CIFAR-100, in their folder or beside it;
- iNaturalist's: `train2018.json` and `val2018.json` in COCO's style beside the folders of images.

What is trained on is called `train` or `training`, what is held out `val`, `valid`, `validation`,
`test` or `eval`: of folders the first of these, of rows and files all. A file's part is a word of
its name (`imagenet-val-0001.tar`) or a folder that it lies in. A set that comes in one piece is
split: every tenth image of each class is for evaluation. Hidden files and folders are passed over.
Where labels are not needed, folders, Parquet and tar files may lack them, and a folder may hold
images anywhere below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from farreach.console import warn
from farreach.data.cifar import cifar_folder, open_cifar
from farreach.data.image_files import (
    SUFFIXES,
    files_with,
    folders_in,
    idx_pair,
    images_in,
    is_image,
    is_named_image,
    read_idx,
    walk,
)
from farreach.data.image_labels import as_labels, check_held_out
from farreach.data.image_parts import (
    EVALUATION_NAMES,
    TRAINING_NAMES,
    in_words,
    part_folders,
    shares,
)
from farreach.data.image_set import (
    UNLABELLED,
    UNREADABLE,
    ImageSet,
    Labels,
    as_rgb,
    first_readable,
)
from farreach.data.listed_images import listed_in, open_listed
from farreach.data.parquet_images import ParquetImages
from farreach.data.tar_images import TarImages
from farreach.errors import DataError

# With what is defined here: all that others need to read sets of images.
__all__ = [
    "UNLABELLED",
    "UNREADABLE",
    "FolderImages",
    "IdxImages",
    "ImageSet",
    "Labels",
    "LooseImages",
    "ParquetImages",
    "TarImages",
    "as_rgb",
    "first_readable",
    "open_images",
]


class FolderImages(ImageSet):
    """One sub-folder per class; other files than images are passed over."""

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        """All of them, or those of some classes alone, in whose order they are numbered.

        Raises:
            DataError: there is no sub-folder with an image, or one of no class.
        """
        found = {folder.name: images_in(folder) for folder in folders_in(path)}
        found = {name: files for name, files in found.items() if files}
        if not found:
            raise DataError(
                f"{path}: holds no sub-folder with images ({', '.join(SUFFIXES)}). Give a folder "
                "with one sub-folder per class, or with Parquet or tar files, or those of MNIST, "
                "CIFAR or iNaturalist as they are published."
            )
        known = sorted(found) if classes is None else list(classes)
        foreign = sorted(set(found) - set(known))
        if foreign:
            raise DataError(f"{path / foreign[0]}: there is no such class to train on.")
        self.files = [file for name in known for file in found.get(name, [])]
        counts = [len(found.get(name, [])) for name in known]
        super().__init__(path, np.repeat(np.arange(len(known)), counts), known)

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def _open(self, index: int) -> Image.Image:
        return Image.open(self.files[index])


class LooseImages(ImageSet):
    """All images anywhere below a folder, without labels."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if there are none."""
        self.files = images_in(path)
        if not self.files:
            raise DataError(f"{path}: holds no images ({', '.join(SUFFIXES)}).")
        super().__init__(path, np.zeros(len(self.files), np.int64), [UNLABELLED])

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def _open(self, index: int) -> Image.Image:
        return Image.open(self.files[index])


class IdxImages(ImageSet):
    """MNIST's format: (n, rows, columns) uint8 in one file and the labels in another."""

    def __init__(
        self, path: Path, images: Path, labels: Path, classes: Sequence[str] | None = None
    ) -> None:
        """Of one part.

        Args:
            path: of the folder.
            images: their file.
            labels: theirs.
            classes: that are trained on; None: all that there are labels of.

        Raises:
            DataError: a file is damaged, they do not belong together, or a label is of no class.
        """
        self.files = [images]
        self._pixels = read_idx(images)
        found = read_idx(labels)
        if self._pixels.ndim != 3 or found.shape != self._pixels.shape[:1]:
            raise DataError(
                f"{images}: holds {self._pixels.shape}, {labels.name} {found.shape}; one label per "
                "image is expected. Download both again."
            )
        numbers = found.astype(np.int64)
        if classes is None:
            numbers, classes = as_labels(labels, found.tolist(), self.name)
        elif int(numbers.max()) >= len(classes):
            raise DataError(
                f"{labels}: has the label {numbers.max()}, of {len(classes)} classes to train on. "
                "Download the files again."
            )
        super().__init__(path, numbers, classes)

    def name(self, index: int) -> str:
        """The file and the number."""
        return f"{self.files[0]}, image {index}"

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])


def open_images(path: Path, *, labelled: bool = True) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to evaluate on, of the same classes.

    Warns of a set of one class where labels are needed, and of one that is slow to read.

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
    parts = _open_files(path, labelled) or _open_published(path) or _open_folders(path, labelled)
    if labelled and len(parts[0].classes) == 1:
        warn(
            f"warning: {path}: all images are of one class, {parts[0].classes[0]!r}. Give a folder "
            "with one sub-folder per class, if labels matter."
        )
    return parts


def _open_files(path: Path, labelled: bool) -> tuple[ImageSet, ImageSet] | None:
    """A Parquet or tar file, or all below a folder."""
    kinds = {".parquet": ParquetImages, ".tar": TarImages}
    found = [path] if path.is_file() else files_with(path, tuple(kinds))
    for suffix, kind in kinds.items():
        files = [file for file in found if file.suffix == suffix]
        if files:
            whole = kind(files, labelled=labelled)
            if isinstance(whole, ParquetImages) and whole.slow_bytes:
                warn(
                    f"warning: {path}: is too large for memory and has up to "
                    f"{whole.slow_bytes / 2**20:,.0f} MiB of images in a group of rows, all of "
                    "which are decoded for one image. Write it with row_group_size=100, or as tar "
                    "files."
                )
            return shares(whole, whole.split)
    return None


def _open_published(path: Path) -> tuple[ImageSet, ImageSet] | None:
    """A set whose files have names of their own."""
    train, held_out = (idx_pair(path, name) for name in ("train", "t10k"))
    if train and held_out:
        digits = IdxImages(path, *train)
        others = IdxImages(path, *held_out, digits.classes)
        check_held_out(digits, others)
        return digits, others
    cifar = cifar_folder(path)
    return None if cifar is None else open_cifar(*cifar)


def _open_folders(path: Path, labelled: bool) -> tuple[ImageSet, ImageSet]:
    """Folders of image files."""
    train, held_out = part_folders(path)
    if train is None or held_out is None or not _has_classes(train):
        listed = listed_in(path)
        if listed is not None:
            return open_listed(*listed)
    if train is not None and held_out is not None:
        if not labelled and not _has_classes(train):
            return LooseImages(train), LooseImages(held_out)
        first = FolderImages(train)
        others = FolderImages(held_out, first.classes)
        return first, others
    whole = _whole(path, train, held_out)
    if not labelled and not _has_classes(whole):
        return shares(LooseImages(whole), None)
    return shares(FolderImages(whole), None)


def _whole(path: Path, train: Path | None, held_out: Path | None) -> Path:
    """The folder of a set in one piece, where one of its parts, or both, are missing.

    A folder `train` may also be a class, of pictures of trains: then it holds no folders.

    Raises:
        DataError: there is one part, and other folders that may be the other.
    """
    part, names = (train, EVALUATION_NAMES) if held_out is None else (held_out, TRAINING_NAMES)
    if part is None or any(is_image(file) for file in path.iterdir()):
        return path
    others = [folder for folder in folders_in(path) if folder != part]
    beside = [folder.name for folder in others if any(map(is_named_image, walk(folder)))]
    if not beside and part == train:
        return part
    if _has_classes(part):
        raise DataError(
            f"{path}: has the folder {part.name}, but none that is called {in_words(names)}; "
            f"beside it: {', '.join(beside[:3]) or 'nothing'}. Rename the folder of the other part."
        )
    return path


def _has_classes(path: Path) -> bool:
    """Whether images lie in folders below a folder, and none beside these."""
    return not any(is_image(file) for file in path.iterdir()) and bool(folders_in(path))
