"""What the readers of public benchmark sets share: lists of image files, tables, JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from farreach.data.image_files import SUFFIXES
from farreach.data.images import UNLABELLED, ImageSet, Labels
from farreach.errors import DataError

Boxes = NDArray[np.int64]
Row = dict[str, str]
# What a scene is asked for: how many objects there are, or how far the nearest is.
Task = Literal["count", "distance"]

# Cells of a column of numbers that say that the number is not known.
UNKNOWN_CELLS = frozenset({"", "-", "n/a", "na", "nan", "none", "null", "unknown"})


class FileImages(ImageSet):
    """Images in a list of files, or a part of each.

    Attributes:
        files: one per image; the same may occur again, with another box.
        boxes: (n, 4) left, top, right and bottom edge in pixels; None: all of each image.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        labels: Labels | None = None,
        classes: Sequence[str] = (UNLABELLED,),
        boxes: Boxes | None = None,
        border: int = 0,
    ) -> None:
        """Of files that exist.

        Args:
            path: where they are.
            files: one per image.
            labels: (n,); None: all are of the one class.
            classes: name of each class.
            boxes: what is cut out of each.
            border: pixels that are cut off at each edge.
        """
        labels = np.zeros(len(files), np.int64) if labels is None else labels
        super().__init__(path, labels, classes)
        self.files, self.boxes, self._border = list(files), boxes, border

    def name(self, index: int) -> str:
        """The file, and the box if there is one."""
        if self.boxes is None:
            return str(self.files[index])
        return f"{self.files[index]}, box {self.boxes[index].tolist()}"

    def _open(self, index: int) -> Image.Image:
        image = Image.open(self.files[index])
        if self.boxes is not None:
            left, top, right, bottom = (int(edge) for edge in self.boxes[index])
            return image.crop((left, top, right, bottom))
        if self._border:
            edge = self._border
            return image.crop((edge, edge, image.width - edge, image.height - edge))
        return image

    def subset(self, rows: NDArray[np.int64]) -> FileImages:
        """Some of the images, without the names of the other files."""
        files = [self.files[int(row)] for row in rows]
        boxes = None if self.boxes is None else self.boxes[rows]
        return FileImages(self.path, files, self.labels[rows], self.classes, boxes, self._border)


def images_below(folder: Path) -> list[Path]:
    """All image files anywhere below a folder, by the order of their paths.

    Raises:
        DataError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder. Give where the set was unpacked.")
    found = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not found:
        raise DataError(f"{folder}: holds no images ({', '.join(SUFFIXES)}). Unpack the set again.")
    return found


def first_folder(path: Path, names: Iterable[str]) -> Path:
    """The first of the folders that exists.

    Raises:
        DataError: none does.
    """
    tried = list(names)
    for name in tried:
        if (path / name).is_dir():
            return path / name
    raise DataError(f"{path}: has no folder {' or '.join(tried)}. Give where the set was unpacked.")


def check_files(files: Sequence[Path], wanted_by: Path) -> None:
    """Raises DataError if files that a table names do not exist."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: is missing, as are {len(missing) - 1} others of {len(files)} that "
            f"{wanted_by} names. Unpack the images again, or remove these from it."
        )


def read_csv(file: Path, needed: Sequence[str]) -> list[Row]:
    """The rows of a table with a line of column names.

    Raises:
        DataError: it cannot be read, lacks a column, has no rows, or has one that is cut off.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or [])
            missing = [name for name in needed if name not in columns]
            if missing:
                raise DataError(
                    f"{file}: has no column {missing[0]!r}; it has {', '.join(columns)}. Needed "
                    f"are {', '.join(needed)}."
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: is no table that can be read: {error}.") from error
    if not rows:
        raise DataError(f"{file}: has no rows. Write or download it again.")
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise DataError(
                f"{file}, row {number + 1}: has not as many cells as there are columns "
                f"({len(columns)}). Correct it."
            )
    return rows


def read_json(file: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """What a JSON file holds: a list, or a dict.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no JSON that can be read: {error}.") from error
    if not isinstance(content, kind):
        raise DataError(
            f"{file}: holds a {type(content).__name__}, not a {kind.__name__}. Download it again."
        )
    return content


def numbers_of(file: Path, rows: Sequence[Row], column: str) -> NDArray[np.float64]:
    """A column as numbers, (n,); NaN where a cell is empty or says that it is not known.

    Raises:
        DataError: a cell is no number.
    """
    found = np.full(len(rows), math.nan)
    for number, row in enumerate(rows):
        cell = row[column].strip()
        if cell.lower() in UNKNOWN_CELLS:
            continue
        try:
            found[number] = float(cell)
        except ValueError:
            raise DataError(
                f"{file}, row {number + 1}: {column} is {cell!r}, which is no number. Leave it "
                "empty where it is not known."
            ) from None
    return found


def texts_of(rows: Sequence[Row], column: str) -> NDArray[np.str_]:
    """A column as text, (n,), without spaces around it."""
    return np.array([row[column].strip() for row in rows], np.str_)


def sorted_positions(classes: Sequence[str]) -> NDArray[np.int64]:
    """Of the k-th class in the order of the alphabet: its number among the classes, (n,).

    Sets that number ImageNet's classes do it by the alphabet of their WordNet ids.
    """
    return np.array(sorted(range(len(classes)), key=classes.__getitem__), np.int64)


def class_numbers(numbers: Iterable[Any], classes: int, where: str) -> list[int]:
    """Numbers of classes, checked.

    Raises:
        DataError: one is no whole number from 0 to classes - 1.
    """
    found = list(numbers)
    for number in found:
        if type(number) is not int or not 0 <= number < classes:
            raise DataError(
                f"{where}: {number!r} is none of the {classes} classes, counted from 0. Evaluate a "
                "classifier of all classes that the set is made for."
            )
    return found
