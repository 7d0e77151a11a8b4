"""Writes a Ray Dataset of labelled images as Parquet, which `open_images` and all workers read.

The data set is made by a function that the user names as `package.module:function`. It returns a
`ray.data.Dataset`, or a dictionary of them with the keys `train` and `val`, whose rows have an
`image`, encoded bytes or an array (height, width, 3) uint8, and a `label`, a number or a name.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farreach import runtime
from farreach.data.images import EVALUATION_NAMES
from farreach.disk import sync
from farreach.errors import ConfigError, DataError

COLUMNS = ("image", "label")
ROWS_PER_FILE = 20_000
ROWS_TOGETHER = 256


def write_images(name: str, out: Path) -> Path:
    """Make the folder `out`, whole or not at all; rows stream through Ray's workers.

    Args:
        name: of the function, `package.module:function`; the working directory is searched too.
        out: must not be there; every node of the cluster must see it.

    Raises:
        ConfigError: there is no such function, or `out` is there.
        DataError: it returns something else, a column is missing, or an image cannot be encoded.
    """
    make = _function(name)
    if out.exists():
        raise ConfigError(f"{out}: is there already. Name a folder that is not.")
    out = out.resolve()
    working = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    with runtime.connection(1):
        parts = _parts(name, make())
        try:
            for part, dataset in parts.items():
                columns = dataset.columns() or []
                missing = [column for column in COLUMNS if column not in columns]
                if missing:
                    raise DataError(
                        f"{name}: has no column {missing[0]!r}; it has {', '.join(columns)}. Name "
                        "the columns image and label."
                    )
                rows = dataset.select_columns(list(COLUMNS)).map_batches(
                    _encoded, batch_size=ROWS_TOGETHER, batch_format="numpy"
                )
                folder = working / part
                rows.write_parquet(str(folder), min_rows_per_file=ROWS_PER_FILE)
                for number, file in enumerate(sorted(folder.glob("*.parquet"))):
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


def _encoded(batch: dict[str, Any]) -> dict[str, Any]:
    """Arrays as PNG; what is encoded already stays as it is."""
    return {
        "image": np.array([_as_bytes(image) for image in batch["image"]], dtype=object),
        "label": batch["label"],
    }


def _as_bytes(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise DataError(f"an image is {pixels.dtype}; uint8 is expected, or encoded bytes.")
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
