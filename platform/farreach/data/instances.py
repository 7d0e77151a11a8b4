"""Sets of images whose objects have a box, a mask and a class, in COCO's layout.

`annotations/instances_NAME.json` beside the folder `NAME` of its images, for a NAME that begins
with `train` and one that begins with `val`. An object without a mask is taken to fill its box.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from farreach.data.image_set import UNREADABLE, as_rgb
from farreach.errors import DataError, UnreadableImageError

IMAGE_KEYS = ("id", "file_name", "height", "width")
ANNOTATION_KEYS = ("image_id", "category_id", "bbox")
# A polygon of fewer numbers has no area.
FEWEST_NUMBERS = 6


@dataclass(frozen=True)
class Instances:
    """The objects of an image.

    Attributes:
        boxes: (n, 4) float32, left, top, right and bottom edge in pixels.
        labels: (n,) int64, the class of each.
        masks: (n, height, width) bool.
        crowd: (n,) bool, groups that are not told apart: evaluation forgives what is found there.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def select(self, rows: NDArray[Any]) -> Instances:
        """Some of them, by numbers or flags."""
        return Instances(self.boxes[rows], self.labels[rows], self.masks[rows], self.crowd[rows])


class InstanceSet(ABC):
    """Images and their objects, in a fixed order.

    Attributes:
        path: where they are.
        classes: name of each class.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        """See the class."""
        self.path, self.classes = path, list(classes)

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """An image in RGB.

        Raises:
            UnreadableImageError: it cannot be decoded.
            DataError: it is not the one that is described.
        """

    @abstractmethod
    def instances(self, index: int) -> Instances:
        """Its objects.

        Raises:
            DataError: a mask cannot be decoded.
        """


class CocoInstances(InstanceSet):
    """The objects of one annotation file."""

    def __init__(self, file: Path, images: Path, classes: Sequence[str] | None = None) -> None:
        """Read the annotations; the images are opened when they are asked for.

        Args:
            file: of annotations.
            images: folder of the images.
            classes: in whose order classes are numbered; None: by the file's own category ids.

        Raises:
            DataError: the file is damaged, names no object or class, or an image is missing.
        """
        content = _read(file)
        named = sorted(content["categories"], key=lambda category: int(category["id"]))
        names = [str(category["name"]) for category in named]
        super().__init__(file, names if classes is None else classes)
        foreign = sorted(set(names) - set(self.classes))
        if foreign:
            raise DataError(
                f"{file}: has the category {foreign[0]!r}, of which none is trained on."
            )
        self._label = {
            int(category["id"]): self.classes.index(str(category["name"])) for category in named
        }
        for number, image in enumerate(content["images"]):
            if missing_keys := [key for key in IMAGE_KEYS if key not in image]:
                raise DataError(f"{file}: image {number} has no {missing_keys[0]!r}.")
        self._images = sorted(content["images"], key=lambda image: int(image["id"]))
        self._files = [images / str(image["file_name"]) for image in self._images]
        missing = [path for path in self._files if not path.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: is missing, as are {len(missing) - 1} other images that {file} "
                "names."
            )
        self._objects: list[list[dict[str, Any]]] = [[] for _ in self._images]
        place = {int(image["id"]): index for index, image in enumerate(self._images)}
        for number, annotation in enumerate(content["annotations"]):
            _check_annotation(file, number, annotation, place, self._label)
            image = self._images[place[int(annotation["image_id"])]]
            _check_mask(file, annotation, int(image["height"]), int(image["width"]))
            # Objects without an area cannot be found; COCO has a few.
            if min(annotation["bbox"][2:]) > 0:
                self._objects[place[int(annotation["image_id"])]].append(annotation)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """See the class above."""
        file = self._files[index]
        try:
            image = as_rgb(Image.open(file))
        except UNREADABLE as error:
            raise UnreadableImageError(
                f"{file}: is no image that can be read: {error}. Replace it."
            ) from error
        size = self._size(index)
        if image.size != size:
            raise DataError(f"{file}: is {image.size} pixels large, but {self.path} says {size}.")
        return image

    def instances(self, index: int) -> Instances:
        """See the class above."""
        width, height = self._size(index)
        objects = self._objects[index]
        corners = np.array([o["bbox"] for o in objects], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        masks = [self._mask(o, height, width) for o in objects]
        return Instances(
            boxes=corners,
            labels=np.array([self._label[int(o["category_id"])] for o in objects], np.int64),
            masks=np.array(masks, np.bool_).reshape(-1, height, width),
            crowd=np.array([bool(o.get("iscrowd", 0)) for o in objects], np.bool_),
        )

    def _mask(self, annotation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
        """The mask of an object, (height, width); its box where there is none."""
        try:
            mask = _decoded(annotation.get("segmentation"), height, width)
        except (IndexError, TypeError, ValueError) as error:
            raise _no_mask(self.path, annotation, str(error)) from error
        return _filled(annotation["bbox"], height, width) if mask is None else mask

    def _size(self, index: int) -> tuple[int, int]:
        image = self._images[index]
        return int(image["width"]), int(image["height"])


def open_instances(path: Path) -> tuple[InstanceSet, InstanceSet]:
    """The images to train on and those to evaluate on, of the same classes.

    Raises:
        DataError: nothing is there, or it is of another layout.
    """
    files = []
    for part in ("train", "val"):
        found = sorted(path.glob(f"annotations/instances_{part}*.json"))
        folders = [path / file.stem.removeprefix("instances_") for file in found]
        pairs = [pair for pair in zip(found, folders, strict=True) if pair[1].is_dir()]
        if not pairs:
            raise DataError(
                f"{path}: has no annotations/instances_{part}….json beside a folder {part}… of its "
                "images. Give a folder in COCO's layout."
            )
        files.append(pairs[0])
    first = CocoInstances(*files[0])
    return first, CocoInstances(*files[1], first.classes)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no readable JSON file: {error}.") from error
    lists = ("images", "annotations", "categories")
    missing = [key for key in lists if not isinstance(content, dict) or not content.get(key)]
    if missing:
        raise DataError(f"{file}: has no {missing[0]}. Give annotations of instances as COCO's.")
    return dict(content)


def _check_annotation(
    file: Path, number: int, annotation: Any, images: dict[int, int], labels: dict[int, int]
) -> None:
    missing = [key for key in ANNOTATION_KEYS if key not in annotation]
    if missing:
        raise DataError(f"{file}: annotation {number} has no {missing[0]!r}.")
    if int(annotation["image_id"]) not in images:
        raise DataError(
            f"{file}: annotation {number} is of image {annotation['image_id']}, which is not named."
        )
    if int(annotation["category_id"]) not in labels:
        raise DataError(
            f"{file}: annotation {number} is of category {annotation['category_id']}, which is not "
            "named."
        )
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box):
        raise DataError(
            f"{file}: annotation {number} has the box {box!r}; left, top, width and height are "
            "expected."
        )


def _check_mask(file: Path, annotation: dict[str, Any], height: int, width: int) -> None:
    """Raises DataError if a mask is there and has none of COCO's forms."""
    mask = annotation.get("segmentation")
    if not mask:
        return
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) % 2 or not _are_numbers(polygon):
                raise _no_mask(file, annotation, "a polygon is no list of pairs of numbers")
        return
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), list | str):
        raise _no_mask(file, annotation, "it is neither a list of polygons nor runs")
    if mask.get("size") != [height, width]:
        raise _no_mask(
            file, annotation, f"its size is {mask.get('size')}, of the image {[height, width]}"
        )
    counts = mask["counts"]
    if isinstance(counts, list) and (
        not set(map(type, counts)) <= {int} or sum(counts) != height * width or min(counts) < 0
    ):
        raise _no_mask(file, annotation, f"its runs do not add up to {height * width} pixels")


def _no_mask(file: Path, annotation: dict[str, Any], fault: str) -> DataError:
    return DataError(
        f"{file}: the annotation with id {annotation.get('id')} has a segmentation that is none: "
        f"{fault}. Correct it, or leave it empty: then the box is filled."
    )


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _filled(box: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """All pixels (height, width) that a box of left, top, width and height touches."""
    left, top, wide, high = box
    mask = np.zeros((height, width), np.bool_)
    rows = slice(max(0, math.floor(top)), max(0, math.ceil(top + high)))
    columns = slice(max(0, math.floor(left)), max(0, math.ceil(left + wide)))
    mask[rows, columns] = True
    return mask


def _decoded(segmentation: Any, height: int, width: int) -> NDArray[np.bool_] | None:
    """Polygons, or runs as COCO has them, as (height, width); None if there are none."""
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if len(polygon) >= FEWEST_NUMBERS]
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        runs = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = rle.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    mask: NDArray[np.bool_] = rle.decode(runs).astype(np.bool_)
    return mask
