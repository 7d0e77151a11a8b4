"""Settings of self-supervised pretraining: every default is stated here, once."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach_workloads.vision.config import BackboneConfig, ImagesConfig
from farreach_workloads.vision.selfsup.method_configs import MethodConfig, MsnConfig


class ViewsConfig(Config):
    """Views of an image: large ones of most of it, small ones of a part; all drawn alone."""

    large: int = Field(2, ge=1)
    """Of MSN the first is the target network's, and the patches of the others are dropped."""
    small: int = Field(10, ge=0)
    size: int = Field(224, ge=8)
    """Of a large view, in pixels."""
    small_size: int = Field(96, ge=8)
    scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image's area that a large view shows."""
    small_scale: tuple[float, float] = (0.05, 0.3)
    flip: float = Field(0.5, ge=0, le=1)
    jitter: float = Field(0.5, ge=0)
    """Strength of the distortion of colours."""
    jitter_parts: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    """Brightness, contrast, saturation and hue at strength 1."""
    jitter_probability: float = Field(0.8, ge=0, le=1)
    grey_probability: float = Field(0.2, ge=0, le=1)
    blur: tuple[float, float] | None = (0.1, 2.0)
    """Range of the radius of the blur, in pixels; None: there is none."""
    blur_probability: tuple[float, ...] = (0.5,)
    """Of each large view; the last is that of all others."""
    small_blur_probability: float = Field(0.5, ge=0, le=1)
    solarise_probability: tuple[float, ...] = (0.0,)
    """Of each large view; the last is that of all other large ones."""
    on_device: bool | None = None
    """Whether views are made where the network is, and loaders only decode images, which a GPU
    leaves little time for; None: on a GPU."""


class SamplerConfig(Config):
    """Which images come next, where classes are to come in another way than they are there."""

    kind: Literal["shuffled", "stratified", "power", "square_root"] = "shuffled"
    """All in a random order; batches of a few classes; classes by a power law, or by the roots of
    how many images they have."""
    classes: int = Field(2, ge=1)
    """Of a stratified batch."""
    exponent: float = Field(1.0, gt=0)
    """Of the power law."""


class PretrainOptimizerConfig(Config):
    """How the weights move."""

    kind: Literal["adamw", "larc", "lars"] = "adamw"
    """With larc every tensor adapts its rate and is decayed; with lars norms and biases are not,
    nor are they decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of larc and lars."""
    trust: float = Field(1e-3, gt=0)
    """Of larc and lars: change of a tensor in proportion to its norm, times the rate."""
    weight_decay: float = Field(0.04, ge=0)
    last_weight_decay: float | None = Field(0.4, ge=0)
    """It moves there along half a cosine, as far as the schedules reach; None: it stays."""


class PretrainLoopConfig(LoopConfig):
    """How long to train, and how often to look; the schedule is that of MSN's code."""

    batch: int = Field(1024, ge=2)
    """Images per update, of all workers together; they are compared with one another."""
    warmup_lr: float = Field(2e-4, ge=0)
    min_lr: float = Field(1e-6, ge=0)
    max_grad_norm: float | None = Field(3.0, gt=0)
    """Of the network; prototypes are not clipped."""
    stretch: float = Field(1.25, ge=1)
    """Schedules are those of a run so many times as long, which is cut off."""
    ahead: int = Field(1, ge=0, le=1)
    """Updates by which the rate is ahead; with 1 the first update has what it ends with."""
    evaluate_first: bool = True


class ProbeConfig(Config):
    """How features are looked at while they are learned."""

    neighbours: int = Field(20, ge=1)
    references: int = Field(10_000, ge=1)
    """Training images, at most, whose labels the neighbours lend."""
    temperature: float = Field(0.07, gt=0)
    """A neighbour counts exp(cosine / temperature)."""
    linear: bool = True
    """Whether a linear layer on the features of the same images is trained and measured as well."""


class PretrainConfig(Config):
    """A run of pretraining."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"name", "training", "runtime", "probe", "chaos"}
    )
    """Sections that may change when a run is resumed."""

    name: str = "pretrain"
    seed: int = Field(0, ge=0)
    backbone: BackboneConfig = BackboneConfig(name="vit_small_patch16_224")
    data: ImagesConfig = ImagesConfig()
    sampler: SamplerConfig = SamplerConfig()
    views: ViewsConfig = ViewsConfig()
    method: MethodConfig = MsnConfig()
    optimizer: PretrainOptimizerConfig = PretrainOptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    training: PretrainLoopConfig = PretrainLoopConfig()
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()

    @model_validator(mode="after")
    def _is_sound(self) -> PretrainConfig:
        views, training, kind = self.views, self.training, self.method.kind
        if kind == "msn" and views.small and views.small_size == views.size:
            raise ValueError(
                "views.small_size: is views.size, so that small views could not be told from "
                "those whose patches are dropped. Make it smaller"
            )
        least = 1 if kind == "mae" else 2
        if views.large < least:
            raise ValueError(f"views.large: {kind} compares {least} large views. Raise it")
        if kind in ("simclr", "vicreg") and (views.large, views.small) != (2, 0):
            raise ValueError(
                f"views: {kind} compares two large views. Set views.large to 2 and views.small to 0"
            )
        if kind == "mae" and (views.large, views.small) != (1, 0):
            raise ValueError(
                "views: mae looks at one view. Set views.large to 1 and views.small to 0"
            )
        workers = max(1, self.runtime.workers)
        if self.runtime.min_workers is not None:
            compared = kind in ("simclr", "vicreg") or getattr(self.method, "queue", 0) > 0
            if compared and self.runtime.min_workers != workers:
                raise ValueError(
                    f"runtime.min_workers: {kind} compares as many images of every worker, which "
                    "any number of them cannot have. Leave it out"
                )
        elif training.batch % workers:
            divisors = [n for n in range(1, 65) if training.batch % n == 0]
            raise ValueError(
                f"training.batch: {training.batch} images are not equally many on each of "
                f"{workers} workers, as the mean over all of them needs. Take "
                f"{', '.join(map(str, divisors))} workers, or another batch"
            )
        if training.part is not None and training.part < training.batch // workers:
            raise ValueError(
                "training.part: images of a batch are compared with one another, and with a part "
                "of them the loss would be another. Leave it out"
            )
        if self.backbone.drop_path > 0:
            raise ValueError(
                "backbone.drop_path: is for training with labels. Set "
                "backbone.options.drop_path_rate"
            )
        return self


def total_length(config: LoopConfig, per_epoch: float) -> float:
    """Updates until the schedules would end."""
    return math.floor(config.stretch * config.epochs * per_epoch)
