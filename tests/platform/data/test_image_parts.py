from pathlib import Path

import pytest
import webdataset
from PIL import Image

from farreach.data.image_parts import parts_of
from farreach.data.images import open_images
from farreach.errors import DataError


def photos(folder, count=10, *, inner=("a", "b")):
    for name in inner:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name / f"{number}.png")
    return folder


def tar(file, classes=("a", "b")):
    file.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(file)) as writer:
        for name in classes:
            writer.write({"__key__": name, "png": Image.new("RGB", (4, 4)), "cls": name})


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "eval", "Test"])
def test_folders_of_parts(tmp_path, train, held_out):
    photos(tmp_path / train)
    photos(tmp_path / held_out, 3)
    parts = open_images(tmp_path)
    assert [part.classes for part in parts] == [["a", "b"]] * 2
    assert [len(part) for part in parts] == [20, 6]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["train/0000.tar", "val/0000.tar"], ["train", "val"]),
        (["in-train-0.tar", "in-validation-0.tar"], ["train", "validation"]),
        (["x_valid_0.tar", "x_train_0.tar"], ["valid", "train"]),
        (["train0001.tar", "test0001.tar"], ["train", "test"]),
        (["trainset.tar", "testset.tar"], ["train", "test"]),
        (["test-data-train.tar", "test-data-val.tar"], ["train", "val"]),
        (["train2018/test-0.tar", "train2018/train-0.tar"], ["test", "train"]),
        (["a/one-train/0.tar", "a/one-val/0.tar"], ["train", "val"]),
        (["more-0.tar", "val-0.tar"], ["train", "val"]),
        (["valley.tar", "train/valley.tar"], ["val", "train"]),
        (["train-0.tar", "train-1.tar"], None),
        (["train-0.tar", "training-1.tar"], None),
        (["forest.tar", "station.tar"], None),
        (["val.tar"], None),
    ],
)
def test_files_say_their_part(files, parts):
    assert parts_of([Path("/data/test/sets") / file for file in files]) == parts


def test_files_that_say_nothing_beside_those_to_train_on_are_refused():
    with pytest.raises(DataError, match=r"holdout-0\.tar: its name does not say which part it is"):
        parts_of([Path("/x/train-0.tar"), Path("/x/holdout-0.tar")])


@pytest.mark.parametrize("names", [("train/0", "val/0"), ("in-train-0", "in-validation-0")])
def test_tar_files_in_parts(tmp_path, names):
    for name, classes in zip(names, (("a", "b"), ("b",)), strict=True):
        tar(tmp_path / f"{name}.tar", classes)
    train, held_out = open_images(tmp_path)
    assert train.labels.tolist() == [0, 1]
    assert held_out.labels.tolist() == [1]


def test_training_images_alone_are_split(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "train" / ".ipynb_checkpoints", inner=("c",))
    (tmp_path / "notes").mkdir()
    train, held_out = open_images(tmp_path)
    assert train.classes == held_out.classes == ["a", "b"]
    assert (len(train), len(held_out)) == (18, 2)


def test_training_images_alone_without_labels(tmp_path):
    photos(tmp_path, inner=("train",))
    train, held_out = open_images(tmp_path, labelled=False)
    assert train.classes == ["unlabelled"]
    assert (len(train), len(held_out)) == (9, 1)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    photos(tmp_path)
    photos(tmp_path / ".ipynb_checkpoints")
    photos(tmp_path / "a" / ".thumbnails")
    (tmp_path / "a" / "._0.png").write_bytes(b"of a Macintosh")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "0.parquet").write_bytes(b"")
    for labelled in (True, False):
        parts = open_images(tmp_path, labelled=labelled)
        assert sum(map(len, parts)) == 20
        assert parts[0].classes == ["a", "b"]


@pytest.mark.parametrize(("part", "other"), [("train", "holdout"), ("val", "practice")])
def test_a_part_beside_an_unknown_folder_is_refused(tmp_path, part, other):
    photos(tmp_path / part)
    photos(tmp_path / other)
    with pytest.raises(DataError, match=rf"has the folder {part}, but none .*beside it: {other}"):
        open_images(tmp_path)


def test_a_part_to_evaluate_on_alone_is_refused(tmp_path):
    photos(tmp_path / "test")
    with pytest.raises(DataError, match="has the folder test, but none that is called train or"):
        open_images(tmp_path)


def test_train_may_be_a_class(tmp_path):
    photos(tmp_path, inner=("bus", "train"))
    assert open_images(tmp_path)[0].classes == ["bus", "train"]


def test_a_single_class_is_warned_of_where_labels_matter(tmp_path, capsys):
    photos(tmp_path, inner=("a",))
    open_images(tmp_path, labelled=False)
    assert capsys.readouterr().err == ""
    open_images(tmp_path)
    assert "all images are of one class, 'a'" in capsys.readouterr().err
