import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from farreach.data.instances import Instances
from farreach_workloads.vision.dense.average_precision import Collected, average_precision
from farreach_workloads.vision.pictures import Found

SIDE, CLASSES = 100, ["a", "b"]


def mask_of(box):
    mask = np.zeros((SIDE, SIDE), np.bool_)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = True
    return mask


def true_of(boxes, labels, crowd=None):
    crowd = [False] * len(boxes) if crowd is None else crowd
    masks = np.array([mask_of(box) for box in boxes]).reshape(-1, SIDE, SIDE)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Instances(corners, np.array(labels, np.int64), masks, np.array(crowd, np.bool_))


def found_of(boxes, labels, scores):
    true = true_of(boxes, labels)
    return Found(true.boxes, true.labels, np.array(scores, np.float32), true.masks)


BOXES = [(10, 10, 50, 50), (60, 20, 90, 80)]


def test_what_is_exactly_right_has_one():
    part = Collected()
    part.add(0, true_of(BOXES, [0, 1]), found_of(BOXES, [0, 1], [0.9, 0.8]))
    metrics = average_precision([part], CLASSES)
    assert metrics["evaluation/box_ap"] == pytest.approx(1.0)
    assert metrics["evaluation/mask_ap"] == pytest.approx(1.0)
    assert metrics["evaluation/images"] == 1
    assert np.isnan(metrics["evaluation/box_ap_small"]), "there is none below 32 x 32 pixels"


def test_precision_by_hand():
    """One class, two objects; a wrong box has the highest score, then one object is found.

    Precision is 1/2 at the recall of 1/2 and nothing beyond: of 101 recalls 51 have 1/2.
    """
    part = Collected()
    part.add(0, true_of(BOXES, [0, 0]), found_of([(0, 90, 9, 99), BOXES[0]], [0, 0], [0.9, 0.8]))
    metrics = average_precision([part], CLASSES)
    assert metrics["evaluation/box_ap"] == pytest.approx(51 / 101 / 2)


def test_a_box_that_overlaps_by_two_thirds_counts_at_four_of_ten_thresholds():
    """40 x 40 against 40 x 32 of it: an overlap of 0.8, which is 0.5, 0.55, … 0.8 passed."""
    part = Collected()
    part.add(0, true_of(BOXES[:1], [0]), found_of([(10, 10, 50, 42)], [0], [0.9]))
    assert average_precision([part], CLASSES)["evaluation/box_ap"] == pytest.approx(0.7)


def test_crowds_are_forgiven_and_found_nothing_is_nought():
    part = Collected()
    part.add(0, true_of(BOXES, [0, 0], [False, True]), found_of(BOXES, [0, 0], [0.5, 0.9]))
    assert average_precision([part], CLASSES)["evaluation/box_ap"] == pytest.approx(1.0)
    nothing = Collected()
    nothing.add(0, true_of(BOXES, [0, 1]), found_of([], [], []))
    assert average_precision([nothing], CLASSES)["evaluation/mask_ap"] == 0.0


def test_found_masks_are_as_large_as_they_are_and_not_as_their_boxes():
    """A thin line is a small mask in a box of medium size: both are found once, and once in vain.

    Small masks: a wrong one of the higher score, then the right one. Small boxes: there are none
    to be found in vain, since the wrong one is of medium size.
    """
    lines = np.zeros((2, SIDE, SIDE), np.bool_)
    for i in range(45):
        lines[0, i, i : i + 3] = lines[1, 50 + i, 50 + i : 53 + i] = True
    boxes = np.array([(0, 0, 47, 45), (50, 50, 97, 95)], np.float32)
    labels, none = np.zeros(2, np.int64), np.zeros(1, np.bool_)
    part = Collected()
    part.add(
        0,
        Instances(boxes[:1], labels[:1], lines[:1], none),
        Found(boxes, labels, np.array([0.5, 0.9], np.float32), lines),
    )
    metrics = average_precision([part], ["a"])
    assert metrics["evaluation/mask_ap"] == pytest.approx(0.5)
    assert metrics["evaluation/mask_ap_small"] == pytest.approx(0.5)
    assert metrics["evaluation/box_ap_small"] == pytest.approx(1.0)


def test_workers_parts_are_as_one_and_as_pycocotools_reads_a_file(tmp_path):
    rng = np.random.default_rng(0)
    parts, whole = [Collected(), Collected()], Collected()
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    results = []
    for image in range(10):
        corners = rng.integers(0, 50, (3, 2))
        boxes = np.hstack([corners, corners + rng.integers(8, 50, (3, 2))])
        labels = rng.integers(0, 2, 3)
        shifted = np.clip(boxes + rng.integers(-4, 5, (3, 4)), 0, SIDE)
        scores = rng.random(3).astype(np.float32)
        true = true_of(boxes.tolist(), labels)
        found = found_of(shifted.tolist(), labels, scores)
        parts[image % 2].add(image, true, found)
        whole.add(image, true, found)
        content["images"].append({"id": image, "height": SIDE, "width": SIDE})
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            size = [box[2] - box[0], box[3] - box[1]]
            entry = {"id": len(content["annotations"]) + 1, "image_id": image, "iscrowd": 0}
            entry |= {"category_id": label, "bbox": [*box[:2], *size], "area": size[0] * size[1]}
            content["annotations"].append(entry)
        for box, label, score in zip(shifted.tolist(), labels.tolist(), scores, strict=True):
            size = [box[2] - box[0], box[3] - box[1]]
            entry = {"image_id": image, "category_id": label, "bbox": [*box[:2], *size]}
            results.append(entry | {"score": float(score)})
    (tmp_path / "true.json").write_text(json.dumps(content))
    truth = COCO(str(tmp_path / "true.json"))
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = average_precision(parts, CLASSES)
    assert metrics == pytest.approx(average_precision([whole], CLASSES), nan_ok=True)
    assert metrics["evaluation/box_ap"] == pytest.approx(evaluation.stats[0])
    assert metrics["evaluation/box_ap75"] == pytest.approx(evaluation.stats[2])
    assert 0.05 < metrics["evaluation/box_ap"] < 0.95
