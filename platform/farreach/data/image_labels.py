"""What labels mean: numbers of classes, or their names; and whether training has all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from farreach.data.image_set import ImageSet, Labels
from farreach.errors import DataError

# Numbers may leave out classes, but hardly more than one in two.
MOST_EMPTY = 0.5


def as_labels(
    path: Path, values: Sequence[Any], where: Callable[[int], str]
) -> tuple[Labels, list[str]]:
    """Numbers as they are, names by their order in the alphabet; and the classes.

    Args:
        path: where the set is, for errors.
        values: a number, or something else that is taken as a name, for each image.
        where: how errors name an image.

    Raises:
        DataError: one has none, or a negative number, or most of the classes would be empty.
    """
    for row, value in enumerate(values):
        # What pandas writes for none in a column of numbers is no number.
        if value is None or value != value:
            raise DataError(
                f"{where(row)}: has no label. Give it one or remove it; where no labels are "
                "needed, leave out all of them."
            )
    if not all(isinstance(value, int) for value in values):
        names, labels = np.unique([str(value) for value in values], return_inverse=True)
        return labels.astype(np.int64), names.tolist()
    labels = np.array(values, np.int64)
    lowest, count = int(labels.argmin()), int(labels.max()) + 1
    if labels[lowest] < 0:
        raise DataError(
            f"{where(lowest)}: labels are counted from 0; there is a {labels[lowest]}. Number the "
            "classes from 0, and leave out images that have none."
        )
    found = len(np.unique(labels))
    if count - found > MOST_EMPTY * count:
        raise DataError(
            f"{path}: has labels up to {count - 1}, but images of only {found} of these {count} "
            "classes. Number the classes from 0 without gaps, or give their names as labels."
        )
    return labels, [str(number) for number in range(count)]


def check_held_out(train: ImageSet, held_out: ImageSet) -> None:
    """Raises DataError if an image is held out whose class, by number, is not trained on."""
    foreign = np.flatnonzero(~np.isin(held_out.labels, train.labels))
    if len(foreign):
        first = int(foreign[0])
        name = held_out.classes[int(held_out.labels[first])]
        raise DataError(
            f"{held_out.name(first)}: is held out, of class {name!r}; there is no such class to "
            "train on. Add images of it to train on, or leave it out."
        )
