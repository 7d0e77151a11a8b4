"""Settings of supervised image training: every default is stated here, once."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.data.fetched import absolute
from farreach.learn.settings import LoopConfig, WorkersConfig

SHIPPED_SET = "openclipart"


class BackboneConfig(Config):
    """The network; a name alone, `backbone=NAME`, is one without options, rate and weights."""

    name: str = "xcit_nano_12_p8"
    """Any name that timm knows, ours included."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model, such as class_mlp or global_pool."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Rate of stochastic depth, which skips what it drops in blocks that are known."""
    drop_path_schedule: Literal["constant", "ramp"] = "constant"
    checkpointing: bool = False
    """Compute activations again in the backward pass in place of keeping them: less memory."""
    weights: str | None = None
    """A file of weights to begin with: .safetensors, .pth or .pt, ours, timm's or the authors'."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name_alone(cls, raw: Any) -> Any:
        return {"name": raw} if isinstance(raw, str) else raw

    @field_validator("weights")
    @classmethod
    def _from_anywhere(cls, path: str | None) -> str | None:
        return None if path is None else absolute(path)


class ImagesConfig(Config):
    """The images."""

    path: str = SHIPPED_SET
    """A folder or file, see farreach.data.images; `openclipart`: 5,628 shipped clip arts."""
    size: int = Field(64, ge=8)
    crop_ratio: float = Field(1.0, gt=0, le=1)
    """Share of the resized image's side that evaluation looks at."""

    @field_validator("path")
    @classmethod
    def _from_anywhere(cls, path: str) -> str:
        """Workers and later commands may have another working directory."""
        return path if path == SHIPPED_SET else absolute(path)


class AugmentConfig(Config):
    """What happens to training images."""

    kind: Literal["simple", "three", "rand"] = "simple"
    """Crop, flip and colours alone; 3-Augment; RandAugment."""
    crop: Literal["resized", "padded"] = "resized"
    min_scale: float = Field(0.35, gt=0, le=1)
    """Smallest share of the area that a resized crop shows."""
    flip: bool = True
    color_jitter: float | None = Field(None, ge=0)
    """Of brightness, contrast and saturation; None: 0.3, and beside RandAugment, which changes
    colours itself, none, as in timm."""
    magnitude: int = Field(9, ge=0, le=10)
    """Of RandAugment; as in timm 10 is the most."""
    magnitude_std: float = Field(0.5, ge=0)
    """Spread of the magnitude from one operation to the next."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a box is erased."""

    @property
    def jitter(self) -> float:
        """Strength of the changes of colour."""
        if self.color_jitter is None:
            return 0.0 if self.kind == "rand" else 0.3
        return self.color_jitter


class MixConfig(Config):
    """How images are mixed, and how targets are smoothed; see `mixing`."""

    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    switch: float = Field(0.5, ge=0, le=1)
    smoothing: float = Field(0.1, ge=0, lt=1)


class ObjectiveConfig(Config):
    """What is minimised."""

    kind: Literal["supervised", "cosub", "self_distillation"] = "supervised"
    """Labels alone; two submodels teach each other; the whole network teaches a submodel."""
    loss: Literal["ce", "bce"] = "ce"
    """With bce every class that an image holds a part of counts fully."""
    mutual_weight: float = Field(0.5, ge=0, lt=1)
    """Of what cosub's two submodels teach each other, or the whole network its submodel."""
    teacher: BackboneConfig | None = None
    """A trained model (with `weights`) that sees the same images and teaches its answers."""
    teacher_weight: float = Field(0.5, gt=0, le=1)
    """Of what the teacher says; the labels have the rest."""
    teacher_temperature: float | None = Field(None, gt=0)
    """None: the class that the teacher names counts (hard distillation); else its probabilities at
    this temperature do (soft)."""


class OptimizerConfig(Config):
    """How the weights move."""

    kind: Literal["adamw", "lamb", "sgd"] = "adamw"
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    """How much slower each layer learns than the one above it, for fine-tuning."""


class AverageConfig(Config):
    """The average of the weights over updates."""

    decay: float | None = Field(None, gt=0, lt=1)
    """Share of the old average that every update leaves; None: none is kept."""
    evaluate: bool = False
    """Evaluate, and export, the average in place of the weights."""


class SuperviseConfig(Config):
    """A run of supervised training."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"name", "training", "runtime", "chaos"})
    """Sections that may change when a run is resumed."""

    name: str = "classify"
    seed: int = Field(0, ge=0)
    backbone: BackboneConfig = BackboneConfig()
    data: ImagesConfig = ImagesConfig()
    augment: AugmentConfig = AugmentConfig()
    mix: MixConfig = MixConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    average: AverageConfig = AverageConfig()
    training: LoopConfig = LoopConfig()
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()

    @model_validator(mode="after")
    def _recipe_is_sound(self) -> SuperviseConfig:
        if self.objective.loss == "bce" and self.mix.smoothing > 0:
            raise ValueError(
                "objective.loss: bce counts every class with a part of the target as present, and "
                f"mix.smoothing: {self.mix.smoothing:g} gives all of them one. Set it to 0"
            )
        if self.objective.kind != "supervised" and self.backbone.drop_path == 0:
            raise ValueError(
                f"objective.kind: {self.objective.kind} trains submodels that stochastic depth "
                "draws, and backbone.drop_path is 0: each would be the whole network. Set it above "
                "0, such as 0.3"
            )
        if self.augment.kind == "three" and self.augment.erasing > 0:
            raise ValueError(
                "augment.kind: three is the whole recipe of 3-Augment, which erases nothing. Set "
                "augment.erasing to 0, or kind to rand"
            )
        if self.average.evaluate and self.average.decay is None:
            raise ValueError(
                "average.evaluate: there is no average. Set average.decay, such as 0.999"
            )
        if self.average.decay is not None and self.runtime.sharded:
            raise ValueError(
                "average.decay: an average of all weights does not fit where they are split. Leave "
                "it out, or set runtime.sharded to false"
            )
        soft = self.objective.teacher_temperature is not None
        kind, teacher = self.objective.kind, self.objective.teacher
        if kind != "supervised" and teacher is not None and soft:
            raise ValueError(
                f"objective.teacher_temperature: {kind} takes a teacher's class as a second label. "
                "Leave it out"
            )
        part = self.training.part or self.training.batch
        if (self.mix.mixup > 0 or self.mix.cutmix > 0) and part % 2:
            raise ValueError(
                f"mixing pairs images, and {part} of them are odd. Make training.batch even"
            )
        return self
