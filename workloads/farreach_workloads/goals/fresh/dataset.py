"""Whether there are data for a run, and whether they are of its environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farreach import datasets
from farreach.data.episodes import INDEX_FILE, EpisodeStore
from farreach.data.fetched import here
from farreach.errors import ConfigError, DataError
from farreach_workloads.goals.config import EnvironmentConfig
from farreach_workloads.goals.data.layouts import holds_recording, open_recording
from farreach_workloads.goals.environments.base import GoalEnvironment
from farreach_workloads.goals.environments.factory import transition_options

if TYPE_CHECKING:
    from farreach_workloads.goals.fresh.config import FreshRunConfig


def check_data(config: FreshRunConfig, env: GoalEnvironment) -> list[str]:
    """See that there will be data of this environment; what the user should know of them.

    Recorded episodes in another layout are taken too, whatever configuration there is to record
    others from.

    Raises:
        ConfigError: there are none and no configuration to record them from, or it records another
            environment.
        DataError: there are, of another environment, or in no known layout.
    """
    path, source = here(config.data.path), config.data.config
    if (path / INDEX_FILE).exists():
        store = EpisodeStore.open(path)
        expect_fit(store, config.environment, env)
        return [] if source is None else _notes(store, source, config.environment)
    if source is None or holds_recording(path):
        if not path.exists():
            raise ConfigError(
                f"data.path: there is nothing at {path}. Record a data set with `farreach data "
                "generate`, correct the path, or set data.config to have one recorded."
            )
        layout = open_recording(path).layout
        if source is None:
            return []
        return [f"{path} holds episodes already ({layout}), so that {source} records none"]
    recorded = datasets.load(source)[0].environment
    if not _are_same(recorded, config.environment):
        raise ConfigError(
            f"data.config: {source} records {_named(recorded)}, the run's environment is "
            f"{_named(config.environment)}. Correct one of the two."
        )
    return []


def expect_fit(store: EpisodeStore, environment: EnvironmentConfig, env: GoalEnvironment) -> None:
    """See that a data set is of an environment, by its dims and by what its index says.

    Raises:
        DataError: it is not.
    """
    found = (store["observation"].dim, store["action"].dim)
    expected = (env.spec.observation_dim, env.spec.action_dim)
    if found != expected:
        raise DataError(
            f"{store.path}: has {found[0]} observation and {found[1]} action dims, environment "
            f"{env.spec.name!r} has {expected[0]} and {expected[1]}. Correct data.path or "
            "environment."
        )
    match store.info["source"].get("environment"):
        case {"name": str(name), "options": dict(options)}:
            recorded = EnvironmentConfig(name=name, options=options)
        case str(name):  # copies of recordings once kept the name alone
            recorded = EnvironmentConfig(name=name, options=environment.options)
        case _:
            return
    if not _are_same(recorded, environment):
        raise DataError(
            f"{store.path}: was recorded in {_named(recorded)}, the run's environment is "
            f"{_named(environment)}. Correct data.path or environment."
        )


def _are_same(one: EnvironmentConfig, other: EnvironmentConfig) -> bool:
    """Whether transitions of one environment are transitions of the other."""
    return one.name == other.name and transition_options(one) == transition_options(other)


def _named(environment: EnvironmentConfig) -> str:
    return f"{environment.name!r} with options {environment.options}"


def _notes(store: EpisodeStore, source: str, environment: EnvironmentConfig) -> list[str]:
    """What is otherwise than in the configuration that would have recorded the data."""
    found = store.info["source"]
    if "layout" in found:  # a copy of a recording
        return []
    try:
        recorder = datasets.load(source)[0]
    except ConfigError:  # nobody needs it: the data are there
        return []
    asked = recorder.model_dump(mode="json")
    recorded = getattr(recorder, "environment", None)
    if isinstance(recorded, EnvironmentConfig) and _are_same(recorded, environment):
        del asked["environment"]  # as that of the data is, however it is written
    differing = [
        f"{key} {found[key]} instead of {asked[key]}"
        for key in sorted(found.keys() & asked.keys())
        if found[key] != asked[key]
    ]
    if not differing:
        return []
    return [f"{store.path} holds other data than {source} records: {', '.join(differing)}"]
