"""Settings of each method of self-supervised pretraining; defaults are those of its paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from farreach.config import Config


class PriorConfig(Config):
    """How often prototypes are expected to be used."""

    kind: Literal["uniform", "power", "shares"] = "uniform"
    """Equally (MSN), as a power law (PMSN), or as a list says."""
    exponent: float = Field(0.25, ge=0)
    """Of the power law."""
    shares: tuple[float, ...] = ()
    """Of classes, each spread over as many prototypes as any other; they sum to 1."""

    @model_validator(mode="after")
    def _shares_are_given_where_they_count(self) -> PriorConfig:
        if (self.kind == "shares") != bool(self.shares):
            raise ValueError("shares: belong to kind shares, and only there. Correct one of them")
        if self.shares and (abs(sum(self.shares) - 1) > 1e-3 or min(self.shares) <= 0):
            raise ValueError(
                f"shares: sum to {sum(self.shares):g}, the smallest is {min(self.shares):g}. All "
                "must be above 0 and sum to 1: divide them by their sum"
            )
        return self


class MsnConfig(Config):
    """Masked Siamese networks (MSN, arXiv:2204.07141); with another prior PMSN (2210.07277)."""

    kind: Literal["msn"] = "msn"
    mask: float = Field(0.15, ge=0, lt=1)
    """Share of the patches of large views that is dropped."""
    mask_sharing: Literal["batch", "sample"] = "batch"
    """Whether all images of a batch keep the same patches, or each its own."""
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
    """Of the target network at the start; it rises in a line to 1 where the schedules end."""

    @model_validator(mode="after")
    def _targets_follow_the_prior(self) -> MsnConfig:
        if self.prior.kind != "uniform" and self.sinkhorn == "uniform":
            raise ValueError(
                "prior: Sinkhorn brings the targets to equal use of all prototypes, against the "
                "prior. Set method.sinkhorn to prior, or to none with method.weight 5"
            )
        return self


class SwavConfig(Config):
    """SwAV (arXiv:2006.09882), as SEER scales it (2103.01988, 2202.08360)."""

    kind: Literal["swav"] = "swav"
    prototypes: int = Field(3000, ge=2)
    dim: int = Field(128, ge=2)
    hidden: tuple[int, ...] = (2048,)
    """Widths of the head between features and embeddings."""
    normalised: bool = True
    """Whether the head has batch normalisation."""
    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, ge=0.025)
    """Temperature of the codes; below it they would underflow."""
    iterations: int = Field(3, ge=1)
    """Of Sinkhorn."""
    prior: PriorConfig = PriorConfig()
    frozen_updates: int = Field(313, ge=0)
    """Updates at the start in which the prototypes stay."""
    queue: int = Field(0, ge=0)
    """Earlier embeddings, of all workers, that the codes of a small batch are balanced with."""
    queue_after_epochs: float = Field(15.0, ge=0)


class DinoConfig(Config):
    """DINO (arXiv:2104.14294), as XCiT and ResMLP report it."""

    kind: Literal["dino"] = "dino"
    prototypes: int = Field(65536, ge=2)
    dim: int = Field(256, ge=2)
    hidden: int = Field(2048, ge=2)
    normalised: bool = False
    """Whether the head has batch normalisation."""
    temperature: float = Field(0.1, gt=0)
    target_temperature: float = Field(0.04, gt=0)
    first_target_temperature: float = Field(0.04, gt=0)
    """At the start; it goes in a line to the other in `target_warmup_epochs`."""
    target_warmup_epochs: float = Field(0.0, ge=0)
    center_momentum: float = Field(0.9, ge=0, lt=1)
    momentum: float = Field(0.996, gt=0, lt=1)
    """Of the target network at the start; it rises along half a cosine to 1."""
    frozen_epochs: float = Field(1.0, ge=0)
    """At the start, in which the last layer stays."""


class SimclrConfig(Config):
    """SimCLR (arXiv:2002.05709)."""

    kind: Literal["simclr"] = "simclr"
    dim: int = Field(128, ge=2)
    hidden: int = Field(2048, ge=2)
    temperature: float = Field(0.1, gt=0)


class VicregConfig(Config):
    """VICReg (arXiv:2105.04906)."""

    kind: Literal["vicreg"] = "vicreg"
    dim: int = Field(8192, ge=2)
    hidden: tuple[int, ...] = (8192, 8192)
    invariance: float = Field(25.0, ge=0)
    variance: float = Field(25.0, ge=0)
    covariance: float = Field(1.0, ge=0)


class MaeConfig(Config):
    """Masked autoencoders (arXiv:2111.06377)."""

    kind: Literal["mae"] = "mae"
    mask: float = Field(0.75, gt=0, lt=1)
    width: int = Field(512, ge=2)
    """Of the decoder."""
    depth: int = Field(8, ge=1)
    heads: int = Field(16, ge=1)
    normalised: bool = True
    """Whether each patch's pixels are to be found up to their mean and spread."""


MethodConfig = Annotated[
    MsnConfig | SwavConfig | DinoConfig | SimclrConfig | VicregConfig | MaeConfig,
    Field(discriminator="kind"),
]
