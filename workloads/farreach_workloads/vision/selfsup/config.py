"""Settings of self-supervised pretraining: every default is stated here, once."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from farreach.config import Config
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach_workloads.vision.config import BackboneConfig, ImagesConfig


class ViewsConfig(Config):
    """Views of an image: one for the target network, the others for the one that learns."""

    random: int = Field(1, ge=1)
    """Large views whose patches are dropped."""
    focal: int = Field(10, ge=0)
    """Small views of a part."""
    size: int = Field(224, ge=8)
    focal_size: int = Field(96, ge=8)
    scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image's area that a large view shows."""
    focal_scale: tuple[float, float] = (0.05, 0.3)
    jitter: float = Field(0.5, ge=0)
    """Strength of the distortion of colours."""
    blur: tuple[float, float] | None = (0.1, 2.0)
    """Range of the radius of the blur, in pixels; None: there is none."""


class PriorConfig(Config):
    """How often prototypes are expected to be used."""

    kind: Literal["uniform", "power"] = "uniform"
    """Equally (MSN), or as a power law (PMSN)."""
    exponent: float = Field(0.25, ge=0)
    """Of the power law."""


class MsnConfig(Config):
    """Masked Siamese networks."""

    mask: float = Field(0.15, ge=0, lt=1)
    """Share of the patches of large views that is dropped."""
    prototypes: int = Field(1024, ge=2)
    dim: int = Field(256, ge=2)
    """Of the embeddings."""
    hidden: int = Field(2048, ge=2)
    """Of the head."""
    temperature: float = Field(0.1, gt=0)
    target_temperature: float = Field(0.025, gt=0)
    sinkhorn: Literal["none", "uniform", "prior"] = "uniform"
    """What the mean of the targets is brought to."""
    weight: float = Field(1.0, ge=0)
    """Of the distance between mean assignment and prior."""
    prior: PriorConfig = PriorConfig()
    momentum: float = Field(0.996, gt=0, lt=1)
    """Of the target network at the start; it rises in a line to 1 at 1.25 times the length."""


class PretrainOptimizerConfig(Config):
    """How the weights move: AdamW."""

    weight_decay: float = Field(0.04, ge=0)
    last_weight_decay: float = Field(0.4, ge=0)
    """It rises along half a cosine, and would be this at 1.25 times the length."""


class PretrainLoopConfig(LoopConfig):
    """How long to train, and how often to look; the schedule is that of MSN's code."""

    batch: int = Field(1024, ge=2)
    """Images per update, of all workers together; their mean assignment is compared."""
    warmup_lr: float = Field(2e-4, ge=0)
    min_lr: float = Field(1e-6, ge=0)
    max_grad_norm: float | None = Field(3.0, gt=0)
    """Of the network; prototypes are not clipped."""
    stretch: float = Field(1.25, ge=1)
    """The rate falls as in a run so many times as long, which is cut off."""
    ahead: int = Field(1, ge=0, le=1)
    """Updates by which the rate is ahead; with 1 the first update has what it ends with."""


class ProbeConfig(Config):
    """How features are looked at while they are learned."""

    neighbours: int = Field(20, ge=1)
    references: int = Field(10_000, ge=1)
    """Training images, at most, whose labels the neighbours lend."""
    temperature: float = Field(0.07, gt=0)
    """A neighbour counts exp(cosine / temperature)."""


class PretrainConfig(Config):
    """A run of pretraining."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"name", "training", "runtime", "probe"})
    """Sections that may change when a run is resumed."""

    name: str = "pretrain"
    seed: int = 0
    backbone: BackboneConfig = BackboneConfig(name="vit_small_patch16_224")
    data: ImagesConfig = ImagesConfig()
    views: ViewsConfig = ViewsConfig()
    msn: MsnConfig = MsnConfig()
    optimizer: PretrainOptimizerConfig = PretrainOptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    training: PretrainLoopConfig = PretrainLoopConfig()
    runtime: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _is_sound(self) -> PretrainConfig:
        msn, training = self.msn, self.training
        if msn.prior.kind != "uniform" and msn.sinkhorn == "uniform":
            raise ValueError(
                "msn.prior: Sinkhorn brings the targets to equal use of all prototypes, against "
                "the prior. Set msn.sinkhorn to prior, or to none with msn.weight 5"
            )
        if self.views.focal and self.views.focal_size == self.views.size:
            raise ValueError(
                "views.focal_size: is views.size, so that focal views could not be told from "
                "those whose patches are dropped. Make it smaller"
            )
        workers = max(1, self.runtime.workers)
        if training.batch % workers:
            divisors = [n for n in range(1, 65) if training.batch % n == 0]
            raise ValueError(
                f"training.batch: {training.batch} images are not equally many on each of "
                f"{workers} workers, as the mean over all of them needs. Take "
                f"{', '.join(map(str, divisors))} workers, or another batch"
            )
        if training.part is not None and training.part < training.batch // workers:
            raise ValueError(
                "training.part: batch normalisation and the mean assignment would see a part of "
                "the batch. Leave it out"
            )
        if self.runtime.sharded:
            raise ValueError(
                "runtime.sharded: the target network is whole on every worker. Set it to false"
            )
        if self.backbone.drop_path > 0 or self.backbone.weights is not None:
            raise ValueError("backbone: a network is trained from nothing, without dropped paths")
        return self


def total_length(config: LoopConfig, per_epoch: float) -> float:
    """Updates until the schedules would end."""
    return math.floor(config.stretch * config.epochs * per_epoch)
