"""Encoded images in Parquet files, of which groups of rows are decoded when they are asked for."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from farreach.data.image_labels import as_labels
from farreach.data.image_parts import TRAINING_NAMES, parts_of
from farreach.data.image_set import UNLABELLED, ImageSet, Labels
from farreach.errors import DataError

# A set of no more bytes stays in memory; of a larger one each process keeps so many.
MOST_BYTES = 2 * 2**30
KEPT_BYTES = 256 * 2**20
# Decoded in one piece: far from the 2 GiB that one of Arrow's arrays holds.
PIECE_BYTES, PIECE_ROWS = 64 * 2**20, 1024
# Groups of a large set that have more are slow to read in random order.
SLOW_GROUP_BYTES = 32 * 2**20
DAMAGED = (OSError, pa.ArrowException)


class ParquetImages(ImageSet):
    """Encoded images in Parquet files.

    Parquet is decoded by groups of rows. A set of at most `MOST_BYTES` is decoded once, when it is
    opened, and processes that are forked later share it. Of a larger one each process keeps the
    groups that it used last, up to `KEPT_BYTES`, or one. Any other image costs as much as its whole
    group: in random order 1 ms for each MiB, that is 10 ms where 100 rows of 110 kB are a group
    and 250 ms where 2,000 are. Photographs in tar files cost nothing of the kind.

    Attributes:
        split: the column of that name, or what part each file is by its name; None if neither.
        slow_bytes: of the largest group, if random order is slow; else 0.
    """

    def __init__(self, files: Sequence[Path], *, labelled: bool = True, ahead: bool = True) -> None:
        """All rows of all files.

        Args:
            files: in whose order the rows are numbered.
            labelled: whether there must be labels.
            ahead: whether a set that stays in memory is decoded now, or as it is used.

        Raises:
            DataError: a file is damaged, a column is missing or of another kind, a label is
                missing, or there are no rows.
        """
        self._labelled = labelled
        self._tables = [_Table(file, labelled=labelled) for file in files]
        # The rows with which files, and groups of all files, begin; and the end.
        self._begins = np.cumsum([0, *(table.rows for table in self._tables)])
        self._groups = [(table, n) for table in self._tables for n in range(len(table.groups))]
        self._group_begins = np.cumsum([0, *(rows for t in self._tables for rows, _ in t.groups)])
        if not self._begins[-1]:
            raise DataError(f"{files[0]}: has no rows.")
        self.files = list(files)
        labels, classes, self.split = self._described()
        super().__init__(files[0], labels, classes)
        sizes = [table.groups[n][1] for table, n in self._groups]
        stays = sum(sizes) <= MOST_BYTES
        self._most_bytes = MOST_BYTES if stays else KEPT_BYTES
        self.slow_bytes = 0 if stays or max(sizes) <= SLOW_GROUP_BYTES else max(sizes)
        self._kept: OrderedDict[int, Any] = OrderedDict()  # group → its images
        self._kept_bytes = 0
        if stays and ahead:
            self._decode_all()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files once, however often it is sent them."""
        states = [file.stat() for file in self.files]
        times = tuple((state.st_size, state.st_mtime_ns) for state in states)
        return _opened, (tuple(self.files), self._labelled, times)

    def name(self, index: int) -> str:
        """The file and its row."""
        number = int(np.searchsorted(self._begins, index, "right")) - 1
        return f"{self.files[number]}, row {index - int(self._begins[number])}"

    def _open(self, index: int) -> Image.Image:
        group = int(np.searchsorted(self._group_begins, index, "right")) - 1
        data = self._images_of(group)[index - int(self._group_begins[group])].as_py()
        if data is None:
            raise ValueError("there are no bytes")
        return Image.open(io.BytesIO(data))

    def _images_of(self, group: int) -> Any:
        """Encoded images of a group of rows, in pieces that are never joined."""
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        table, number = self._groups[group]
        images = table.images(number)
        self._kept[group] = images
        self._kept_bytes += images.nbytes
        while len(self._kept) > 1 and self._kept_bytes > self._most_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return images

    def _decode_all(self) -> None:
        for group, (table, _) in enumerate(self._groups):
            try:
                self._images_of(group)
            except DAMAGED as error:  # noqa: PERF203
                raise table.damaged(error) from error

    def _described(self) -> tuple[Labels, list[str], list[str] | None]:
        """Labels, classes and parts of all rows."""
        described = [table.described() for table in self._tables]
        labels = [
            own.get("label", [None] * t.rows)
            for own, t in zip(described, self._tables, strict=True)
        ]
        values = [value for own in labels for value in own]
        split = self._split([own.get("split") for own in described])
        if not self._labelled and all(value is None for value in values):
            return np.zeros(len(values), np.int64), [UNLABELLED], split
        kinds = {
            isinstance(value, int): table.file
            for table, own in zip(self._tables, labels, strict=True)
            for value in own
            if value is not None
        }
        if len(kinds) > 1:
            raise DataError(
                f"{kinds[False]}: its labels are no whole numbers, as those of {kinds[True]} are. "
                "Write all as numbers, or all as names."
            )
        return *as_labels(self.files[0], values, self.name), split

    def _split(self, columns: Sequence[list[Any] | None]) -> list[str] | None:
        """Which part each row is, by the column if its file has one, else by the file's name."""
        names = None if None not in columns else parts_of(self.files)
        if names is None and all(column is None for column in columns):
            return None
        split: list[str] = []
        for number, (table, column) in enumerate(zip(self._tables, columns, strict=True)):
            own = TRAINING_NAMES[0] if names is None else names[number]
            split += [own] * table.rows if column is None else map(str, column)
        return split


