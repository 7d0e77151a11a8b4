"""Records a data set: the workload that `farreach data generate` runs.

Each episode has a generator of its own, from the seed and its number, so that the data do not
depend on how many tasks record them, nor on how often that was interrupted.
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from farreach import runtime, seeding
from farreach.actors.tasks import done_in_any_order
from farreach.cluster.demand import Demand
from farreach.config import Config as Section
from farreach.data.episodes import (
    ACTION,
    INDEX_FILE,
    OBSERVATION,
    ShardRecord,
    read_index,
    read_shard,
    write_index,
    write_shard,
)
from farreach.errors import DataError, EnvironmentFault
from farreach.progress import Progress
from farreach_workloads.goals.config import EnvironmentConfig
from farreach_workloads.goals.data import explore  # noqa: F401 (registers its behaviour)
from farreach_workloads.goals.data.behaviours import behaviours
from farreach_workloads.goals.environments.base import GoalEnvironment
from farreach_workloads.goals.environments.factory import make_environment

# Episode number (8) and step (4) of a row.
ROW_NUMBERS_BYTES = 12


class RecorderRuntimeConfig(Section):
    """Where the work is done."""

    placement: Literal["tasks", "inline"] = "tasks"
    """Ray tasks, or this process alone."""
    cpus: float = Field(1.0, gt=0)
    """CPUs that each task reserves."""


class GenerateConfig(Section):
    """A data set to record."""

    name: str = "data"
    seed: int = Field(0, ge=0)
    environment: EnvironmentConfig = EnvironmentConfig()
    behaviour: str = "random"
    """What acts; see `farreach list behaviours`."""
    episodes: int = Field(10_000, ge=1)
    steps: int = Field(1_000, ge=1)
    """Transitions of each episode."""
    episodes_per_shard: int = Field(500, ge=1)
    """Episodes that one task records together, into one file."""
    runtime: RecorderRuntimeConfig = RecorderRuntimeConfig()

    @model_validator(mode="after")
    def _behaviour_exists(self) -> GenerateConfig:
        behaviours.get(self.behaviour)
        return self


Config = GenerateConfig


def check(config: GenerateConfig) -> list[str]:
    """Make the environment once and record a step of it; how large the data set will be."""
    spec = make_environment(config.environment, 1).spec
    made = _Maker(config)
    behaviours.get(config.behaviour)(made, [np.random.default_rng(0)], 1)
    made.close()
    rows = config.episodes * (config.steps + 1)
    size = rows * (4 * (spec.observation_dim + spec.action_dim) + ROW_NUMBERS_BYTES)
    transitions, files = config.episodes * config.steps, _shards(config)
    return [f"{transitions:,} transitions, {size / 1e9:.2g} GB, {files} shards"]


def demand(config: GenerateConfig) -> list[Demand]:
    """What recording asks Ray for: a task for each file, of which one is enough to begin."""
    if config.runtime.placement == "inline":
        return []
    return [Demand("task", _shards(config), {"CPU": config.runtime.cpus}, least=1)]


def _shards(config: GenerateConfig) -> int:
    return -(-config.episodes // config.episodes_per_shard)


def generate(config: GenerateConfig, out: Path) -> None:
    """Record what is not there yet, and write the index.

    Raises:
        DataError: `out` holds another data set, or files that are none.
        FarreachError: what recording raised.
    """
    source = _source(config)
    shards = _recorded(out, source)
    count = _shards(config)
    missing = [number for number in range(count) if number not in shards]
    out.mkdir(parents=True, exist_ok=True)
    items = [(config, number, source, out.resolve()) for number in missing]
    inline, cpus = config.runtime.placement == "inline", config.runtime.cpus
    done = sum(shard.rows - shard.episodes for shard in shards.values())
    tasks = missing and not inline
    with (
        runtime.connection(demand(config), settings=("runtime.cpus",)) if tasks else nullcontext(),
        Progress(config.name, config.episodes * config.steps, "transitions") as progress,
        closing(done_in_any_order(record_shard, items, inline=inline, num_cpus=cpus)) as recorded,
    ):
        progress.update(done)
        for index, shard in recorded:
            shards[missing[index]] = shard
            done += shard.rows - shard.episodes
            progress.update(done, {"shards": f"{len(shards)}/{count}"})
    write_index(out, config.name, [shards[number] for number in range(count)])


def record_shard(
    config: GenerateConfig, number: int, source: dict[str, Any], out: Path
) -> ShardRecord:
    """Record the episodes of one file."""
    first = number * config.episodes_per_shard
    last = min(first + config.episodes_per_shard, config.episodes)
    rngs = [seeding.generator(config.seed, "episode", index) for index in range(first, last)]
    made = _Maker(config)
    observations, actions = behaviours.get(config.behaviour)(made, rngs, config.steps)
    diverged = made.close()
    if diverged:
        raise EnvironmentFault(
            f"{config.environment.name}: the physics of {diverged} episodes diverged, so they "
            "jump. Take another seed."
        )
    led = np.zeros((len(rngs), config.steps + 1, actions.shape[2]), np.float32)
    led[:, 1:] = actions
    columns = {
        OBSERVATION: observations.reshape(-1, observations.shape[2]),
        ACTION: led.reshape(-1, led.shape[2]),
    }
    lengths = [config.steps + 1] * len(rngs)
    return write_shard(out / shard_file(number), columns, lengths, first, source)


class _Maker:
    """Makes a behaviour's environments, and closes them when it is done."""

    def __init__(self, config: GenerateConfig) -> None:
        self._config = config.environment
        self._made: list[GoalEnvironment] = []

    def __call__(self, copies: int) -> GoalEnvironment:
        self._made.append(make_environment(self._config, copies))
        return self._made[-1]

    def close(self) -> int:
        """How many episodes diverged in all of them."""
        diverged = sum(getattr(env, "diverged", 0) for env in self._made)
        for env in self._made:
            env.close()
        return diverged


def shard_file(number: int) -> str:
    """Name of a shard."""
    return f"shard-{number:05}.arrow"


def _source(config: GenerateConfig) -> dict[str, Any]:
    """What decides the data's values, and nothing else."""
    return {"recorder": 1, **config.model_dump(mode="json", exclude={"name", "runtime"})}


def _recorded(out: Path, source: dict[str, Any]) -> dict[int, ShardRecord]:
    """The shards of this data set that an earlier call has written, by number."""
    if (out / INDEX_FILE).exists():
        _refuse_another(out / INDEX_FILE, read_index(out)["source"], source)
    shards = {}
    for path in sorted(out.glob("*.arrow")) if out.is_dir() else []:
        shard, _ = read_shard(path)
        _refuse_another(path, shard.source, source)
        shards[shard.first_episode // source["episodes_per_shard"]] = shard
    return shards


def _refuse_another(path: Path, found: dict[str, Any], source: dict[str, Any]) -> None:
    keys = sorted(key for key in found | source if found.get(key) != source.get(key))
    if keys:
        raise DataError(
            f"{path}: belongs to another data set, whose {', '.join(keys)} "
            f"{'differs' if len(keys) == 1 else 'differ'}. Name another folder, or delete this one."
        )
