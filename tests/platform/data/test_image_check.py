import os
import subprocess
import sys

import pytest
from PIL import Image

from farreach.cli import main as cli
from farreach.data.image_check import faults_of, looks_like_images
from farreach.data.images import FolderImages
from farreach.errors import DataError


def photos(folder):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name / f"{number}.png")
    return folder


def test_images_are_told_from_anything_else(tmp_path):
    assert looks_like_images(photos(tmp_path / "photos"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no image")
    assert not looks_like_images(tmp_path / "other")
    (tmp_path / "data.npz").write_bytes(b"")
    assert not looks_like_images(tmp_path / "data.npz")


def test_every_image_that_cannot_be_read_is_named(tmp_path, capsys):
    folder = photos(tmp_path / "photos")
    assert cli.main(["data", "check", str(folder)]) == 0
    assert "2 classes of 9 to 9 images: a, b" in capsys.readouterr().out
    (folder / "b" / "3.png").write_bytes(b"cut off")
    found = [fault for _, fault in faults_of(FolderImages(folder)) if fault is not None]
    assert len(found) == 1
    assert "b/3.png: is no image that can be read" in found[0]
    assert cli.main(["data", "check", str(folder)]) == 1
    assert "3.png: is no image" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.tar", "b.png"])
def test_single_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert looks_like_images(tmp_path / name)


def test_a_damaged_parquet_file_is_an_error(tmp_path, capsys):
    (tmp_path / "broken.parquet").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"broken\.parquet: is no readable Parquet file"):
        looks_like_images(tmp_path)
    assert cli.main(["data", "check", str(tmp_path / "broken.parquet")]) == 1
    assert "broken.parquet: is no readable Parquet file" in capsys.readouterr().err


def test_names_that_are_not_utf_8_are_printed(tmp_path):
    folder = photos(tmp_path / "photos")
    with open(os.fsencode(folder / "a") + b"/caf\xe9.png", "wb") as file:
        file.write(b"cut off")
    words = [sys.executable, "-m", "farreach", "data", "check", str(folder)]
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {
            "PYTHONIOENCODING": encoding,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(words, env=environment, capture_output=True, timeout=60)
        assert done.returncode == 1, done.stderr
        assert b"caf\\udce9.png: is no image that can be read" in done.stdout
