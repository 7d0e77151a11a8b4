"""Images unlike those that a classifier of ImageNet was trained on, in the layouts of their sets.

- ImageNet-A (arXiv:1907.07174), -R (2006.16241) and -Sketch (1905.13549): a folder per class, named
  by WordNet id as in training; a part of the classes or all.
- ImageNet-V2 (1902.10811): folders `0` to `999`, the places of the classes in the alphabet.
- ImageNet-ReaL (2006.07159): `real.json`, a list of classes for each image of the validation set.
- ObjectNet (NeurIPS 2019): `images/FOLDER/` and the four tables of `mappings/`; its classes stand
  for one or several of ImageNet's, or for none, and a border of 2 pixels is to be cut off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farreach.data.images import FolderImages, ImageSet
from farreach.errors import DataError
from farreach_workloads.vision.evaluation.layouts import (
    FileImages,
    class_numbers,
    images_below,
    read_json,
    sorted_positions,
)
from farreach_workloads.vision.evaluation.shift import (
    SetScore,
    masked,
    merged,
    scored,
    scored_any,
)

REAL_NAME = "ILSVRC2012_val_{:08d}"
REAL_FILE = "real.json"
OBJECTNET_BORDER = 2
OBJECTNET_SEPARATOR = "; "


@dataclass(frozen=True)
class ShiftSet:
    """Images and what is right to say of them.

    Attributes:
        images: with their labels: the classifier's classes; with `members`, numbers of these; of
            no meaning with `accepted`.
        accepted: of each image, all classes that are right; None: its label alone.
        allowed: the classes that the set has; None: all.
        members: of each of the set's own classes, the classifier's that it stands for.
    """

    images: ImageSet
    accepted: Sequence[Collection[int]] | None = None
    allowed: Collection[int] | None = None
    members: Sequence[Collection[int]] | None = None

    def score(self, logits: Tensor) -> SetScore:
        """Accuracy of logits (n, the classifier's classes), by the rule of the set."""
        if self.accepted is not None:
            return scored_any(logits, self.accepted)
        if self.members is not None:
            logits = merged(logits, self.members)
        elif self.allowed is not None:
            logits = masked(logits, self.allowed)
        return scored(logits, torch.from_numpy(self.images.labels))


def class_folders(path: Path, classes: Sequence[str]) -> ShiftSet:
    """A set with one folder per class, such as ImageNet-A, -R and -Sketch.

    Args:
        path: the folder of the folders.
        classes: the classifier's, in its order.

    Raises:
        DataError: there are no images, or a folder is none of the classes.
    """
    _check_folder(path)
    images = FolderImages(path, classes)
    return ShiftSet(images, allowed=sorted(set(images.labels.tolist())))


def imagenet_v2(path: Path, classes: Sequence[str]) -> ShiftSet:
    """ImageNet-V2, by any of its three ways of sampling.

    Args:
        path: the folder of the numbered folders.
        classes: the classifier's, in its order; named by WordNet ids.

    Raises:
        DataError: there is not exactly one folder for each class.
    """
    _check_folder(path)
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    names = {entry.name for entry in folders}
    expected = {str(number) for number in range(len(classes))}
    if names != expected:
        odd = sorted(names ^ expected)
        raise DataError(
            f"{path / odd[0]}: and {len(odd) - 1} other folders are missing or too many; there is "
            f"to be one for each of the {len(classes)} classes, from 0 to {len(classes) - 1}. "
            "Evaluate a classifier of all classes that the set is made for."
        )
    places = sorted_positions(classes)
    files, labels = [], []
    for number in range(len(classes)):
        own = images_below(path / str(number))
        files += own
        labels += [int(places[number])] * len(own)
    return ShiftSet(FileImages(path, files, np.array(labels, np.int64), classes))


def imagenet_real(path: Path, classes: Sequence[str], table: Path | None = None) -> ShiftSet:
    """ImageNet-ReaL.

    Args:
        path: the validation set, in one folder or in folders by class.
        classes: the classifier's, in its order; named by WordNet ids.
        table: the list of labels; None: `real.json` in `path`.

    Raises:
        DataError: the table cannot be read, an image is missing, or a label is no class.
    """
    table = path / REAL_FILE if table is None else table
    listed = read_json(table, list)
    places = sorted_positions(classes)
    accepted = []
    for number, labels in enumerate(listed):
        if not isinstance(labels, list):
            raise DataError(
                f"{table}, entry {number}: is {labels!r}, not a list of classes. Download it again."
            )
        own = class_numbers(labels, len(classes), f"{table}, entry {number}")
        accepted.append(frozenset(int(places[label]) for label in own))
    by_name = {file.stem: file for file in images_below(path)}
    names = [REAL_NAME.format(number + 1) for number in range(len(listed))]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(
            f"{path}: has no image {missing[0]}, nor {len(missing) - 1} others of the "
            f"{len(names)} that {table.name} has labels for. Give the whole validation set."
        )
    return ShiftSet(FileImages(path, [by_name[name] for name in names]), accepted=accepted)


def objectnet(path: Path, classes: Sequence[str]) -> ShiftSet:
    """ObjectNet, those of its classes that stand for some of ImageNet's.

    Args:
        path: holds `images` and `mappings`.
        classes: the classifier's, in its order; named by WordNet ids.

    Raises:
        DataError: a table or folder is missing, they do not belong together, or there are not as
            many classes as in ImageNet.
    """
    tables = path / "mappings"
    of_folder = read_json(tables / "folder_to_objectnet_label.json", dict)
    of_object = read_json(tables / "objectnet_to_imagenet_1k.json", dict)
    by_name = _numbers_by_name(tables, classes)
    names = sorted(of_object)
    members = []
    for name in names:
        own = str(of_object[name]).split(OBJECTNET_SEPARATOR)
        unknown = [label for label in own if label not in by_name]
        if unknown:
            raise DataError(
                f"{tables}: {name!r} stands for {unknown[0]!r}, which is not in "
                "imagenet_to_label_2012_v2. Download the tables again."
            )
        members.append(sorted(number for label in own for number in by_name[label]))
    _check_folder(path / "images")
    files: list[Path] = []
    labels: list[int] = []
    for folder in sorted(entry for entry in (path / "images").iterdir() if entry.is_dir()):
        if folder.name not in of_folder:
            raise DataError(
                f"{folder}: is not in folder_to_objectnet_label.json. Rename or remove it."
            )
        if of_folder[folder.name] in of_object:
            own_files = images_below(folder)
            files += own_files
            labels += [names.index(of_folder[folder.name])] * len(own_files)
    if not files:
        raise DataError(
            f"{path / 'images'}: has no folder of a class that ImageNet has too. Unpack it again."
        )
    numbers = np.array(labels, np.int64)
    images = FileImages(path, files, numbers, names, border=OBJECTNET_BORDER)
    allowed = sorted({number for own in members for number in own})
    return ShiftSet(images, allowed=allowed, members=members)


def _numbers_by_name(tables: Path, classes: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the classifier's classes by ImageNet's names, two of which occur twice.

    `imagenet_to_label_2012_v2` has the names in an order of its own, and
    `pytorch_to_imagenet_2012_id.json` the line, from 0, of the k-th class in the alphabet.
    """
    file = tables / "imagenet_to_label_2012_v2"
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Download it again.") from error
    lines: dict[str, Any] = read_json(tables / "pytorch_to_imagenet_2012_id.json", dict)
    places = sorted_positions(classes)
    wanted = {str(number) for number in range(len(classes))}
    numbers = class_numbers(lines.values(), len(names), str(tables))
    if set(lines) != wanted or sorted(numbers) != list(range(len(names))):
        raise DataError(
            f"{tables}: has {len(lines)} classes and {len(names)} names of ImageNet for "
            f"{len(classes)} of the classifier. Evaluate one of all classes, or download it again."
        )
    found: dict[str, list[int]] = {}
    for place, line in zip(lines, numbers, strict=True):
        found.setdefault(names[line], []).append(int(places[int(place)]))
    return found


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise DataError(f"{path}: is no folder. Give where the set was unpacked.")
