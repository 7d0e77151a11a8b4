import io
import os
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest

from farreach.data.cifar import CifarImages
from farreach.data.image_check import looks_like_images
from farreach.data.images import open_images
from farreach.errors import DataError

TEN = {f"data_batch_{number}": 2 for number in range(1, 6)} | {"test_batch": 3}


def rows(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


class Python2(pickle._Pickler):
    """Writes text and bytes alike, as Python 2 and old NumPy wrote what is published."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def dumped(file, content, protocol="python 2"):
    file.parent.mkdir(exist_ok=True)
    if protocol == "python 2":
        written = io.BytesIO()
        Python2(written, 2).dump(content)
        file.write_bytes(written.getvalue().replace(b"cnumpy._core.", b"cnumpy.core."))
    else:
        file.write_bytes(pickle.dumps(content, protocol))


def ten(path, protocol="python 2"):
    folder = path / "cifar-10-batches-py"
    for seed, (name, count) in enumerate(TEN.items()):
        labels = [n % 2 for n in range(count)]
        content = {b"data": rows(count, seed), b"labels": labels, b"filenames": [b"x.png"] * count}
        dumped(folder / name, content, protocol)
    dumped(folder / "batches.meta", {b"label_names": [b"airplane", b"automobile"]}, protocol)
    return folder


def hundred(path):
    folder = path / "cifar-100-python"
    for seed, name in enumerate(("train", "test")):
        content = {"data": rows(2, seed), "fine_labels": [1, 0], "coarse_labels": [0, 0]}
        dumped(folder / name, content)
    dumped(folder / "meta", {"fine_label_names": ["apple", "aquarium_fish"]})
    return folder


@pytest.mark.parametrize("protocol", ["python 2", 2, 4, 5])
def test_cifar_10_in_its_folder_or_beside_it(tmp_path, protocol):
    folder = ten(tmp_path, protocol)
    for path in (folder, tmp_path):
        assert looks_like_images(path)
        train, held_out = open_images(path)
        assert train.classes == held_out.classes == ["airplane", "automobile"]
        assert train.labels.tolist() == [0, 1] * 5
        assert held_out.labels.tolist() == [0, 1, 0]
    # Red, green and blue one after the other, each row by row.
    pixels = np.asarray(train.load(7))
    stored = rows(2, 3)[1]
    assert pixels[5, 9].tolist() == [stored[32 * 5 + 9 + 1024 * channel] for channel in range(3)]
    assert train.name(7) == f"{folder / 'data_batch_4'}, image 1"


def test_cifar_100(tmp_path):
    hundred(tmp_path)
    train, held_out = open_images(tmp_path)
    assert train.classes == ["apple", "aquarium_fish"]
    assert held_out.labels.tolist() == [1, 0]
    again = pickle.loads(pickle.dumps(held_out))
    assert isinstance(again, CifarImages)
    assert (
        again.load(1).tobytes()
        == held_out.load(1).tobytes()
        == np.ascontiguousarray(rows(2, 1)[1].reshape(3, 32, 32).transpose(1, 2, 0)).tobytes()
    )


class Harmful:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_nothing_but_data_is_unpickled(tmp_path):
    dumped(ten(tmp_path) / "data_batch_2", {b"data": Harmful(tmp_path / "executed")})
    with pytest.raises(DataError, match=r"data_batch_2: cannot be read: it asks for posix\.mkdir"):
        open_images(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "data_batch_3").unlink(), r"data_batch_3: cannot be read: .*No such file"),
        (lambda f: (f / "test_batch").write_bytes(b"\x80\x02}"), r"test_batch: cannot be read"),
        (lambda f: dumped(f / "test_batch", [1]), r"test_batch: holds no list 'data'"),
        (
            lambda f: dumped(f / "test_batch", {"data": rows(2, 0), "labels": [0]}),
            r"test_batch: holds uint8 \(2, 3072\) and labels \(1,\)",
        ),
        (
            lambda f: dumped(f / "test_batch", {"data": rows(1, 0), "labels": [7]}),
            r"test_batch: has labels from 7 to 7, of 2 classes",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, spoil, message):
    spoil(ten(tmp_path))
    with pytest.raises(DataError, match=message):
        open_images(tmp_path)
