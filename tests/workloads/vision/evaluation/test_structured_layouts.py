import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from farreach.errors import DataError
from farreach_workloads.vision.evaluation import linear_probe
from farreach_workloads.vision.evaluation.structured_layouts import clevr, kitti_distance, ranges
from farreach_workloads.vision.evaluation.transfer import StructuredConfig, structured


def put(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)


def scene(name, *depths):
    things = [{"pixel_coords": [1, 2, depth], "shape": "cube"} for depth in depths]
    return {"image_filename": name, "objects": things}


def clevr_files(path, train, val):
    for part, scenes in (("train", train), ("val", val)):
        put(*(path / "images" / part / s["image_filename"] for s in scenes))
        (path / "scenes").mkdir(exist_ok=True)
        table = path / "scenes" / f"CLEVR_{part}_scenes.json"
        table.write_text(json.dumps({"info": {}, "scenes": scenes}))


def test_objects_of_clevr_are_counted_and_the_nearest_depth_is_in_a_range(tmp_path):
    """A depth of 8 belongs to the first range, one just above it to the second."""
    train = [scene("b.png", 12, 8, 9), scene("a.png", *[10.5] * 10), scene("c.png", 8.01, 9, 10, 9)]
    clevr_files(tmp_path, train, [scene("v.png", 9.5, 9.6, 11)])
    counted, held_out = clevr(tmp_path, "count")
    assert counted.labels.tolist() == [0, 7, 1]
    assert counted.classes == ["3", "4", "5", "6", "7", "8", "9", "10"]
    assert counted.name(0).endswith("images/train/b.png")
    assert held_out.labels.tolist() == [0]
    near, held_out = clevr(tmp_path, "distance")
    assert near.labels.tolist() == [0, 5, 1]
    assert (held_out.labels.tolist(), len(held_out.classes)) == ([3], 6)
    assert near.load(0).size == (4, 4)


@pytest.mark.parametrize(
    ("settings", "count", "distance"),
    [({}, (50, "steps"), (100, "cosine")), ({"epochs": 3}, (3, "steps"), (3, "cosine"))],
)
def test_linear_layers_are_trained_as_in_msns_table(
    tmp_path, monkeypatch, settings, count, distance
):
    clevr_files(tmp_path, [scene("a.png", 9, 10, 11)], [scene("b.png", 9, 9, 9)])
    used = []

    def probe(*arguments):
        used.append(arguments[5])
        return {"top1": 0.0}

    monkeypatch.setattr(linear_probe, "probe", probe)
    source = SimpleNamespace(of=lambda images, kinds: {"normal": torch.zeros(len(images), 2)})
    config = StructuredConfig(layout="clevr", path=str(tmp_path), **settings)
    found = structured(source, config, 0, tmp_path)
    assert (found["count/classes"], found["distance/classes"]) == (8, 6)
    assert [(recipe.epochs, recipe.schedule) for recipe in used] == [count, distance]
    assert (used[1].lr, used[1].last) == (0.01, 0.01)  # from 0.01 to 1e-4


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([scene("a.png", 9, 9)], "a scene has 2 objects; 3 to 10 are counted"),
        ([scene("a.png")], "scene 0: has no objects"),
        ([{"image_filename": "a.png", "objects": [{}]}], "scene 0: lacks 'pixel_coords'"),
        ([], "has no list of scenes"),
    ],
)
def test_faults_of_clevrs_scenes_are_named(tmp_path, train, message):
    clevr_files(tmp_path, train, [])
    with pytest.raises(DataError, match=message):
        clevr(tmp_path, "count")


