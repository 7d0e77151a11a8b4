"""Settings of the loop and of its workers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from farreach.config import Config


class LoopConfig(Config):
    """How long to train, on how many samples at a time, and how often to look."""

    epochs: float = Field(10.0, gt=0)
    batch: int = Field(256, ge=1)
    """Samples per update, of all workers together."""
    part: int | None = Field(None, ge=1)
    """Samples per forward pass of one worker; a larger share of the batch is accumulated."""
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False
    """Let torch.compile make the model faster; its first updates take a minute or more."""
    max_grad_norm: float | None = Field(None, gt=0)
    lr: float = Field(1e-3, gt=0)
    """The highest learning rate, for the whole batch as it is."""
    warmup_epochs: float = Field(0.0, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    schedule: Literal["cosine", "whole_cosine", "linear", "warmup_linear", "steps"] = "cosine"
    """How the rate falls after the warm-up: along half a cosine to `min_lr`, along the rest of one
    that begins with the run, in a line (of one that begins with the run, or with the end of the
    warm-up), or to a tenth at each of `drops`."""
    stretch: float = Field(1.0, ge=1)
    """The rate falls as in a run so many times as long, which is cut off."""
    ahead: int = Field(0, ge=0, le=1)
    """Updates by which the rate is ahead; with 1 the first update has what it ends with."""
    drops: tuple[float, ...] = ()
    """Epochs after which the rate of schedule `steps` falls."""
    min_lr: float = Field(1e-5, ge=0)
    repeats: int = Field(1, ge=1)
    """Views of a sample in a row (repeated augmentation); an epoch stays as long."""
    max_minutes: float | None = Field(None, gt=0)
    """Wall-clock limit of training; a rate that falls with time then takes it as the whole."""
    evaluate_every_epochs: float = Field(1.0, gt=0)
    evaluate_first: bool = False
    """Before the first update too, to see what training adds; no best checkpoint comes of it."""
    patience: int | None = Field(None, ge=1)
    """Evaluations in a row that bring no better score, after which training ends early; the best
    checkpoint is kept anyway. None: it never does."""
    checkpoint_every_epochs: float = Field(1.0, gt=0)
    """What an evaluation finds to be better than all before is saved besides."""
    keep_checkpoints: int = Field(2, ge=1)


class WorkersConfig(Config):
    """Where the loop runs."""

    workers: int = Field(0, ge=0)
    """Ray Train workers; 0: in this process, without Ray."""
    min_workers: int | None = Field(None, ge=1)
    """With fewer than `workers` training goes on as long as there are so many, and takes in more as
    they come, for which it saves and begins anew from there; None: it waits for all."""
    grow_every_s: float = Field(60.0, gt=0)
    """With `min_workers`, seconds between two looks at whether there is room for more."""
    cpus: float = Field(1.0, gt=0)
    """CPUs that each worker reserves."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that each worker reserves; above 0 it computes there."""
    resources: dict[str, float] = Field({})
    """What each worker reserves besides of the cluster's own resources, by which a cluster tells
    its kinds of machines apart: `{learner: 1}`."""
    sharded: bool = False
    """Split parameters, gradients and the optimizer's state over the workers (FSDP2), for models
    that do not fit on one; otherwise each worker has all of them (DDP)."""
    threads: int = Field(1, ge=1)
    """Torch threads of each worker."""
    loaders: int = Field(0, ge=0)
    """Processes per worker that prepare its samples; 0: the worker does it itself."""
    evaluators: int = Field(0, ge=0, le=1)
    """1: a process beside the workers evaluates their checkpoints while training goes on, with as
    many CPUs and GPUs of its own as a worker has (with `min_workers` none, and on CPUs); 0: they
    stop training and do it themselves."""
    max_failures: int = Field(3, ge=0)
    """Deaths of workers after which the run gives up; each resumes from the last checkpoint. As
    many deaths of the evaluator are forgiven besides."""

    @model_validator(mode="after")
    def _evaluator_has_workers(self) -> WorkersConfig:
        if self.evaluators > 0 and self.workers == 0:
            raise ValueError(
                "evaluators: 1 evaluates beside workers of Ray Train, and workers is 0, which "
                "trains without Ray. Set workers to 1 or more, or evaluators to 0"
            )
        return self

    @model_validator(mode="after")
    def _least_is_not_more(self) -> WorkersConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers: {self.min_workers} are more than workers, {self.workers}. Lower it"
            )
        return self
