"""Images whose objects are to be counted, or whose distance is asked for: CLEVR and KITTI.

The classes are those of VTAB (arXiv:1910.04867): for CLEVR the number of objects, 3 to 10, and in
which of six ranges the nearest one's depth is; for KITTI in which of three ranges the nearest car,
van or truck is, or that there is none. A limit belongs to the range below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.data.images import ImageSet, Labels
from farreach.errors import DataError
from farreach_workloads.vision.evaluation.layouts import (
    FileImages,
    Task,
    check_files,
    images_below,
    read_json,
)

COUNTS = range(3, 11)
# In the units of CLEVR's scenes, along the camera's axis.
CLEVR_LIMITS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
# Metres along the camera's axis; a vehicle may be a little behind the image plane.
KITTI_LIMITS = (-100.0, 8.0, 20.0, 999.0)
KITTI_CLASSES = ("up to 8 m", "up to 20 m", "farther", "no vehicle")
NO_VEHICLE = 1000.0
VEHICLES = ("Car", "Van", "Truck")
KITTI_FIELDS = 15  # a label has these, detections one more
KITTI_DEPTH = 13
HELD_OUT_EVERY = 5


def clevr(path: Path, task: Task) -> tuple[ImageSet, ImageSet]:
    """CLEVR's training and validation images.

    Args:
        path: holds `images/{train,val}` and `scenes/CLEVR_{train,val}_scenes.json`.
        task: what the labels are.

    Raises:
        DataError: a file or image is missing, or a scene is of another form.
    """
    return _clevr_part(path, "train", task), _clevr_part(path, "val", task)


def kitti_distance(path: Path, mapping: Path | None = None) -> tuple[ImageSet, ImageSet]:
    """Images of KITTI's detection task, four fifths and a fifth, by the nearest vehicle.

    VTAB and VISSL number the classes differently: here, as in VTAB, "no vehicle" is the last.

    Args:
        path: holds `image_2` and `label_2`, or a folder `training` with them.
        mapping: folder of the development kit with `train_mapping.txt` and `train_rand.txt`: every
            fifth drive is held out. None: every fifth image, though images of a drive are alike.

    Raises:
        DataError: a file is missing, or a line of it is of another form.
    """
    path = path / "training" if (path / "training").is_dir() else path
    files = images_below(path / "image_2")
    notes = [path / "label_2" / f"{file.stem}.txt" for file in files]
    check_files(notes, path / "image_2")
    depths = np.array([_nearest_vehicle(note) for note in notes])
    labels = ranges(depths, KITTI_LIMITS)
    if labels.min() < 0:
        raise DataError(
            f"{notes[int(labels.argmin())]}: a vehicle is {depths.min():g} m away. Unpack the "
            "labels again."
        )
    whole = FileImages(path, files, labels, KITTI_CLASSES)
    drives = [file.stem for file in files] if mapping is None else _drives(mapping, files)
    out = set(sorted(set(drives))[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY])
    held_out = np.array([drive in out for drive in drives])
    if not held_out.any():
        raise DataError(
            f"{path}: has {len(set(drives))} drives or images; of {HELD_OUT_EVERY} one is held "
            "out. Give more."
        )
    return whole.subset(np.flatnonzero(~held_out)), whole.subset(np.flatnonzero(held_out))


def ranges(values: NDArray[np.float64], limits: Sequence[float]) -> Labels:
    """In which range a value is, (n,): 0 where limit 0 < value ≤ limit 1, and so on.

    Above the last limit is one range more; up to limit 0 the result is -1.
    """
    return np.searchsorted(np.array(limits), values, side="left").astype(np.int64) - 1


def names_of(limits: Sequence[float]) -> list[str]:
    """Names of the ranges between limits."""
    return [f"up to {limit:g}" for limit in limits[1:]]


def count_labels(counts: NDArray[np.int64], where: str) -> Labels:
    """Numbers of objects as classes, (n,).

    Raises:
        DataError: one is not from 3 to 10.
    """
    strange = counts[(counts < COUNTS[0]) | (counts > COUNTS[-1])]
    if len(strange):
        raise DataError(
            f"{where}: a scene has {strange[0]} objects; {COUNTS[0]} to {COUNTS[-1]} are counted. "
            "Leave it out."
        )
    return counts - COUNTS[0]


def _clevr_part(path: Path, part: str, task: Task) -> ImageSet:
    table = path / "scenes" / f"CLEVR_{part}_scenes.json"
    scenes = read_json(table, dict).get("scenes")
    if not isinstance(scenes, list) or not scenes:
        raise DataError(f"{table}: has no list of scenes. Download it again.")
    names, counts, depths = [], [], []
    for number, scene in enumerate(scenes):
        name, of_objects = _clevr_scene(scene, f"{table}, scene {number}")
        names.append(path / "images" / part / name)
        counts.append(len(of_objects))
        depths.append(min(of_objects))
    check_files(names, table)
    if task == "count":
        labels = count_labels(np.array(counts, np.int64), str(table))
        return FileImages(path, names, labels, [str(count) for count in COUNTS])
    labels = ranges(np.array(depths), CLEVR_LIMITS)
    classes = names_of(CLEVR_LIMITS)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{table}: depths are from {min(depths):g} to {max(depths):g}; they are to be above "
            f"{CLEVR_LIMITS[0]:g} and up to {CLEVR_LIMITS[-1]:g}. Download it again."
        )
    return FileImages(path, names, labels, classes)


def _clevr_scene(scene: Mapping[str, Any], where: str) -> tuple[str, list[float]]:
    """The image's name, and the depth of each object."""
    try:
        depths = [float(thing["pixel_coords"][2]) for thing in scene["objects"]]
        name = str(scene["image_filename"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: lacks {error}. Needed are image_filename and objects, each with three "
            "pixel_coords."
        ) from error
    if not depths:
        raise DataError(f"{where}: has no objects. Leave it out.")
    return name, depths


def _nearest_vehicle(note: Path) -> float:
    depths = [NO_VEHICLE]
    for number, line in enumerate(note.read_text().splitlines()):
        fields = line.split()
        try:
            if fields and fields[0] in VEHICLES:
                depths.append(float(fields[KITTI_DEPTH]))
        except (IndexError, ValueError):
            raise DataError(
                f"{note}, line {number + 1}: has {len(fields)} fields; of {KITTI_FIELDS} the "
                f"{KITTI_DEPTH + 1}th is the depth in metres. Unpack the labels again."
            ) from None
    return min(depths)


def _drives(mapping: Path, files: Sequence[Path]) -> list[str]:
    """The drive of each image: its number is a place in `train_rand`, which names a line."""
    order, table = mapping / "train_rand.txt", mapping / "train_mapping.txt"
    try:
        lines = [int(number) for number in order.read_text().split(",")]
        drives = table.read_text().splitlines()
        return [drives[lines[int(file.stem)] - 1].split()[1] for file in files]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{mapping}: train_rand.txt and train_mapping.txt do not tell the drive of each image: "
            f"{error}. Unpack KITTI's object development kit again."
        ) from error
