"""From a configuration to a data set: load, check, record.

A configuration of a data set names a module as its `workload` that has `Config`, `check` and
`generate` where one that trains has `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from farreach import config as configs
from farreach.config import Config
from farreach.console import say
from farreach.data.episodes import EpisodeStore
from farreach.errors import ConfigError
from farreach.imports import imported

ROOT = Path("data")


class DataWorkload(Protocol):
    """What a module must have that a data set's configuration names."""

    Config: type[Config]

    def check(self, config: Any) -> list[str]:
        """Raise ConfigError or EnvironmentFault before anything starts; notes for the user."""

    def generate(self, config: Any, out: Path) -> None:
        """Record what is not in the folder yet."""


def generate(
    config_name: str, overrides: Sequence[str] = (), out: Path | None = None
) -> EpisodeStore:
    """Record a data set, or the rest of one that was begun.

    Args:
        config_name: a file, or a shipped configuration such as `data/maze_random`.
        overrides: such as `seed=1`.
        out: the folder, by default `data/` and the name in the configuration.

    Raises:
        ConfigError: the configuration is wrong or trains instead.
        FarreachError: what recording raised.
    """
    config, workload = load(config_name, overrides)
    for note in workload.check(config):
        say(f"note      {note}")
    folder = ROOT / config.name if out is None else out
    workload.generate(config, folder)
    return EpisodeStore.open(folder)


def load(config_name: str, overrides: Sequence[str] = ()) -> tuple[Any, DataWorkload]:
    """The configuration of a data set and what records it; ConfigError if it is none."""
    loaded = configs.load(configs.find(config_name), overrides)
    module = imported(loaded.workload)
    if not hasattr(module, "generate"):
        raise ConfigError(
            f"{loaded.path}: trains and describes no data set. Use `farreach train {config_name}`, "
            "or name one of the configurations below data/: see `farreach list configs`."
        )
    return loaded.config, cast(DataWorkload, module)
