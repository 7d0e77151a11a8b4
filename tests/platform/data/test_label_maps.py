import numpy as np
import pytest
from PIL import Image

from farreach.data.label_maps import IGNORED, open_label_maps
from farreach.errors import DataError


def ade(path, count=2, shape=(4, 6), numbers=(0, 1, 2)):
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            (path / kind / part / "a").mkdir(parents=True)
        for i in range(count):
            image = np.full((*shape, 3), 10 * i, np.uint8)
            labels = np.resize(np.array(numbers, np.uint8), shape)
            Image.fromarray(image).save(path / "images" / part / "a" / f"{i}.jpg")
            Image.fromarray(labels).save(path / "annotations" / part / "a" / f"{i}.png")
    (path / "classes.txt").write_text("wall\nsky\n")
    return path


def test_numbers_count_from_one_and_nought_is_ignored(tmp_path):
    train, held_out = open_label_maps(ade(tmp_path))
    assert (len(train), len(held_out)) == (2, 2)
    assert train.classes == ["wall", "sky"]
    image, labels = train.load(1)
    assert image.size == (6, 4)
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == [IGNORED, 0, 1, IGNORED, 0, 1]


def test_names_come_from_the_benchmarks_own_table(tmp_path):
    ade(tmp_path)
    table = (
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.2\t9\t9\t1\twall\n2\t0.1\t9\t9\t1\tsky, air\n"
    )
    (tmp_path / "objectInfo150.txt").write_text(table)
    assert open_label_maps(tmp_path)[0].classes == ["wall", "sky"]


def break_annotation(path):
    (path / "annotations/training/a/1.png").unlink()


def break_class(path):
    Image.fromarray(np.full((4, 6), 3, np.uint8)).save(path / "annotations/training/a/1.png")


def break_shape(path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path / "annotations/training/a/1.png")


def break_colors(path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path / "annotations/training/a/1.png")


def break_image(path):
    (path / "images/training/a/1.jpg").write_bytes(b"nothing")


def break_names(path):
    (path / "classes.txt").unlink()


def break_folder(path):
    (path / "images/validation").rename(path / "images/val")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_annotation, r"annotations/training/a/1\.png: is missing.*Every image"),
        (break_class, r"a/1\.png: has a pixel of class 3, of 2 that are named"),
        (break_shape, r"a/1\.png: has the shape \(4, 5\), its image .*\(4, 6\)"),
        (break_colors, r"has the shape \(4, 6, 3\).*One number per pixel"),
        (break_image, r"a/1\.jpg or 1\.png: is no image that can be read"),
        (break_names, r"classes\.txt: is missing\. Write the names"),
        (break_folder, r"images/validation: is no folder.*ADE20k's layout"),
    ],
)
def test_faults_are_named(tmp_path, spoil, message):
    spoil(ade(tmp_path))
    with pytest.raises(DataError, match=message):
        open_label_maps(tmp_path)[0].load(1)
