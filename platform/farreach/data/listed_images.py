"""Images whose classes are listed in JSON in COCO's style, as those of iNaturalist 2017 to 2019.

`train2018.json` and `val2018.json`, with or without a year, beside the folders of the images:
`images` have an `id` and a `file_name` from there, `annotations` an `image_id` and a `category_id`,
and `categories` an `id` and a `name`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farreach.data.image_labels import check_held_out
from farreach.data.image_parts import EVALUATION_NAMES, TRAINING_NAMES
from farreach.data.image_set import ImageSet
from farreach.errors import DataError

LISTS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


@dataclass(frozen=True)
class Listed:
    """What a file of annotations says, by the names of `LISTS`."""

    file: Path
    content: dict[str, list[dict[str, Any]]]


class ListedImages(ImageSet):
    """The images of one file of annotations, in the order of their ids."""

    def __init__(self, listed: Listed, classes: Sequence[str] | None = None) -> None:
        """All of them.

        Args:
            listed: by a file that the images are named from.
            classes: in whose order classes are numbered; None: by the file's own category ids.

        Raises:
            DataError: an image is missing, has no class or several, or one that is not named.
        """
        file, content = listed.file, listed.content
        named = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        names = [named[key] for key in sorted(named)]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{file}: has two categories {twice[0]!r}. Give each its own name.")
        known = names if classes is None else list(classes)
        numbers = {name: number for number, name in enumerate(known)}
        if foreign := [name for name in names if name not in numbers]:
            raise DataError(
                f"{file}: has the category {foreign[0]!r}, of which none is trained on."
            )
        images = sorted(content["images"], key=lambda entry: entry["id"])
        files = [file.parent / str(entry["file_name"]) for entry in images]
        if missing := [path for path in files if not path.is_file()]:
            raise DataError(
                f"{missing[0]}: is missing, as are {len(missing) - 1} other images that {file} "
                "names. Unpack the images beside it."
            )
        found: dict[Any, set[str]] = defaultdict(set)
        for entry in content["annotations"]:
            if entry["category_id"] not in named:
                raise DataError(f"{file}: category {entry['category_id']} is not named.")
            found[entry["image_id"]].add(named[entry["category_id"]])
        if odd := [entry["id"] for entry in images if len(found[entry["id"]]) != 1]:
            raise DataError(
                f"{file}: image {odd[0]} is of {len(found[odd[0]])} categories. Annotate each "
                "image with one."
            )
        labels = [numbers[next(iter(found[entry["id"]]))] for entry in images]
        super().__init__(file.parent, np.array(labels, np.int64), known)
        self.files = files

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def _open(self, index: int) -> Image.Image:
        return Image.open(self.files[index])


def listed_in(path: Path) -> tuple[Listed, Listed] | None:
    """What is listed in a folder to train on and to evaluate on; None if not both.

    Raises:
        DataError: a file of annotations is damaged.
    """
    train = _first(path, TRAINING_NAMES)
    held_out = None if train is None else _first(path, EVALUATION_NAMES)
    return None if train is None or held_out is None else (train, held_out)


def open_listed(train: Listed, held_out: Listed) -> tuple[ImageSet, ImageSet]:
    """The images of both, of the same classes; raises DataError as `ListedImages`."""
    first = ListedImages(train)
    others = ListedImages(held_out, first.classes)
    check_held_out(first, others)
    return first, others


def _first(path: Path, names: Sequence[str]) -> Listed | None:
    files = sorted(path.glob("*.json"))
    for name in names:
        for file in files:
            if re.fullmatch(rf"{name}[-_]?\d*\.json", file.name.lower()):
                listed = _read(file)
                if listed is not None:
                    return listed
    return None


def _read(file: Path) -> Listed | None:
    """What a file lists; None if it is about anything else."""
    try:
        text = file.read_text(encoding="utf-8")
        if '"annotations"' not in text:
            return None
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no readable JSON file: {error}. Download it again.") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in LISTS):
        return None
    for kind, keys in LISTS.items():
        for number, entry in enumerate(content[kind]):
            if not isinstance(entry, dict) or not all(key in entry for key in keys):
                raise DataError(
                    f"{file}: entry {number} of {kind} lacks one of {', '.join(keys)}. Correct it."
                )
    return Listed(file, content)
