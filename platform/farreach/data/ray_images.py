"""Writes a Ray Dataset of images as Parquet, which `open_images` and all workers read.

The data set is made by a function that the user names as `package.module:function`. It returns a
`ray.data.Dataset`, or a dictionary of them with the keys `train` and `val`, whose rows have an
`image`, encoded bytes or an array (height, width, 3 or 1) uint8, and a `label`, a number or a name;
all may lack the label where none is needed.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farreach import runtime
from farreach.data.image_parts import EVALUATION_NAMES
from farreach.disk import sync
from farreach.errors import ConfigError, DataError

IMAGE, LABEL = "image", "label"
ROWS_PER_FILE = 20_000
# Of a set that is too large for memory, one image costs as much as its group.
ROWS_PER_GROUP = 100
ROWS_TOGETHER = 256


def write_images(name: str, out: Path) -> Path:
    """Make the folder `out`, whole or not at all; rows stream through Ray's workers.

    Args:
        name: of the function, `package.module:function`; the working directory is searched too.
        out: must not be there; every node of the cluster must see it.

    Raises:
        ConfigError: there is no such function, or `out` is there.
        DataError: it returns something else, a column is missing, a part is empty, some parts
            alone have labels, or an image cannot be encoded.
    """
    make = _function(name)
    if out.exists():
        raise ConfigError(f"{out}: is there already. Name a folder that is not.")
    out = out.resolve()
    working = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    with runtime.connection(1):
        parts = _parts(name, make())
        columns = _columns(name, {part: data.columns() or [] for part, data in parts.items()})
        try:
            for part, dataset in parts.items():
                rows = dataset.select_columns(columns).map_batches(
                    _encoded, batch_size=ROWS_TOGETHER, batch_format="numpy"
                )
                folder = working / part
                with _own_words(name):
                    rows.write_parquet(
                        str(folder), min_rows_per_file=ROWS_PER_FILE, row_group_size=ROWS_PER_GROUP
                    )
                files = sorted(folder.glob("*.parquet"))
                if not files:
                    raise DataError(f"{name}: has no images in {part}. Add some, or leave it out.")
                for number, file in enumerate(files):
                    sync(file)
                    file.rename(working / f"{part}-{number:05}.parquet")
                folder.rmdir()
            sync(working)
            out.parent.mkdir(parents=True, exist_ok=True)
            working.rename(out)
            sync(out.parent)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return out


@contextmanager
def _own_words(name: str) -> Iterator[None]:
    """Say what `_as_bytes` has said: of errors in tasks, Ray Data hands on nothing but text."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        said = re.search(rf"^{DataError.__module__}\.{DataError.__name__}: (.+)$", str(error), re.M)
        if said is None:
            raise
        raise DataError(f"{name}: {said[1]}") from error


def _function(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{name!r}: should name a function, as package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{name}: cannot be imported: {error}.") from error


def _parts(name: str, made: Any) -> dict[str, Any]:
    from ray.data import Dataset

    parts = dict(made) if isinstance(made, Mapping) else {"train": made}
    foreign = sorted(set(parts) - {"train", *EVALUATION_NAMES})
    if foreign or not all(isinstance(dataset, Dataset) for dataset in parts.values()):
        kinds = {part: type(dataset).__name__ for part, dataset in parts.items()}
        raise DataError(
            f"{name}: returns {kinds}; a ray.data.Dataset is expected, or a dictionary of them "
            "with the keys train and val."
        )
    return parts


def _columns(name: str, found: Mapping[str, list[str]]) -> list[str]:
    """What is written of all parts, by the columns that each has."""
    for columns in found.values():
        if IMAGE not in columns:
            raise DataError(
                f"{name}: has no column {IMAGE!r}; it has {', '.join(columns)}. Name the columns "
                "image and label."
            )
    labelled = [part for part, columns in found.items() if LABEL in columns]
    if labelled and len(labelled) < len(found):
        bare = next(part for part in found if part not in labelled)
        raise DataError(
            f"{name}: has a column {LABEL!r} in {labelled[0]} and none in {bare}. Label all parts, "
            "or none."
        )
    return [IMAGE, LABEL] if labelled else [IMAGE]


def _encoded(batch: dict[str, Any]) -> dict[str, Any]:
    """Arrays as PNG; what is encoded already stays as it is, and so do labels."""
    images = np.array([_as_bytes(image) for image in batch[IMAGE]], dtype=object)
    return {**batch, IMAGE: images}


def _as_bytes(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise DataError(f"an image is {pixels.dtype}; uint8 is expected, or encoded bytes.")
    content = io.BytesIO()
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    try:
        Image.fromarray(pixels[..., 0] if grey else pixels).save(content, "PNG")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"an image has the shape {pixels.shape}; (height, width, 3) is expected."
        ) from error
    return content.getvalue()
