"""The images that a configuration names, and what a run keeps of them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from farreach.data.fetched import here
from farreach.data.images import ImageSet, open_images
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.rundir import RunDirectory
from farreach_workloads.vision.config import SHIPPED_SET, ImagesConfig

SHIPPED_FILE = Path(__file__).parent / "assets" / "openclipart_64.parquet"
# In a run's `kept`: where its images were, their classes, and how many there were of each.
KEPT = "images.json"


def images_of(config: ImagesConfig, *, labelled: bool = True) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images; see `open_images`."""
    return _opened(str(SHIPPED_FILE) if config.path == SHIPPED_SET else config.path, labelled)


@lru_cache(maxsize=2)
def _opened(path: str, labelled: bool) -> tuple[ImageSet, ImageSet]:
    return open_images(here(path), labelled=labelled)


def keep(run: RunDirectory, config: ImagesConfig, *, labelled: bool = True) -> None:
    """Keep in a run's directory what its networks need to know of the images.

    So a checkpoint can be exported, or used for other images, where those of the run are not.

    Raises:
        DataError: the run began with other classes.
    """
    sets = images_of(config, labelled=labelled)
    file = run.kept / KEPT
    if file.is_file():
        began, now = (images[0].classes for images in (_kept(file), sets))
        if began != now:
            changed = [name for name in (*began, *now) if (name in began) != (name in now)]
            raise DataError(
                f"{sets[0].path}: has {len(now)} classes, and had {len(began)} when the run began "
                f"({', '.join(changed[:5]) or 'in another order'}). Bring those back or train anew."
            )
        return
    content = [
        {
            "path": str(images.path),
            "classes": images.classes,
            "counts": np.bincount(images.labels, minlength=len(images.classes)).tolist(),
        }
        for images in sets
    ]
    run.kept.mkdir(exist_ok=True)
    atomic_write(file, json.dumps(content, indent=2) + "\n")


def images_known(
    run: RunDirectory, config: ImagesConfig, *, labelled: bool = True
) -> tuple[ImageSet, ImageSet]:
    """What a run has kept of its images, which need not be there, or else themselves.

    Runs of earlier versions have kept nothing.
    """
    file = run.kept / KEPT
    return _kept(file) if file.is_file() else images_of(config, labelled=labelled)


def _kept(file: Path) -> tuple[ImageSet, ImageSet]:
    try:
        train, held_out = (_Counted(**content) for content in json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{file}: is damaged: {error}. Remove it; the images then say it."
        ) from error
    return train, held_out


class _Counted(ImageSet):
    """Images of which no more is known than how many there are of each class."""

    def __init__(self, path: str, classes: list[str], counts: list[int]) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        super().__init__(Path(path), labels, classes)

    def name(self, index: int) -> str:
        return f"{self.path}, image {index}"

    def _open(self, index: int) -> Image.Image:
        raise FileNotFoundError(f"{KEPT} only counts it")
