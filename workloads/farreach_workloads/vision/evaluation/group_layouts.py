"""Images with columns that tell who or what is shown, in the layouts of sets about fairness.

- any table (.csv) with a column `path`;
- Dollar Street, as MLCommons releases it: `images_v2*.csv` beside `assets/`;
- UTKFace: `AGE_GENDER_RACE_TIME.jpg`;
- face crops of Casual Conversations, in a table `path,age,gender,skin_tone`;
- OpenImages MIAP: its table of boxes of persons beside a folder of images.

Most of these have licences that forbid to pass them on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from farreach.data.images import UNREADABLE, ImageSet
from farreach.errors import DataError
from farreach_workloads.vision.evaluation.layouts import (
    FileImages,
    Row,
    check_files,
    class_numbers,
    images_below,
    numbers_of,
    read_csv,
    sorted_positions,
    texts_of,
)

PATH = "path"
# Column of Dollar Street → what it is called here.
DOLLAR_STREET = {
    "place": "household",
    "country.name": "country",
    "region.id": "region",
    "topics": "topics",
}
DOLLAR_STREET_TABLES = ("images_v2_imagenet_train.csv", "images_v2_imagenet_test.csv")
IMAGENET_NUMBERS = "imagenet_sysnet_id"
UTK_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_.+")
GENDERS = ("male", "female")
RACES = ("white", "black", "asian", "indian", "other")
CASUAL_CONVERSATIONS = ("age", "gender", "skin_tone")
MIAP_EDGES = ("XMin", "YMin", "XMax", "YMax")
MIAP_FLAGS = ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepictionOf", "IsInsideOf")
MIAP_GENDERS = {
    "predominantly feminine": "female",
    "predominantly masculine": "male",
    "unknown": "unknown",
}


@dataclass(frozen=True)
class GroupTable:
    """Images and columns about them.

    Attributes:
        images: without labels.
        columns: name → (n,) of str or float64; NaN where a number is not known.
        accepted: of each image, the classes that are right, where the set has them.
    """

    images: ImageSet
    columns: dict[str, NDArray[Any]]
    accepted: Sequence[Collection[int]] | None = None


def table_of(file: Path, numbers: Collection[str] = (), needed: Collection[str] = ()) -> GroupTable:
    """Any table of images, whose paths are absolute or from the table's folder on.

    Args:
        file: the table.
        numbers: columns that are numbers; the others are text.
        needed: columns that there must be, besides `path` and the numbers.

    Raises:
        DataError: a column or an image is missing, or a cell of a number is none.
    """
    rows = read_csv(file, [PATH, *dict.fromkeys([*needed, *numbers])])
    files = [file.parent / row[PATH].strip() for row in rows]
    check_files(files, file)
    columns = {
        name: numbers_of(file, rows, name) if name in numbers else texts_of(rows, name)
        for name in rows[0]
        if name != PATH
    }
    return GroupTable(FileImages(file, files), columns)


def casual_conversations(file: Path) -> GroupTable:
    """Face crops with `age` in years, `gender` in small letters and `skin_tone` (Fitzpatrick).

    Raises:
        DataError: see `table_of`.
    """
    table = table_of(file, ("age", "skin_tone"), CASUAL_CONVERSATIONS)
    table.columns["gender"] = np.char.lower(table.columns["gender"])
    return table


def dollar_street(
    path: Path, classes: Sequence[str] = (), tables: Sequence[str] = DOLLAR_STREET_TABLES
) -> GroupTable:
    """Dollar Street: household, country, region, topics, and income in US dollars a month.

    Args:
        path: the folder of the tables and of `assets`.
        classes: the classifier's, in its order, named by WordNet ids; none: without `accepted`.
        tables: which of its tables; `images_v2.csv` has no classes.

    Raises:
        DataError: a column or an image is missing, or a class is none of the classifier's.
    """
    needed = ["imageRelPath", "income", *DOLLAR_STREET, *([IMAGENET_NUMBERS] if classes else [])]
    parts = [(path / name, read_csv(path / name, needed)) for name in tables]
    rows = [row for _, part in parts for row in part]
    files = [path / row["imageRelPath"].strip() for row in rows]
    check_files(files, path / tables[0])
    columns: dict[str, NDArray[Any]] = {
        name: texts_of(rows, column) for column, name in DOLLAR_STREET.items()
    }
    columns["income"] = np.concatenate([numbers_of(*part, "income") for part in parts])
    accepted = None
    if classes:
        accepted = [own for part in parts for own in _imagenet_classes(*part, classes)]
    return GroupTable(FileImages(path, files), columns, accepted)


def utk_face(path: Path) -> GroupTable:
    """UTKFace: `age` in years, `gender` (male, female) and `race`, from the names of the files.

    Raises:
        DataError: there are no images, or some are named otherwise, as a few of the release are.
    """
    files = images_below(path)
    found = [UTK_NAME.fullmatch(file.stem) for file in files]
    wrong = [file for file, name in zip(files, found, strict=True) if name is None]
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} of {len(files)} images are not named AGE_GENDER_RACE_TIME: "
            f"{', '.join(file.name for file in wrong[:5])}. Remove or rename them."
        )
    ages, genders, races = zip(*(name.groups() for name in found if name), strict=True)
    columns: dict[str, NDArray[Any]] = {
        "age": np.array(ages, np.float64),
        "gender": np.array([GENDERS[int(number)] for number in genders], np.str_),
        "race": np.array([RACES[int(number)] for number in races], np.str_),
    }
    return GroupTable(FileImages(path, files), columns)


def miap(table: Path, folder: Path, least: int = 100) -> GroupTable:
    """Persons of OpenImages MIAP, cut out: `gender`, `age` as presented, and the table's flags.

    Args:
        table: such as `open_images_extended_miap_boxes_test.csv`.
        folder: of its images, `IMAGEID.jpg`.
        least: pixels that both sides of a box have at least; others are left out.

    Raises:
        DataError: a column or an image is missing, a cell is of another kind, or no box is large
            enough.
    """
    needed = ["ImageID", *MIAP_EDGES, "GenderPresentation", "AgePresentation"]
    rows = read_csv(table, needed)
    files = [folder / f"{row['ImageID'].strip()}.jpg" for row in rows]
    check_files(files, table)
    sizes = {file: _size_of(file) for file in dict.fromkeys(files)}
    edges = np.stack([numbers_of(table, rows, edge) for edge in MIAP_EDGES], 1)
    if not ((edges >= 0) & (edges <= 1)).all():
        row = int(np.flatnonzero(~((edges >= 0) & (edges <= 1)).all(1))[0])
        raise DataError(
            f"{table}, row {row + 1}: a box is {edges[row].tolist()}. Give {', '.join(MIAP_EDGES)} "
            "as shares of the image's sides, from 0 to 1."
        )
    boxes = np.rint(edges * np.array([sizes[file] * 2 for file in files])).astype(np.int64)
    kept = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= least).all(1))
    if not len(kept):
        raise DataError(f"{table}: no box is {least} pixels high and wide. Lower `least`.")
    columns: dict[str, NDArray[Any]] = {
        "gender": _genders(table, rows)[kept],
        "age": np.char.lower(texts_of(rows, "AgePresentation"))[kept],
    }
    columns |= {flag: texts_of(rows, flag)[kept] for flag in MIAP_FLAGS if flag in rows[0]}
    images = FileImages(folder, [files[int(row)] for row in kept], boxes=boxes[kept])
    return GroupTable(images, columns)


def _imagenet_classes(
    file: Path, rows: Sequence[Row], classes: Sequence[str]
) -> list[frozenset[int]]:
    """Of cells such as [721, 831], which count the classes by the alphabet."""
    places = sorted_positions(classes)
    found = []
    for number, row in enumerate(rows):
        where = f"{file}, row {number + 1}, {IMAGENET_NUMBERS}"
        try:
            listed = json.loads(row[IMAGENET_NUMBERS])
        except ValueError:
            listed = None
        if not isinstance(listed, list):
            raise DataError(f"{where}: is {row[IMAGENET_NUMBERS]!r}, not a list such as [721].")
        own = class_numbers(listed, len(classes), where)
        found.append(frozenset(int(places[label]) for label in own))
    return found


def _genders(table: Path, rows: Sequence[Row]) -> NDArray[np.str_]:
    told = [row["GenderPresentation"].strip().lower() for row in rows]
    strange = [text for text in told if text not in MIAP_GENDERS]
    if strange:
        raise DataError(
            f"{table}: GenderPresentation is {strange[0]!r}, none of {', '.join(MIAP_GENDERS)}. "
            "Correct it."
        )
    return np.array([MIAP_GENDERS[text] for text in told], np.str_)


def _size_of(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except UNREADABLE as error:
        raise DataError(
            f"{file}: is no image that can be read: {error}. Remove or replace it."
        ) from error
