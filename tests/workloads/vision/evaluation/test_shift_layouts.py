import json

import pytest
import torch
from PIL import Image

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.shift_layouts import (
    class_folders,
    imagenet_real,
    imagenet_v2,
    objectnet,
)

# Not in the order of the alphabet, in which n3, n1, n2, n4 are 2, 0, 1, 3.
CLASSES = ["n3", "n1", "n2", "n4"]


def put(*files, side=8):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(file)


def logits_for(rows):
    """Highest for the class that is named, next for the one after it, and so on."""
    return torch.tensor([[float(-((label - row) % 4)) for label in range(4)] for row in rows])


def test_a_part_of_the_classes_in_folders(tmp_path):
    put(tmp_path / "n1" / "b.jpg", tmp_path / "n1" / "a.jpg", tmp_path / "n4" / "c.jpg")
    (tmp_path / "README.txt").write_text("")
    found = class_folders(tmp_path, CLASSES)
    assert found.images.labels.tolist() == [1, 1, 3]
    assert found.allowed == [1, 3]
    # 2 is not allowed, and 3 comes next; then 1 is right; then 0 is not allowed, and 1 is next.
    assert found.score(logits_for([2, 1, 0])).top1 == pytest.approx(1 / 3)
    put(tmp_path / "n5" / "d.jpg")
    with pytest.raises(DataError, match="n5: there is no such class to train on"):
        class_folders(tmp_path, CLASSES)
    with pytest.raises(DataError, match="absent: is no folder"):
        class_folders(tmp_path / "absent", CLASSES)


def test_numbered_folders_are_places_in_the_alphabet_and_not_ordered_as_text(tmp_path):
    """With 12 classes folder 10 is the eleventh, not the third."""
    classes = [f"n{number:02}" for number in (11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    put(*(tmp_path / str(number) / f"{number}.jpg" for number in range(12)))
    found = imagenet_v2(tmp_path, classes)
    names = {
        found.images.name(row).rpartition("/")[2]: classes[found.images.labels[row]]
        for row in range(12)
    }
    assert names == {f"{number}.jpg": f"n{number:02}" for number in range(12)}
    assert found.allowed is None
    with pytest.raises(DataError, match=r"/10: and 1 other folders are missing or too many"):
        imagenet_v2(tmp_path, classes[2:])
    (tmp_path / "3" / "3.jpg").unlink()
    with pytest.raises(DataError, match="3: holds no images"):
        imagenet_v2(tmp_path, classes)


@pytest.mark.parametrize("folders", [("", "", ""), ("n1/", "n1/", "n2/")])
def test_several_labels_of_validation_images(tmp_path, folders):
    """In the alphabet 0 is n1, 1 is n2 and 2 is n3: 1, 2 and 0 of the classifier."""
    put(*(tmp_path / f"{f}ILSVRC2012_val_0000000{n + 1}.JPEG" for n, f in enumerate(folders)))
    (tmp_path / "real.json").write_text(json.dumps([[0, 2], [], [1]]))
    found = imagenet_real(tmp_path, CLASSES)
    assert found.accepted == [{1, 0}, set(), {2}]
    assert [found.images.name(row)[-6] for row in range(3)] == ["1", "2", "3"]
    score = found.score(logits_for([0, 3, 3]))
    assert (score.top1, score.count) == (0.5, 2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0], [1], [2]], "has no image ILSVRC2012_val_00000003, nor 0 others of the 3"),
        ([[0], [4]], r"real\.json, entry 1: 4 is none of the 4 classes"),
        ([[0], 1], r"real\.json, entry 1: is 1, not a list of classes"),
        ({}, "holds a dict, not a list"),
    ],
)
def test_faults_of_validation_labels_are_named(tmp_path, table, message):
    put(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    put(tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG")
    (tmp_path / "real.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        imagenet_real(tmp_path / "val", CLASSES, tmp_path / "real.json")
    with pytest.raises(DataError, match=r"val/real\.json: is no JSON"):
        imagenet_real(tmp_path / "val", CLASSES)


def objectnet_files(path):
    """ImageNet's names are in an order of their own: the k-th class by alphabet in line order[k].

    n1 is crane, n2 is armchair, n3 is crane too, n4 is stool.
    """
    tables = path / "mappings"
    tables.mkdir()
    lines = ["stool, seat", "crane", "armchair", "crane"]
    (tables / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    order = {"0": 1, "1": 2, "2": 3, "3": 0}
    (tables / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(order))
    of_folder = {"chair": "Chair", "crane_bird": "Crane", "mug": "Mug"}
    (tables / "folder_to_objectnet_label.json").write_text(json.dumps(of_folder))
    of_object = {"Crane": "crane", "Chair": "armchair; stool, seat"}
    (tables / "objectnet_to_imagenet_1k.json").write_text(json.dumps(of_object))
    put(path / "images" / "chair" / "1.png", path / "images" / "mug" / "2.png")
    put(path / "images" / "crane_bird" / "3.png", path / "images" / "crane_bird" / "4.png")
    return tables


def test_classes_of_objectnet_stand_for_several(tmp_path):
    """n3, n1, n2, n4 are the classifier's 0 to 3: Chair is 2 and 3, Crane is 0 and 1."""
    objectnet_files(tmp_path)
    found = objectnet(tmp_path, CLASSES)
    assert found.images.classes == ["Chair", "Crane"]
    assert found.images.labels.tolist() == [0, 1, 1]
    assert found.members == [[2, 3], [0, 1]]
    assert found.images.load(0).size == (4, 4), "a border of 2 is cut off 8 pixels"
    assert found.score(logits_for([3, 1, 2])).top1 == pytest.approx(2 / 3)


def test_faults_of_objectnet_are_named(tmp_path):
    tables = objectnet_files(tmp_path)
    with pytest.raises(DataError, match="has 4 classes and 4 names of ImageNet for 3 of the"):
        objectnet(tmp_path, CLASSES[:3])
    put(tmp_path / "images" / "sofa" / "5.png")
    with pytest.raises(DataError, match=r"sofa: is not in folder_to_objectnet_label\.json"):
        objectnet(tmp_path, CLASSES)
    (tables / "objectnet_to_imagenet_1k.json").write_text(json.dumps({"Mug": "coffee mug"}))
    with pytest.raises(DataError, match="'Mug' stands for 'coffee mug', which is not in"):
        objectnet(tmp_path, CLASSES)
    (tables / "imagenet_to_label_2012_v2").unlink()
    with pytest.raises(DataError, match="imagenet_to_label_2012_v2: cannot be read"):
        objectnet(tmp_path, CLASSES)
    (tables / "folder_to_objectnet_label.json").unlink()
    with pytest.raises(DataError, match=r"folder_to_objectnet_label\.json: is no JSON"):
        objectnet(tmp_path, CLASSES)
