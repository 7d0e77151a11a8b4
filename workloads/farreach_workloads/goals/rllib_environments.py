"""Our environments under their gymnasium ids in RLlib, in its remote workers too.

```
register_for_rllib()
SACConfig().environment("farreach/UFourRoomsGoal-v0")
SACConfig().environment("farreach/UFourRoomsGoal-v0", env_config={"goal": "full"})
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from ray import tune

from farreach.errors import ConfigError
from farreach.registry import environments
from farreach_workloads.goals import environments as _registers_environments  # noqa: F401
from farreach_workloads.goals.environments.export import (
    ExportedGoalEnvironment,
    as_goal_env,
    as_gymnasium,
)

GOALS = ("masked", "full")


def register_for_rllib() -> tuple[str, ...]:
    """Make every `farreach/…-v0` id known to RLlib; twice does no harm.

    A plain gymnasium id is known only where this package is imported, which a remote worker of
    RLlib does not do. `env_config` holds options of the environment's constructor and, for the goal
    environments, `goal`: `masked` (goals consist of the goal dims) or `full` (of whole
    observations, for policies trained with `features.goal: full`).

    Returns:
        The ids.
    """
    ids = tuple(sorted(name for name in gymnasium.registry if name.startswith("farreach/")))
    for name in ids:
        registered = gymnasium.spec(name).kwargs["name"]
        make = _goal_environment if name.endswith("Goal-v0") else as_gymnasium
        tune.register_env(name, partial(_create, make, registered))
    return ids


def _create(
    make: Callable[..., gymnasium.Env[Any, Any]], name: str, options: Mapping[str, Any]
) -> gymnasium.Env[Any, Any]:
    return make(name, **options)


def _goal_environment(
    name: str, *, goal: str = "masked", **options: Any
) -> ExportedGoalEnvironment:
    if goal not in GOALS:
        raise ConfigError(f"env_config: goal is {goal!r}. Known: {', '.join(GOALS)}.")
    if goal == "masked":
        return as_goal_env(name, **options)
    env = environments.get(name)(num_envs=1, rng=np.random.default_rng(0), **options)
    # The distances of the environments that have an id do not ask the spec where the goal is.
    env.spec = replace(env.spec, goal_dims=tuple(range(env.spec.observation_dim)))
    return ExportedGoalEnvironment(env)