class _Table:
    """A file of rows.

    Attributes:
        file: where it is.
        rows: how many there are.
        columns: their names.
        groups: rows and bytes of images of each group.
    """

    def __init__(self, file: Path, *, labelled: bool) -> None:
        self.file = file
        try:
            self._footer = pq.read_metadata(file)
        except DAMAGED as error:
            raise self.damaged(error) from error
        schema = self._footer.schema.to_arrow_schema()
        self.rows, self.columns = self._footer.num_rows, schema.names
        needed = ("image", "label") if labelled else ("image",)
        missing = [name for name in needed if name not in self.columns]
        if missing:
            raise DataError(
                f"{file}: has no column {missing[0]!r}; it has {', '.join(self.columns)}. Rename "
                "the columns to image (encoded bytes) and label."
            )
        kind = schema.field("image").type
        self._is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not _is_bytes(kind.field("bytes").type if self._is_struct else kind):
            raise DataError(
                f"{file}: its column 'image' holds {kind}. Encode the images, as PNG or JPEG, and "
                "write their bytes."
            )
        # Columns of structs are named by path.
        self._image = "image.bytes" if self._is_struct else "image"
        groups = [self._footer.row_group(n) for n in range(self._footer.num_row_groups)]
        self.groups = [(group.num_rows, self._bytes_of(group)) for group in groups]

    def described(self) -> dict[str, list[Any]]:
        """Labels and parts of the rows, as far as there are such columns."""
        names = [name for name in ("label", "split") if name in self.columns]
        try:
            with self._content() as content:
                found = content.read(columns=names, use_threads=False)
        except DAMAGED as error:
            raise self.damaged(error) from error
        return {name: found[name].to_pylist() for name in names}

    def images(self, group: int) -> Any:
        """The encoded images of a group, in pieces; raises one of `DAMAGED`."""
        rows, size = self.groups[group]
        together = max(1, min(PIECE_ROWS, PIECE_BYTES * rows // max(1, size)))
        with self._content() as content:
            batches = content.iter_batches(together, [group], [self._image], use_threads=False)
            pieces = [batch.column(0) for batch in batches]
        encoded = [piece.field("bytes") if self._is_struct else piece for piece in pieces]
        return pa.chunked_array(encoded, None if encoded else pa.binary())  # of no rows: no pieces

    def damaged(self, error: Exception) -> DataError:
        """What to raise of one of `DAMAGED`."""
        return DataError(f"{self.file}: is no readable Parquet file: {error}. Download it again.")

    def _content(self) -> Any:
        return pq.ParquetFile(self.file, metadata=self._footer, memory_map=True)

    def _bytes_of(self, group: Any) -> int:
        columns = [group.column(n) for n in range(group.num_columns)]
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == self._image)


@lru_cache(maxsize=1)
def _opened(
    files: tuple[Path, ...], labelled: bool, times: tuple[tuple[int, int], ...]
) -> ParquetImages:
    return ParquetImages(files, labelled=labelled, ahead=False)


def _is_bytes(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(check(kind) for check in checks)
