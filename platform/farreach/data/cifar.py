"""CIFAR-10 and CIFAR-100 as their authors pack them for Python: pickles of rows of pixels."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farreach.data.image_labels import check_held_out
from farreach.data.image_set import ImageSet
from farreach.errors import DataError

SHAPE = (3, 32, 32)  # channels, rows, columns of a row of pixels
UNPICKLING = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Layout:
    """The files of one of them, and what they call labels."""

    folder: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    names: str
    labels: str
    label_names: str


LAYOUTS = (
    Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        held_out=("test_batch",),
        names="batches.meta",
        labels="labels",
        label_names="label_names",
    ),
    Layout(
        folder="cifar-100-python",
        train=("train",),
        held_out=("test",),
        names="meta",
        labels="fine_labels",
        label_names="fine_label_names",
    ),
)


class CifarImages(ImageSet):
    """Images of some of the files."""

    def __init__(self, folder: Path, layout: Layout, names: Sequence[str]) -> None:
        """Of the files `names` in `folder`; raises DataError if one is missing or damaged."""
        self._arguments = (folder, layout, tuple(names))
        self.files = [folder / name for name in names]
        (classes,) = _read(folder / layout.names, layout.label_names)
        pixels, labels = [], []
        for file in self.files:
            rows, own = map(np.asarray, _read(file, "data", layout.labels))
            is_right = rows.dtype == np.uint8 and rows.shape == (len(own), int(np.prod(SHAPE)))
            if not is_right or own.dtype.kind not in "iu":
                raise DataError(
                    f"{file}: holds {rows.dtype} {rows.shape} and labels {own.shape}; a row of "
                    f"{int(np.prod(SHAPE))} bytes and a number for each image are expected. "
                    "Download it again."
                )
            if len(own) and not 0 <= own.min() <= own.max() < len(classes):
                raise DataError(
                    f"{file}: has labels from {own.min()} to {own.max()}, of {len(classes)} "
                    f"classes in {layout.names}. Download both again."
                )
            pixels.append(rows.reshape(-1, *SHAPE).transpose(0, 2, 3, 1))
            labels.append(own.astype(np.int64))
        self._pixels = np.concatenate(pixels)  # (n, rows, columns, channels)
        self._begins = np.cumsum([0, *map(len, pixels)])
        super().__init__(folder, np.concatenate(labels), [_text(name) for name in classes])

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reads the files again."""
        return CifarImages, self._arguments

    def name(self, index: int) -> str:
        """The file and the number."""
        number = int(np.searchsorted(self._begins, index, "right")) - 1
        return f"{self.files[number]}, image {index - int(self._begins[number])}"

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])


def cifar_folder(path: Path) -> tuple[Path, Layout] | None:
    """Where such files lie: in a folder, or in the one of their name in it; None if nowhere."""
    for layout in LAYOUTS:
        for folder in (path / layout.folder, path):
            if (folder / layout.names).is_file() and (folder / layout.train[0]).is_file():
                return folder, layout
    return None


def open_cifar(folder: Path, layout: Layout) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to evaluate on; raises DataError as `CifarImages`."""
    train = CifarImages(folder, layout, layout.train)
    held_out = CifarImages(folder, layout, layout.held_out)
    check_held_out(train, held_out)
    return train, held_out


def _read(file: Path, *keys: str) -> list[Any]:
    """The lists and arrays of these names in a pickled dictionary, which Python 2 wrote."""
    try:
        content = _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except UNPICKLING as error:
        raise DataError(f"{file}: cannot be read: {error}. Download the set again.") from error
    named = content.items() if isinstance(content, dict) else ()
    found = {_text(name): value for name, value in named}
    for key in keys:
        if not isinstance(found.get(key), list | np.ndarray):
            raise DataError(f"{file}: holds no list {key!r}. Download the set again.")
    return [found[key] for key in keys]


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _encode(text: str, encoding: str) -> bytes:
    """As `_codecs.encode`, by which protocols before the third pickle bytes."""
    return text.encode(encoding)


_ARRAY, _SCALAR = np.empty(0), np.int64(0)
# All that may be named in a pickle: what arrays are made of, by the modules of all versions.
_BUILTINS = ("__builtin__", "builtins")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): bytes for module in _BUILTINS},
    **{(module, "_reconstruct"): _ARRAY.__reduce__()[0] for module in _MULTIARRAY},
    **{(module, "scalar"): _SCALAR.__reduce__()[0] for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _ARRAY.__reduce_ex__(5)[0] for module in _NUMERIC},
}


class _Unpickler(pickle.Unpickler):
    """Makes arrays, numbers, text and collections of them, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of data")
        return ALLOWED[module, name]
