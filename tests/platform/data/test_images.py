import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from farreach.data.images import open_images
from farreach.errors import DataError


def encoded(color, mode="RGB", kind="PNG"):
    data = io.BytesIO()
    Image.new(mode, (4, 3), color).save(data, kind)
    return data.getvalue()


def folder_of(path, counts):
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            (path / name / f"{number:02}.png").write_bytes(encoded((number, 0, 0)))
    return path


def test_folders_of_training_and_evaluation(tmp_path):
    folder_of(tmp_path / "train", {"dog": 2, "cat": 3})
    folder_of(tmp_path / "val", {"dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    train, held_out = open_images(tmp_path)
    assert train.classes == held_out.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert held_out.labels.tolist() == [1]
    assert train.name(3).endswith("train/dog/00.png")
    assert train.load(4).getpixel((0, 0)) == (1, 0, 0)
    assert len(train) == 5


def test_a_folder_in_one_piece_holds_out_every_tenth_of_a_class(tmp_path):
    folder_of(tmp_path, {"a": 20, "b": 12, "c": 5})
    train, held_out = open_images(tmp_path)
    assert (len(train), len(held_out)) == (34, 3)
    assert [held_out.name(i).rpartition("/")[2] for i in range(3)] == ["09.png", "19.png", "09.png"]
    names = {train.name(i) for i in range(34)} | {held_out.name(i) for i in range(3)}
    assert len(names) == 37


@pytest.mark.parametrize("structs", [False, True])
@pytest.mark.parametrize("labels", [["b", "a", "b", "a"], [1, 0, 1, 0]])
def test_parquet_with_a_column_that_splits(tmp_path, structs, labels):
    images = [encoded((i, 0, 0)) for i in range(4)]
    column = [{"bytes": image, "path": None} for image in images] if structs else images
    splits = ["train", "train", "train", "val"]
    table = pa.table({"image": column, "label": labels, "split": splits, "more": [0] * 4})
    pq.write_table(table, tmp_path / "set.parquet")
    train, held_out = open_images(tmp_path / "set.parquet")
    assert train.labels.tolist() == [1, 0, 1]
    assert held_out.labels.tolist() == [0]
    assert held_out.load(0).getpixel((0, 0)) == (3, 0, 0)
    assert train.classes == (["a", "b"] if isinstance(labels[0], str) else ["0", "1"])


def test_parquet_files_are_split_by_their_names(tmp_path):
    for name, labels in (("train-0", ["x", "z"]), ("train-1", ["y"]), ("test-0", ["z"])):
        images = [encoded((5, 5, 5)) for _ in labels]
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{name}.parquet")
    train, held_out = open_images(tmp_path)
    assert train.classes == held_out.classes == ["x", "y", "z"]
    assert sorted(train.labels.tolist()) == [0, 1, 2]
    assert held_out.labels.tolist() == [2]


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, packed):
    rng = np.random.default_rng(0)
    pixels = {"train": rng.integers(0, 256, (5, 4, 6)), "t10k": rng.integers(0, 256, (2, 4, 6))}
    for part, values in pixels.items():
        labels = np.arange(len(values)) % 3
        for kind, array in (("images-idx3", values), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim])
            head += b"".join(size.to_bytes(4, "big") for size in array.shape)
            data = head + array.astype(np.uint8).tobytes()
            file = tmp_path / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(data) if packed else data)
    train, held_out = open_images(tmp_path)
    assert train.labels.tolist() == [0, 1, 2, 0, 1]
    assert np.array_equal(np.asarray(held_out.load(1))[..., 2], pixels["t10k"][1])
    file = next(tmp_path.glob("train-images*"))
    data = file.read_bytes()
    file.write_bytes(data[:-3] if not packed else gzip.compress(gzip.decompress(data)[:-3]))
    with pytest.raises(DataError, match=r"train-images.*cut off\. Download it again"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("L", 7, (7, 7, 7)),
        ("LA", (7, 255), (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x1234, (0x12, 0x12, 0x12)),
        ("P", 0, None),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, color, expected):
    folder_of(tmp_path / "train", {"a": 1})
    folder_of(tmp_path / "val", {"a": 1})
    (tmp_path / "train/a/00.png").write_bytes(encoded(color, mode))
    image = open_images(tmp_path)[0].load(0)
    assert image.mode == "RGB"
    if expected is not None:
        assert image.getpixel((1, 1)) == expected


def test_cmyk_becomes_rgb(tmp_path):
    folder_of(tmp_path / "train", {"a": 1})
    folder_of(tmp_path / "val", {"a": 1})
    (tmp_path / "train/a/00.jpg").write_bytes(encoded((0, 0, 0, 0), "CMYK", "JPEG"))
    assert open_images(tmp_path)[0].load(0).getpixel((0, 0)) == (255, 255, 255)


def test_a_broken_image_is_named(tmp_path):
    folder_of(tmp_path / "train", {"a": 2})
    folder_of(tmp_path / "val", {"a": 1})
    whole = (tmp_path / "train/a/01.png").read_bytes()
    (tmp_path / "train/a/01.png").write_bytes(whole[:40])
    train, _ = open_images(tmp_path)
    train.load(0)
    with pytest.raises(DataError, match=r"train/a/01\.png: is no image that can be read.*replace"):
        train.load(1)


def test_a_class_that_is_not_trained_on_is_refused(tmp_path):
    folder_of(tmp_path / "train", {"a": 1})
    folder_of(tmp_path / "val", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"val/b: there is no such class to train on"):
        open_images(tmp_path)


def parquet_with(path, **columns):
    pq.write_table(pa.table(columns), path / "set.parquet")
    return path / "set.parquet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing", r"nothing: there is nothing\. Correct data\.path"),
        (lambda p: p, r"holds no sub-folder with images"),
        (lambda p: folder_of(p, {"a": 4}), r"holds 4 images, of which 0 are to be held out"),
        (lambda p: parquet_with(p, image=[b"x"]), r"has no column 'label'; it has image"),
        (lambda p: parquet_with(p, image=[b"x"], label=[-1]), r"counted from 0; there is a -1"),
        (
            lambda p: parquet_with(p, image=[b"x"], label=[0], split=["dev"]),
            r"split 'dev' is none of train, training, val, valid, validation, test, eval",
        ),
        (
            lambda p: parquet_with(p, image=[b"x"] * 2, label=[0, 0], split=["train"] * 2),
            r"holds 2 images, of which 0",
        ),
        (
            lambda p: parquet_with(p, image=pa.array([], pa.binary()), label=pa.array([], "int64")),
            r"has no rows",
        ),
    ],
)
def test_what_is_no_set_of_images_is_refused(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        open_images(make(tmp_path))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("?")
    with pytest.raises(DataError, match=r"neither a folder nor a \.parquet or \.tar file"):
        open_images(tmp_path / "a.txt")
    (tmp_path / "b.parquet").write_text("?")
    with pytest.raises(DataError, match="no readable Parquet file"):
        open_images(tmp_path / "b.parquet")


def tar_of(path, samples):
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


@pytest.mark.parametrize("named", [False, True])
def test_webdatasets_tar_files_as_its_own_writer_makes_them(tmp_path, named):
    for part, numbers in (("train-000", (0, 1)), ("train-001", (2,)), ("val-000", (3,))):
        tar_of(
            tmp_path / f"{part}.tar",
            [
                {
                    "__key__": f"a/sample{n:03}",
                    "png": encoded((n, 0, 0)),
                    "cls": "ba"[n % 2] if named else str(n % 2),
                    "json": json.dumps({"more": n}).encode(),
                }
                for n in numbers
            ],
        )
    train, held_out = open_images(tmp_path)
    assert train.classes == held_out.classes == (["a", "b"] if named else ["0", "1"])
    assert train.labels.tolist() == ([1, 0, 1] if named else [0, 1, 0])
    assert [train.load(i).getpixel((0, 0))[0] for i in range(3)] == [0, 1, 2]
    assert held_out.load(0).getpixel((1, 1)) == (3, 0, 0)
    assert train.name(2).endswith("train-001.tar, sample a/sample002")


def test_one_tar_file_is_split(tmp_path):
    samples = [{"__key__": f"{n}", "jpg": encoded(0, kind="JPEG"), "cls": "0"} for n in range(20)]
    tar_of(tmp_path / "all.tar", samples)
    train, held_out = open_images(tmp_path / "all.tar")
    assert (len(train), len(held_out)) == (18, 2)


def test_faults_of_tar_files_are_named(tmp_path):
    tar_of(tmp_path / "a.tar", [{"__key__": "x", "png": encoded(0)}])
    with pytest.raises(DataError, match=r"a\.tar: sample x has no label: x\.cls is missing"):
        open_images(tmp_path)
    tar_of(tmp_path / "a.tar", [{"__key__": "x", "cls": "1"}])
    with pytest.raises(DataError, match=r"a\.tar: holds no image"):
        open_images(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"a\.tar: is no tar file that can be read"):
        open_images(tmp_path)


def test_held_out_labels_beyond_those_to_train_on_are_named(tmp_path):
    def idx(name, array):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (tmp_path / name).write_bytes(head + array.tobytes())

    for name, labels in (("train", [0, 1, 1]), ("t10k", [0, 2])):
        idx(f"{name}-images-idx3-ubyte", np.zeros((len(labels), 2, 2), np.uint8))
        idx(f"{name}-labels-idx1-ubyte", np.array(labels, np.uint8))
    with pytest.raises(DataError, match="has the label 2, of 2 classes to train on"):
        open_images(tmp_path)
