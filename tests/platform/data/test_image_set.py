import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from farreach.data.images import open_images

LATER_NS = 5 * 10**9


def rewritten(file):
    """In place, by as many bytes; the folder does not change."""
    state = file.stat()
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + LATER_NS))


def folders(path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 3)).save(path / part / name / "0.png")


def loose(path):
    for part in ("train", "val"):
        (path / part).mkdir()
        Image.new("RGB", (4, 3)).save(path / part / "0.png")


def tars(path):
    for part in ("train", "val"):
        with webdataset.TarWriter(str(path / f"{part}.tar")) as writer:
            writer.write({"__key__": "0", "png": Image.new("RGB", (4, 3)), "cls": "a"})


def tables(path):
    for part in ("train", "val"):
        table = pa.table({"image": [b"x"], "label": [0]})
        pq.write_table(table, path / f"{part}.parquet")


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (folders, "val/b/0.png"),
        (loose, "val/0.png"),
        (tars, "val.tar"),
        (tables, "val.parquet"),
    ],
)
def test_images_that_are_rewritten_have_another_fingerprint(tmp_path, make, changed):
    make(tmp_path)
    before = open_images(tmp_path, labelled=False)[1].fingerprint()
    assert open_images(tmp_path, labelled=False)[1].fingerprint() == before
    rewritten(tmp_path / changed)
    assert open_images(tmp_path, labelled=False)[1].fingerprint() != before


def test_a_file_of_another_size_has_another_fingerprint(tmp_path):
    folders(tmp_path)
    train, _ = open_images(tmp_path)
    before = train.fingerprint()
    file = tmp_path / "train/a/0.png"
    state = file.stat()
    file.write_bytes(file.read_bytes() + b" ")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert train.fingerprint() != before


def test_names_of_files_need_not_be_utf_8(tmp_path):
    folders(tmp_path)
    odd = os.fsencode(tmp_path / "train/a") + b"/caf\xe9.png"
    shutil.copy(tmp_path / "train/a/0.png", odd)
    train, _ = open_images(tmp_path)
    assert os.fsencode(train.name(1)) == odd
    assert len(train.fingerprint()) == 64
