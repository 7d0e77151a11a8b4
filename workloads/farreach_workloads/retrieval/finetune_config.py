"""Settings of supervised fine-tuning, and those of the paper's runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.config import differences as all_differences
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach_workloads.retrieval.config import ProbeConfig, RetrievalOptimizerConfig
from farreach_workloads.retrieval.encoder import EncoderConfig
from farreach_workloads.retrieval.mining import MiningConfig
from farreach_workloads.retrieval.models import whole_run
from farreach_workloads.retrieval.supervision import LabelledConfig


class LossConfig(Config):
    """How a question is told which text answers it."""

    temperature: float = Field(0.05, gt=0)
    chunk: int | None = Field(None, ge=1)
    """Texts that are encoded at a time, for batches that memory could not hold: each is encoded
    twice (GradCache, arXiv:2101.06983). None: all at once."""


class SecondPhaseConfig(MiningConfig):
    """Training on hard negatives that the encoder of a first phase has found."""

    first: str | None = None
    """Run of the first phase. None: it is trained first, with the same settings, in the cache."""
    begins_with: Literal["pretrained", "first"] = "pretrained"
    """Weights: those that the first phase began with, or those that it ended with."""

    _whole = field_validator("first")(whole_run)


class FinetuneLoopConfig(LoopConfig):
    """How long to train, and how often to look; an epoch shows every question once."""

    batch: int = Field(1024, ge=1)
    """Questions per update, of all workers together."""
    lr: float = Field(1e-5, gt=0)
    warmup_lr: float = Field(0.0, ge=0)
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "whole_cosine", "linear", "warmup_linear", "steps"] = (
        "warmup_linear"
    )


class FinetuneConfig(Config):
    """A run of fine-tuning."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"name", "training", "runtime", "probe", "chaos"}
    )
    """Sections that may change when a run is resumed."""

    name: str = "finetune"
    preset: Literal["msmarco", "multilingual", "few_shot"] | None = None
    """The run of the paper whose settings this one's are compared with: it says where they differ.
    None: it is compared with none."""
    seed: int = Field(0, ge=0)
    start: str | None = None
    """Run of pretraining or fine-tuning (or `latest`), or a folder in the layout of Hugging Face,
    whose encoder is to learn. None: one as `encoder` says."""
    encoder: EncoderConfig = EncoderConfig()
    """Its dropout counts for any encoder; the rest if `start` is None."""
    data: LabelledConfig = LabelledConfig()
    loss: LossConfig = LossConfig()
    second: SecondPhaseConfig | None = None
    """A second phase, on hard negatives; None: there is one phase alone."""
    optimizer: RetrievalOptimizerConfig = RetrievalOptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    training: FinetuneLoopConfig = FinetuneLoopConfig()
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()

    _whole = field_validator("start")(whole_run)

    @model_validator(mode="after")
    def _is_whole(self) -> FinetuneConfig:
        workers = max(1, self.runtime.workers)
        if self.training.part is not None and self.training.part * workers < self.training.batch:
            raise ValueError(
                "training.part: the questions of a batch are compared with one another's texts. "
                "Set loss.chunk, which gives the whole batch's gradient"
            )
        return self


class Preset(NamedTuple):
    """A run of the paper, how many updates it had, and how many of warm-up, where that is known."""

    config: FinetuneConfig
    updates: int | None
    warmup: int | None = None


_ASAM = RetrievalOptimizerConfig(kind="asam")

# The released code normalises all text here, whatever it is told.
_IN_BATCH = LabelledConfig(negatives=0, normalised=True)

PRESETS: Mapping[str, Preset] = {
    # Section A.2: two phases of as many updates; the radius of ASAM is not published, nor is a
    # warm-up, nor with which weights the second phase begins.
    "msmarco": Preset(
        FinetuneConfig(
            data=LabelledConfig(normalised=True), optimizer=_ASAM, second=SecondPhaseConfig()
        ),
        20_000,
    ),
    # Sections A.3 and B.2.
    "multilingual": Preset(FinetuneConfig(data=_IN_BATCH), 20_000, warmup=1000),
    # Table 3: 500 epochs, of which the best by the held-out tenth counts. Its optimizer is not
    # published; a thread of their repository names ASAM.
    "few_shot": Preset(
        FinetuneConfig(
            data=_IN_BATCH,
            optimizer=_ASAM,
            training=FinetuneLoopConfig(batch=256, epochs=500),
        ),
        None,
    ),
}
_OF_THE_METHOD = (
    "loss.temperature",
    "optimizer.",
    "encoder.dropout",
    "data.negatives",
    "data.hard_ratio",
    "data.hard_from",
    "data.normalised",
    "data.longest",
    "training.batch",
    "training.lr",
    "training.min_lr",
    "training.schedule",
    "training.max_grad_norm",
    "training.precision",
)


def differences(config: FinetuneConfig, updates: int) -> list[str]:
    """Where a run of so many updates differs from its preset, line by line; none without one."""
    if config.preset is None:
        return []
    other, theirs, warmup = PRESETS[config.preset]
    found = [
        change
        for change in all_differences(other, config)
        if change.startswith(_OF_THE_METHOD)
        or (theirs is None and change.startswith("training.epochs"))
    ]
    if theirs is not None and theirs != updates:
        found.append(f"updates: {theirs:,} -> {updates:,}")
    ours = round(updates * config.training.warmup_epochs / config.training.epochs)
    if warmup is not None and warmup != ours:
        found.append(f"updates of warm-up: {warmup:,} -> {ours:,}")
    if (other.second is None) != (config.second is None):
        phases = ["one", "two"][other.second is not None], ["one", "two"][config.second is not None]
        found.append(f"phases: {phases[0]} -> {phases[1]}")
    return [f"differs from {config.preset}: {change}" for change in found]
