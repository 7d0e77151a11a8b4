"""Settings of segmentation and detection: every default is stated here, once."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.data.fetched import absolute
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach_workloads.vision.config import BackboneConfig, OptimizerConfig

# Of the four maps of features that every head reads.
STRIDES = (4, 8, 16, 32)


class ScenesConfig(Config):
    """Scenes that are composed of cut-outs; see `scenes`."""

    cut_outs: str | None = None
    """Images on clear grounds, a folder per class or Parquet; None: 500 shipped clip arts."""
    grounds: str | None = None
    """A folder of photos to lay them on; None: drawn clouds of colours."""
    most: int = Field(3, ge=1)
    """Objects of a scene, at most."""
    train: int = Field(2000, ge=1)
    held_out: int = Field(300, ge=1)

    @field_validator("cut_outs", "grounds")
    @classmethod
    def _from_anywhere(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)


class DenseImagesConfig(Config):
    """The images."""

    path: str | None = None
    """A folder in ADE20k's layout (segmentation) or COCO's (detection); None: composed scenes."""
    size: int = Field(96, ge=STRIDES[-1])
    """Side of crops, and the shorter side of what is evaluated; of scenes all of both."""
    scenes: ScenesConfig = ScenesConfig()

    @field_validator("path")
    @classmethod
    def _from_anywhere(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)

    @field_validator("size")
    @classmethod
    def _is_even(cls, size: int) -> int:
        if size % STRIDES[-1]:
            below = size - size % STRIDES[-1]
            raise ValueError(
                f"maps of stride {STRIDES[-1]} do not divide {size} pixels. Take {below} or "
                f"{below + STRIDES[-1]}"
            )
        return size


class SegmentHeadConfig(Config):
    """What makes classes of the backbone's maps."""

    kind: Literal["fpn", "upernet"] = "fpn"
    width: int = Field(128, ge=8)
    """Channels of its pyramid; the papers have 256 or the backbone's width (fpn), 512 (upernet)."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """Of the second head's loss, with upernet; 0: there is none."""


class SegmentAugmentConfig(Config):
    """What happens to training images."""

    ratio: tuple[float, float] = (0.5, 2.0)
    """Range of the factor by which an image is resized before it is cropped."""
    most_of_a_class: float = Field(0.75, gt=0, le=1)
    """A crop with a larger share of one class is drawn again, ten times at most."""
    flip: bool = True
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue."""

    @field_validator("ratio")
    @classmethod
    def _is_a_range(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"{list(ratio)} is no range above 0. Give the lower bound first")
        return ratio


class DetectAugmentConfig(Config):
    """What happens to training images."""

    flip: bool = True
    short_sides: tuple[int, ...] = ()
    """Shorter sides of which one is drawn per image; empty: data.size."""
    crop: tuple[int, int] | None = None
    """Range of the sides of a crop, which every other image gets before it is resized."""

    @field_validator("short_sides")
    @classmethod
    def _are_large_enough(cls, sides: tuple[int, ...]) -> tuple[int, ...]:
        if any(side < STRIDES[-1] for side in sides):
            raise ValueError(f"{min(sides)} pixels are too few. Take {STRIDES[-1]} or more")
        return sides

    @field_validator("crop")
    @classmethod
    def _is_a_range(cls, crop: tuple[int, int] | None) -> tuple[int, int] | None:
        if crop is not None and not STRIDES[-1] <= crop[0] <= crop[1]:
            raise ValueError(
                f"{list(crop)} is no range from {STRIDES[-1]} pixels on. Give the lower bound first"
            )
        return crop


class DetectorConfig(Config):
    """Mask R-CNN over the backbone's maps."""

    width: int = Field(256, ge=8)
    """Channels of its pyramid and of its head for masks."""
    anchor_scale: float = Field(8.0, gt=0)
    """Side of an anchor over the stride of its map: 8 gives COCO's 32 to 512 pixels."""
    proposals: int = Field(1000, ge=1)
    """Boxes of an image that the second stage looks at."""
    sampled: int = Field(512, ge=4)
    """Boxes of an image that the second stage learns from, in each update."""
    longest: int = Field(1333, ge=32)
    """Of an image's longer side after resizing."""


class DenseConfig(Config):
    """What segmentation and detection share."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"name", "training", "runtime", "chaos"})
    """Sections that may change when a run is resumed."""

    seed: int = Field(0, ge=0)
    backbone: BackboneConfig = BackboneConfig()
    frozen: bool = False
    """The backbone stays as it begins, and what stands on it learns alone: what its features are
    worth."""
    data: DenseImagesConfig = DenseImagesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: LoopConfig = LoopConfig()
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()


class SegmentConfig(DenseConfig):
    """A run of semantic segmentation."""

    name: str = "segment"
    head: SegmentHeadConfig = SegmentHeadConfig()
    augment: SegmentAugmentConfig = SegmentAugmentConfig()

    @model_validator(mode="after")
    def _batch_normalisation_has_a_batch(self) -> SegmentConfig:
        share = self.training.batch // max(1, self.runtime.workers)
        if min(self.training.part or share, share) < 2:
            raise ValueError(
                "the heads normalise over a worker's part of the batch, which is a single image. "
                "Raise training.part or training.batch"
            )
        part, runtime = self.training.part, self.runtime
        is_alone = (runtime.min_workers or runtime.workers) <= 1
        if is_alone and part is not None and self.training.batch % part == 1:
            raise ValueError(
                f"the heads normalise over a part of the batch: {self.training.batch} images in "
                f"parts of {part} leave a single one. Make training.batch a multiple of "
                "training.part"
            )
        return self


class DetectConfig(DenseConfig):
    """A run of object detection with masks."""

    name: str = "detect"
    detector: DetectorConfig = DetectorConfig()
    augment: DetectAugmentConfig = DetectAugmentConfig()