def test_missing_files_and_depths_of_clevr_are_named(tmp_path):
    with pytest.raises(DataError, match=r"CLEVR_train_scenes\.json: is no JSON"):
        clevr(tmp_path, "count")
    clevr_files(tmp_path, [scene("a.png", 9, 8, 101), scene("b.png", 102, 103, 101)], [])
    with pytest.raises(DataError, match="depths are from 8 to 101; they are to be above 0"):
        clevr(tmp_path, "distance")
    (tmp_path / "images" / "train" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png: is missing, as are 0 others of 2"):
        clevr(tmp_path, "distance")


def test_a_limit_belongs_to_the_range_below_it():
    values = np.array([0.0, 0.1, 1.0, 1.5, 2.0, 2.5])
    assert ranges(values, (0.0, 1.0, 2.0)).tolist() == [-1, 0, 0, 1, 1, 2]


def kitti_line(kind, depth):
    return f"{kind} 0.00 0 -1.57 599 156 629 189 2.85 2.63 12.34 0.47 1.49 {depth} -1.56"


# Images 0 to 9: the nearest vehicle, and what is not one or is farther.
KITTI = [
    [("Car", 8.0), ("Pedestrian", 2.0)],
    [("Van", 8.1)],
    [("Truck", 20.0), ("Car", 60.0)],
    [("Car", 20.1)],
    [("Pedestrian", 5.0), ("DontCare", -1000)],
    [],
    [("Car", -0.5)],
    [("Tram", 3.0), ("Car", 30.0)],
    [("Car", 7.0)],
    [("Car", 9.0)],
]


def kitti_files(path):
    put(*(path / "training" / "image_2" / f"{n:06}.png" for n in range(len(KITTI))))
    (path / "training" / "label_2").mkdir()
    for number, things in enumerate(KITTI):
        lines = [kitti_line(*thing) + "\n" for thing in things]
        (path / "training" / "label_2" / f"{number:06}.txt").write_text("".join(lines))


def test_the_nearest_vehicle_of_kitti_is_in_a_range_or_there_is_none(tmp_path):
    kitti_files(tmp_path)
    train, held_out = kitti_distance(tmp_path)
    assert train.classes == ["up to 8 m", "up to 20 m", "farther", "no vehicle"]
    assert train.labels.tolist() == [0, 1, 1, 2, 3, 0, 2, 0]
    assert [held_out.name(row)[-10:] for row in (0, 1)] == ["000004.png", "000009.png"]
    assert held_out.labels.tolist() == [3, 1]
    assert kitti_distance(tmp_path / "training")[0].labels.tolist() == train.labels.tolist()


def test_whole_drives_of_kitti_are_held_out(tmp_path):
    """Image k is in line order[k]; drives 0 to 4 have two images each, and the last is held out."""
    kitti_files(tmp_path)
    order = [10, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    (tmp_path / "train_rand.txt").write_text(", ".join(map(str, order)))
    lines = [f"2011_09_26 2011_09_26_drive_000{n // 2}_sync 00000{n}\n" for n in range(10)]
    (tmp_path / "train_mapping.txt").write_text("".join(lines))
    train, held_out = kitti_distance(tmp_path, tmp_path)
    assert [held_out.name(row)[-10:] for row in range(2)] == ["000000.png", "000009.png"]
    assert len(train) == 8
    (tmp_path / "train_rand.txt").write_text("1, 2")
    with pytest.raises(DataError, match="do not tell the drive of each image"):
        kitti_distance(tmp_path, tmp_path)


def test_faults_of_kitti_are_named(tmp_path):
    with pytest.raises(DataError, match="image_2: is no folder"):
        kitti_distance(tmp_path)
    kitti_files(tmp_path)
    note = tmp_path / "training" / "label_2" / "000003.txt"
    note.write_text(kitti_line("Car", -500.0))
    with pytest.raises(DataError, match=r"000003\.txt: a vehicle is -500 m away"):
        kitti_distance(tmp_path)
    note.write_text("Car 0.00 0\n")
    with pytest.raises(DataError, match=r"000003\.txt, line 1: has 3 fields"):
        kitti_distance(tmp_path)
    note.unlink()
    with pytest.raises(DataError, match=r"000003\.txt: is missing"):
        kitti_distance(tmp_path)
    for number in range(4, 10):
        (tmp_path / "training" / "image_2" / f"{number:06}.png").unlink()
    note.write_text("")
    with pytest.raises(DataError, match="has 4 drives or images; of 5 one is held out"):
        kitti_distance(tmp_path)
