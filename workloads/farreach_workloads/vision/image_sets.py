"""The images that a configuration names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from farreach.data.fetched import here
from farreach.data.images import ImageSet, open_images
from farreach_workloads.vision.config import SHIPPED_SET, ImagesConfig

SHIPPED_FILE = Path(__file__).parent / "assets" / "openclipart_64.parquet"


def images_of(config: ImagesConfig, *, labelled: bool = True) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images; see `open_images`."""
    return _opened(str(SHIPPED_FILE) if config.path == SHIPPED_SET else config.path, labelled)


@lru_cache(maxsize=2)
def _opened(path: str, labelled: bool) -> tuple[ImageSet, ImageSet]:
    return open_images(here(path), labelled=labelled)
