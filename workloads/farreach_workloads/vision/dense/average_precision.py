"""COCO's average precisions, by pycocotools, of what several workers have found."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from farreach.data.instances import Instances
from farreach_workloads.vision.pictures import Found

# Which of COCOeval's numbers are what.
NUMBERS = {"": 0, "50": 1, "75": 2, "_small": 3, "_medium": 4, "_large": 5}
KINDS = {"box": "bbox", "mask": "segm"}


class Collected:
    """True and found objects of some images, in COCO's form."""

    def __init__(self) -> None:
        """Of none yet."""
        self.images: list[dict[str, Any]] = []
        self.true: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(self, image: int, true: Instances, found: Found) -> None:
        """Those of an image, by its number."""
        height, width = true.masks.shape[1:]
        self.images.append({"id": image, "height": height, "width": width})
        for box, label, mask, crowd in zip(
            true.boxes, true.labels, true.masks, true.crowd, strict=True
        ):
            runs = _runs(mask)
            entry = _entry(image, box, label, runs)
            self.true.append(entry | {"iscrowd": int(crowd), "area": float(rle.area(runs))})
        for box, label, score, mask in zip(
            found.boxes, found.labels, found.scores, found.masks, strict=True
        ):
            self.found.append(_entry(image, box, label, _runs(mask)) | {"score": float(score)})


def average_precision(parts: Sequence[Collected], classes: Sequence[str]) -> dict[str, float]:
    """`evaluation/box_ap` and `mask_ap` and their variants; where nothing is to be found, NaN.

    Args:
        parts: of all workers, each image in one of them.
        classes: names.
    """
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": sorted((i for part in parts for i in part.images), key=lambda i: i["id"]),
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": [
            entry | {"id": number}
            for number, entry in enumerate((t for part in parts for t in part.true), start=1)
        ],
    }
    found = [entry for part in parts for entry in part.found]
    metrics: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it returns
        truth.createIndex()
        for name, kind in KINDS.items():
            values = _summary(truth, found, kind) if found else np.zeros(len(NUMBERS))
            metrics |= {
                f"evaluation/{name}_ap{suffix}": float(values[index])
                if values[index] >= 0
                else float("nan")
                for suffix, index in NUMBERS.items()
            }
    return metrics | {"evaluation/images": float(len(truth.dataset["images"]))}


def _summary(truth: COCO, found: list[dict[str, Any]], kind: str) -> NDArray[np.float64]:
    # What has a box is as large as that, for pycocotools; masks are to be as large as they are.
    left_out = "bbox" if kind == "segm" else "segmentation"
    results = truth.loadRes(
        [{key: entry[key] for key in entry if key != left_out} for entry in found]
    )
    evaluation = COCOeval(truth, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats: NDArray[np.float64] = evaluation.stats
    return stats


def _entry(image: int, box: NDArray[Any], label: Any, runs: dict[str, Any]) -> dict[str, Any]:
    left, top, right, bottom = (float(edge) for edge in box)
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": runs,
    }


def _runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    runs: dict[str, Any] = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return runs
