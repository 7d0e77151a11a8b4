"""From a configuration to an environment."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach import registry
from farreach.errors import ConfigError, EnvironmentFault
from farreach_workloads.goals import environments as _registers_environments  # noqa: F401
from farreach_workloads.goals.environments.base import GoalEnvironment

if TYPE_CHECKING:
    from farreach_workloads.goals.config import EnvironmentConfig


def make_environment(config: EnvironmentConfig, num_envs: int) -> GoalEnvironment:
    """The configured environment with `num_envs` copies; its `rng` is a placeholder.

    Raises:
        ConfigError: unknown name or options that the constructor refuses.
        EnvironmentFault: the environment itself is unsuitable.
    """
    factory = registry.environments.get(config.name)
    try:
        return factory(num_envs, np.random.default_rng(0), **config.options)
    except TypeError as error:
        raise ConfigError(
            f"environment.options does not fit environment {config.name!r}: {error}. Write it as "
            "environment.options.NAME=VALUE; `farreach data` takes --environment "
            f"{config.name}:NAME=VALUE."
        ) from error


def transition_options(config: EnvironmentConfig) -> dict[str, Any]:
    """The options that recorded transitions depend on, as JSON; defaults stand for those left out.

    Raises:
        RegistryError: unknown name.
    """
    factory = registry.environments.get(config.name)
    parameters = inspect.signature(factory).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    free = getattr(factory, "FREE_OPTIONS", GoalEnvironment.FREE_OPTIONS)
    kept = {key: v for key, v in (defaults | config.options).items() if key not in free}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def check_environment(config: EnvironmentConfig) -> None:
    """Make the environment once and see that it keeps its contract, before any actor starts."""
    env = make_environment(config, 1)
    spec = env.spec
    for what, observations in (
        ("reset", env.reset()),
        ("step", env.step(np.zeros((1, spec.action_dim)))),
    ):
        if observations.shape != (1, spec.observation_dim):
            raise EnvironmentFault(
                f"environment {spec.name!r}: {what} returned shape {observations.shape}, its spec "
                f"says (1, {spec.observation_dim}). Mend observation_dim or {what}."
            )
        if not np.isfinite(observations).all():
            raise EnvironmentFault(
                f"environment {spec.name!r}: {what} returned NaN or infinity. Mend {what}."
            )
    env.close()
