"""Copies and their originals in the layouts of Copydays and DISC21.

- INRIA Copydays: folders `original` and `strong`, and `crops/N` and `jpegqual/N` if present; with
  `copydays_` before them as well. Names are six digits: four for the original, two for the copy,
  which are 00 for the original itself.
- DISC21 (arXiv:2106.09672): folders of references, queries and training images, and a table
  `query_id,reference_id`, in which a query that is no copy has no reference.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farreach.data.images import ImageSet
from farreach.errors import DataError
from farreach_workloads.vision.evaluation.layouts import FileImages, first_folder, images_below

ORIGINAL = "original"
STRONG = "strong"
# Archives of Copydays that hold `crops/N` and `jpegqual/N`.
ARCHIVES = ("copydays_crop", "copydays_jpeg")
COPYDAYS_NAME = re.compile(r"(\d{4})(\d{2})")

REFERENCES = ("references", "refs", "reference_images")
QUERIES = ("queries", "dev_queries", "final_queries", "query_images")
TRAINING = ("training", "train", "training_images")
HEADER = ("query_id", "reference_id")


@dataclass(frozen=True)
class CopySet:
    """Images, some of which are copies of others.

    Attributes:
        references: what is searched.
        queries: what is asked for.
        pairs: (p, 2) int64, a query and its original, as rows of these two.
        training: images that neither has, to fit a whitening to.
    """

    references: ImageSet
    queries: ImageSet
    pairs: NDArray[np.int64]
    training: ImageSet | None

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """Which references are originals of a query, (q, r); made when it is asked for."""
        table = np.zeros((len(self.queries), len(self.references)), np.bool_)
        table[self.pairs[:, 0], self.pairs[:, 1]] = True
        return table


def copydays(
    path: Path,
    block: str = STRONG,
    distractors: Path | None = None,
    training: Path | None = None,
) -> CopySet:
    """Copydays: one block of copies is searched for among the originals.

    Args:
        path: the folder of the blocks.
        block: `strong`, or for example `crops/50` or `jpegqual/10`.
        distractors: folder of images that are no originals, searched as well.
        training: folder of images for `CopySet.training`.

    Raises:
        DataError: a folder is missing or empty, a name is of another form, or a copy has no
            original.
    """
    originals, copies = (images_below(_block(path, name)) for name in (ORIGINAL, block))
    rows: dict[str, int] = {}
    for row, file in enumerate(originals):
        own, copy = _copydays_name(file)
        if copy != "00" or own in rows:
            raise DataError(
                f"{file}: is no original, or the second of {own}. Leave one image ending in 00 of "
                f"each in {file.parent}."
            )
        rows[own] = row
    pairs = []
    for query, file in enumerate(copies):
        own = _copydays_name(file)[0]
        if own not in rows:
            raise DataError(f"{file}: its original {own}00 is missing. Unpack the originals again.")
        pairs.append((query, rows[own]))
    others = [] if distractors is None else images_below(distractors)
    return CopySet(
        FileImages(path, [*originals, *others]),
        FileImages(path, copies),
        np.array(pairs, np.int64),
        None if training is None else FileImages(training, images_below(training)),
    )


def disc21(path: Path, ground_truth: Path | None = None, queries: str | None = None) -> CopySet:
    """DISC21: queries of which some are copies of references.

    Where the table has queries without a reference, it names all that count, and others are left
    out; where it has none, all images among the queries count.

    Args:
        path: the folder of the folders.
        ground_truth: the table; None: the one that is in `path`.
        queries: the folder of queries below `path`; None: the first that exists of `queries`,
            `dev_queries`, `final_queries` and `query_images`.

    Raises:
        DataError: a folder or the table is missing, or it names images that do not exist.
    """
    references = images_below(first_folder(path, REFERENCES))
    asked = images_below(first_folder(path, QUERIES if queries is None else [queries]))
    table = _only_table(path) if ground_truth is None else ground_truth
    answers = _read_ground_truth(table)
    if any(not reference for _, reference in answers):
        listed = {query for query, _ in answers}
        asked = [file for file in asked if file.stem in listed]
    query_rows, reference_rows = _rows_by_name(asked), _rows_by_name(references)
    pairs = set()
    for query, reference in answers:
        absent = query not in query_rows or (bool(reference) and reference not in reference_rows)
        if absent:
            raise DataError(
                f"{table}: names the query {query} and the reference {reference or '(none)'}, not "
                f"both of which are below {path}. Unpack all images, or remove the line."
            )
        if reference:
            pairs.add((query_rows[query], reference_rows[reference]))
    training = next((path / name for name in TRAINING if (path / name).is_dir()), None)
    return CopySet(
        FileImages(path, references),
        FileImages(path, asked),
        np.array(sorted(pairs), np.int64).reshape(-1, 2),
        None if training is None else FileImages(training, images_below(training)),
    )


def _block(path: Path, name: str) -> Path:
    return first_folder(path, [name, f"copydays_{name}", *(f"{a}/{name}" for a in ARCHIVES)])


def _copydays_name(file: Path) -> tuple[str, str]:
    found = COPYDAYS_NAME.fullmatch(file.stem)
    if found is None:
        raise DataError(
            f"{file}: is not named by six digits, four for the original and two for the copy. "
            "Rename or remove it."
        )
    return found[1], found[2]


def _only_table(path: Path) -> Path:
    found = sorted(path.glob("*.csv"))
    if len(found) != 1:
        raise DataError(
            f"{path}: holds {len(found)} tables (.csv), so which is the ground truth is not clear. "
            "Name it."
        )
    return found[0]


def _read_ground_truth(table: Path) -> list[tuple[str, str]]:
    """Queries and references, with or without a line of column names."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            rows = [tuple(cell.strip() for cell in row) for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: is no table that can be read: {error}.") from error
    wrong = next((row for row in rows if len(row) != len(HEADER) or not row[0]), None)
    if wrong is not None:
        raise DataError(
            f"{table}: has the line {','.join(wrong)!r}. Needed are the columns {','.join(HEADER)}."
        )
    pairs = [(row[0], row[1]) for row in rows if row != HEADER]
    if not any(reference for _, reference in pairs):
        raise DataError(f"{table}: gives no query a reference. Download it again.")
    return pairs


def _rows_by_name(files: Sequence[Path]) -> dict[str, int]:
    rows = {file.stem: row for row, file in enumerate(files)}
    if len(rows) < len(files):
        twice = next(f for row, f in enumerate(files) if rows[f.stem] != row)
        raise DataError(f"{twice}: there is another image of that name. Remove one of them.")
    return rows
