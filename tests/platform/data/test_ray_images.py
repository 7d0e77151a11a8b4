import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from farreach.data.images import open_images
from farreach.data.ray_images import _as_bytes, write_images
from farreach.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}",
    "RAY_USAGE_STATS_ENABLED": "0",
}
MODULE = """
import io

import numpy as np
from PIL import Image


def encoded(value):
    content = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(content, "PNG")
    return content.getvalue()


def both():
    import ray

    arrays = [np.full((4, 5, 3), i, np.uint8) for i in range(20)]
    train = [{"image": a, "label": "ba"[i % 2], "more": i} for i, a in enumerate(arrays)]
    return {
        "train": ray.data.from_items(train),
        "val": ray.data.from_items([{"image": encoded(77), "label": "a"}]),
    }


def bare():
    import ray

    return ray.data.from_items([{"image": encoded(i), "more": i} for i in range(250)])


def half():
    import ray

    return {
        "train": ray.data.from_items([{"image": encoded(1), "label": "a"}]),
        "val": ray.data.from_items([{"image": encoded(2)}]),
    }


def floats():
    import ray

    return ray.data.from_items([{"image": np.zeros((4, 5, 3), np.float32), "label": 0}])


def nothing_held_out():
    import ray

    train = ray.data.from_items([{"image": encoded(i), "label": "a"} for i in range(3)])
    return {"train": train, "val": train.filter(lambda row: False)}


def numbers():
    import ray

    return ray.data.range(3)
"""


# In one connection to Ray, which takes long to begin.
BOTH_FAULTS = """
from pathlib import Path

from farreach import runtime
from farreach.data.ray_images import write_images
from farreach.errors import DataError

with runtime.connection(1):
    for name, function in (("float", "floats"), ("none", "nothing_held_out")):
        try:
            write_images(f"mine:{function}", Path("out"))
        except DataError as error:
            print(f"{name}: {error}")
"""


def command(folder, function, out):
    words = [sys.executable, "-m", "farreach", "data", "images", f"mine:{function}", str(out)]
    return subprocess.run(
        words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_dataset_becomes_images_to_train_on(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    done = command(tmp_path, "both", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "20 images to train on, 1 held out, 2 classes" in done.stdout
    train, held_out = open_images(tmp_path / "out")
    assert train.classes == ["a", "b"]
    values = [train.load(i).getpixel((0, 0))[0] for i in range(20)]
    assert sorted(values) == list(range(20))
    assert [int(label) for label in train.labels] == [1 - value % 2 for value in values]
    assert held_out.load(0).getpixel((4, 3)) == (77, 0, 0)
    wrong = command(tmp_path, "numbers", tmp_path / "other")
    assert wrong.returncode == 1
    assert "mine:numbers: has no column 'image'; it has id" in wrong.stderr
    wrong = command(tmp_path, "half", tmp_path / "other")
    assert wrong.returncode == 1
    assert "mine:half: has a column 'label' in train and none in val" in wrong.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        *(["__pycache__"] if (tmp_path / "__pycache__").exists() else []),
        "out",
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_dataset_may_lack_labels(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    done = command(tmp_path, "bare", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "225 images to train on, 25 held out, no labels" in done.stdout
    train, held_out = open_images(tmp_path / "out", labelled=False)
    assert train.classes == ["unlabelled"]
    values = [
        part.load(i).getpixel((0, 0))[0] for part in (train, held_out) for i in range(len(part))
    ]
    assert sorted(values) == list(range(250))
    footer = pq.read_metadata(tmp_path / "out" / "train-00000.parquet")
    assert max(footer.row_group(n).num_rows for n in range(footer.num_row_groups)) == 100
    with pytest.raises(DataError, match="has no column 'label'"):
        open_images(tmp_path / "out")


@pytest.mark.ray
@pytest.mark.slow
def test_what_only_the_rows_show_is_named_too(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", BOTH_FAULTS],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "float: mine:floats: an image is float32; uint8 is expected, or" in done.stdout
    assert "none: mine:nothing_held_out: has no images in val." in done.stdout
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".tmp*"))


def test_what_cannot_be_read_is_refused_before_ray_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"should name a function, as package\.module:function"):
        write_images("mine", tmp_path / "out")
    with pytest.raises(ConfigError, match="no_such_module:f: cannot be imported"):
        write_images("no_such_module:f", tmp_path / "out")
    with pytest.raises(ConfigError, match="is there already"):
        write_images("json:loads", tmp_path)
    with pytest.raises(DataError, match="an image is float32; uint8 is expected"):
        _as_bytes(np.zeros((2, 2, 3), np.float32))


def test_an_array_in_grey_may_have_a_channel_and_others_of_no_picture_are_named():
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for pixels in (grey, grey[:, :, None]):
        with Image.open(io.BytesIO(_as_bytes(pixels))) as image:
            np.testing.assert_array_equal(np.asarray(image), grey)
    with pytest.raises(DataError, match=r"has the shape \(3, 4, 5\); \(height, width, 3\)"):
        _as_bytes(np.zeros((3, 4, 5), np.uint8))
