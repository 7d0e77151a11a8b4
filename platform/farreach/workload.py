"""What a workload is: a module that a configuration names with its key `workload`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from farreach.checkpoint import Checkpoint
from farreach.cluster.demand import Demand
from farreach.config import Config
from farreach.errors import ConfigError
from farreach.registry import near_match
from farreach.rundir import RunDirectory

Format = Literal["rllib", "timm", "safetensors", "onnx", "hub"]


class Evaluation(NamedTuple):
    """What `farreach evaluate RUN NAME key=value` does; its docstring's first line is its help.

    Attributes:
        run: (config of the run, its directory, checkpoint, settings) → metrics.
        settings: their model, every one with a default.
    """

    run: Callable[[Any, RunDirectory, Checkpoint, Any], dict[str, float]]
    settings: type[Config]


class Workload(Protocol):
    """What a module must have to be named by a configuration.

    Its `Config` has at least the fields `name` and `seed`. Metrics are called `group/name`.

    A workload whose models other software can use also has `export(config, run, checkpoint, out,
    fmt)`: it makes the folder `out`, whole or not at all, and returns its path. One whose runs can
    begin with what others have left also has `check_start(config)`: it raises as `check` does, but
    is not asked when a run that has begun is resumed. One whose models look at images also has
    `plot_images(config, run, checkpoint, images, out)`: pictures of the user's own, in a folder.
    One with other evaluations than that of training has `EVALUATIONS`: name → `Evaluation`.
    """

    Config: type[Config]

    def check(self, config: Any) -> list[str]:
        """Raise ConfigError or EnvironmentFault before any actor starts; notes for the user."""

    def demand(self, config: Any) -> list[Demand]:
        """What the run asks Ray for, which is also what it reserves; nothing without Ray."""

    def run(
        self, config: Any, run: RunDirectory, checkpoint: Checkpoint | None
    ) -> dict[str, float]:
        """Train, from the checkpoint if there is one; the final metrics.

        When asked to stop (see `StopRequest`), write a last checkpoint and raise Stopped.
        """

    def evaluate(
        self, config: Any, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
    ) -> dict[str, float]:
        """Metrics of a checkpoint; `episodes` None stands for what the config says."""

    def plot(self, config: Any, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
        """Draw the figures of a run; the files."""


def workload_named(name: str) -> Workload:
    """The module of that name, as configurations have it."""
    return cast(Workload, importlib.import_module(name))


def evaluation_of(workload: Workload, name: str) -> Evaluation:
    """An evaluation of a workload; raises ConfigError with a near match."""
    known: Mapping[str, Evaluation] = getattr(workload, "EVALUATIONS", {})
    if name not in known:
        raise ConfigError(f"there is no evaluation {name!r} here. {near_match(name, list(known))}")
    return known[name]
