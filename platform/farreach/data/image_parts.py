"""Which part of a set is trained on and which is held out: by names, or every tenth image."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from farreach.data.image_files import folders_in
from farreach.data.image_labels import check_held_out
from farreach.data.image_set import ImageSet
from farreach.errors import DataError

HELD_OUT_EVERY = 10
TRAINING_NAMES = ("train", "training")
# The first of these that is a folder is the one that is held out.
EVALUATION_NAMES = ("val", "valid", "validation", "test", "eval")
PARTS = (*TRAINING_NAMES, *EVALUATION_NAMES)


def in_words(names: Sequence[str]) -> str:
    """Names as a message lists them."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def part_folders(path: Path) -> tuple[Path | None, Path | None]:
    """The folders in a folder that are trained on and held out, in small or large letters."""
    folders = {folder.name.lower(): folder for folder in folders_in(path)}
    train, held_out = (
        next((folders[name] for name in names if name in folders), None)
        for names in (TRAINING_NAMES, EVALUATION_NAMES)
    )
    return train, held_out


def parts_of(files: Sequence[Path]) -> list[str] | None:
    """Which part each file is by its name; None if all are the same one.

    That is the last of the words of its name that names a part (`imagenet-val-0001.tar`), else of
    a folder that it lies in (`val/0001.tar`), else how its name begins (`valset.tar`). Beside
    files that are held out, those whose names say nothing are trained on.

    Raises:
        DataError: some are to be trained on, and others are called nothing that is known.
    """
    top = Path(os.path.commonpath([file.parent for file in files]))
    parts = [_part_of(file.relative_to(top)) for file in files]
    found = set(parts) - {None}
    if found and found <= set(TRAINING_NAMES) and None in parts:
        raise DataError(
            f"{files[parts.index(None)]}: its name does not say which part it is, as those of "
            f"other files do. Name it, or its folder, {in_words(PARTS)}."
        )
    if len(set(parts)) == 1 or found <= set(TRAINING_NAMES):
        return None
    return [part or TRAINING_NAMES[0] for part in parts]


def _part_of(file: Path) -> str | None:
    for name in (file.stem, *reversed(file.parts[:-1])):
        words = re.split("[^a-z]+", name.lower())
        if named := [word for word in words if word in PARTS]:
            return named[-1]
    begins = [part for part in PARTS if file.name.lower().startswith(part)]
    return begins[-1] if begins else None


def shares(whole: ImageSet, split: Sequence[str] | None) -> tuple[ImageSet, ImageSet]:
    """Both parts of a set in one piece.

    Args:
        whole: all images.
        split: which part each is; None: every tenth image of each class is held out.

    Raises:
        DataError: a part is called otherwise, one of them is empty, or a class is held out that is
            not trained on.
    """
    held_out = np.zeros(len(whole), np.bool_)
    if split is not None:
        names = np.char.lower(np.array(split))
        held_out = np.isin(names, EVALUATION_NAMES)
        unknown = np.flatnonzero(~np.isin(names, PARTS))
        if len(unknown):
            raise DataError(
                f"{whole.path}: split {split[int(unknown[0])]!r} is none of {', '.join(PARTS)}."
            )
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
    train, others = whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))
    check_held_out(train, others)
    return train, others
