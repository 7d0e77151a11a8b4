"""From offline to online: an online run that begins where an offline one ended.

It takes over the offline run's policy and critics with their optimisers, the measure of their
inputs, and a part of its data set: as random walks for network and memory, as experience for the
replay. From there on nothing is special: walks go out from what the memory holds, and everything
refreshes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach import afterwards, seeding
from farreach import config as configs
from farreach.console import say
from farreach.data.episodes import ACTION, INDEX_FILE, OBSERVATION, EpisodeStore
from farreach.data.fetched import here
from farreach.errors import ConfigError
from farreach.rundir import RunDirectory
from farreach_workloads.goals.data.layouts import holds_recording
from farreach_workloads.goals.environments.base import Floats, Ints
from farreach_workloads.goals.fresh.pipeline import imported

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig
    from farreach_workloads.goals.fresh.config import FreshRunConfig

# Settings in which both runs must agree, or the networks would not fit.
SHARED = ("environment.name", "environment.options", "features", "agent.network", "agent.hidden")


@dataclass(frozen=True)
class Continuation:
    """What an online run takes over.

    Attributes:
        agent: state of `GoalSac`.
        scale, unit: (d,), see `Features`.
        walks: (n, random steps + 1, d) pieces of the data set.
        observations, actions: (m, policy steps + 1, d) and (m, policy steps, a), other pieces.
    """

    agent: dict[str, Any]
    scale: Floats
    unit: Floats
    walks: Floats
    observations: Floats
    actions: Floats

    def walks_message(self) -> dict[str, Any]:
        """The walks as rollouts would send them: after no pursuit, before any step."""
        count = len(self.walks)
        return {
            "observations": self.walks,
            "goal_slot": np.full(count, -1),
            "goal_version": np.zeros(count, np.int64),
            "reached": np.zeros(count, np.bool_),
            "env_steps": 0,
        }


def load(config: GoalsRunConfig) -> Continuation:
    """Read the run and the data set that `config.start` names.

    Raises:
        ConfigError: there is no such run, no data set, or the two runs do not fit together.
        FarreachError: the folder holds no run, or its checkpoint or its recording is damaged.
    """
    assert config.start.run is not None
    run = RunDirectory.open(config.start.run)
    path = run.place
    offline: Any = configs.load(run.config_path).config
    _expect_fit(config, offline, path)
    checkpoint = afterwards.find_checkpoint(run, "best")
    if checkpoint is None:
        raise ConfigError(f"start.run: {path} has no checkpoint yet. Train it first.")
    learner = checkpoint.part("learner")
    store = _data_of(offline, path)
    rng = seeding.generator(config.seed, "continuation")
    steps, total = config.phases.random_steps, config.start.data_steps
    walks = _gathered(store, OBSERVATION, _pieces(store, steps, total // steps, rng))
    steps = config.phases.policy_steps
    rows = _pieces(store, steps, min(total, config.agent.replay_steps // 2) // steps, rng)
    bundle = learner["bundle"]
    return Continuation(
        learner["agent"],
        bundle["scale"],
        bundle["unit"],
        walks,
        _gathered(store, OBSERVATION, rows),
        _gathered(store, ACTION, rows[:, 1:]),
    )


def _data_of(offline: FreshRunConfig, path: str) -> EpisodeStore:
    """The data set of the offline run in `path`, the copy of it if it was in another layout.

    Raises:
        ConfigError: it is gone.
    """
    folder = here(offline.data.path)
    if (folder / INDEX_FILE).exists():
        return EpisodeStore.open(folder)
    if not holds_recording(folder):
        raise ConfigError(
            f"start.run: the data set of {path} is no longer at {folder}. Bring it back, or start "
            "in the folder that it was trained in."
        )
    return EpisodeStore.open(imported(offline, say))


def _gathered(store: EpisodeStore, column: str, rows: Ints) -> Floats:
    """(n, steps) rows → (n, steps, dim) float32."""
    return store[column][rows.ravel()].reshape(*rows.shape, -1).astype(np.float32, copy=False)


def _pieces(store: EpisodeStore, steps: int, count: int, rng: np.random.Generator) -> Ints:
    """Rows of pieces of episodes, (count, steps + 1), begun anywhere.

    Raises:
        ConfigError: no episode is long enough.
    """
    places = store.lengths - steps
    long = np.flatnonzero(places > 0)
    if not len(long):
        raise ConfigError(
            f"{store.path}: no episode has {steps} steps. Lower phases.random_steps and "
            "phases.policy_steps."
        )
    weights = places[long] / places[long].sum()
    episode = rng.choice(long, max(1, count), p=weights)
    begin = store.starts[episode] + (rng.random(len(episode)) * places[episode]).astype(np.int64)
    return begin[:, None] + np.arange(steps + 1)


def _expect_fit(config: GoalsRunConfig, offline: Any, path: str) -> None:
    if not hasattr(offline, "data") or getattr(offline.agent, "kind", None) != "sac":
        raise ConfigError(
            f"start.run: {path} is no offline run whose agent is SAC, and only that goes on online."
        )
    ours, theirs = (configs.flat(one.model_dump()) for one in (config, offline))
    for one in (ours, theirs):  # options of the environment are one thing, and copies are no matter
        one["environment.options"] = {
            k: v for k, v in one.items() if k.startswith("environment.options.")
        }
    keys = [
        key
        for key in ours.keys() & theirs.keys()
        if any(key == name or key.startswith(f"{name}.") for name in SHARED)
    ]
    differing = sorted(key for key in keys if ours[key] != theirs[key])
    if differing:
        found = ", ".join(f"{key} is {theirs[key]} there and {ours[key]} here" for key in differing)
        raise ConfigError(
            f"start.run: {path} does not fit: {found}. Set them to what they are there."
        )
