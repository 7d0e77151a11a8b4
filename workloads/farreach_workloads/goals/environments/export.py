"""Goal environments as gymnasium objects, for learners that are not ours.

```
import farreach_workloads.goals.environments      # registers the ids below

gymnasium.make("farreach/UFourRooms-v0")           # Box observation, no reward
gymnasium.make("farreach/UFourRoomsGoal-v0")       # Dict with achieved and desired goal
gymnasium.make_vec("farreach/Walker-v0", num_envs=64)
as_goal_env("gymnasium", id="PointMaze_UMaze-v3")  # any registered environment
```
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from farreach.errors import EnvironmentFault
from farreach.registry import environments
from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
)

# Enough for every category to be drawn about evenly.
_HELD_OUT_GOALS = 120
_TITLES = {"UFourRooms": "maze", "Walker": "walker", "PusherLike": "pusher"}


def _spaces(spec: GoalEnvironmentSpec) -> tuple[Box, Box]:
    """Observation and action space of one copy."""
    observation = Box(-np.inf, np.inf, (spec.observation_dim,), np.float32)
    return observation, Box(-1.0, 1.0, (spec.action_dim,), np.float32)


def _episode_steps(spec: GoalEnvironmentSpec) -> int:
    """Control steps of an evaluation episode: an action here is never repeated."""
    return spec.horizon * spec.action_repeat


class ExportedEnvironment(gymnasium.Env[Any, Floats]):
    """One copy, without reward; truncated after the control steps of an evaluation episode."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012

    def __init__(self, env: GoalEnvironment, render_mode: str | None = None) -> None:
        """Export `env`, a batch of one copy."""
        self._env = env
        self.render_mode = render_mode
        self.observation_space, self.action_space = _spaces(env.spec)
        self._current: Floats = np.zeros(env.spec.observation_dim, np.float32)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A new episode; everything random follows from `seed`."""
        super().reset(seed=seed)
        self._env.rng = self.np_random
        self._current = self._env.reset()[0]
        self._steps = 0
        return self._current, {}

    def step(self, action: Floats) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step; reward 0."""
        self._current = self._env.step(np.asarray(action)[None])[0]
        self._steps += 1
        return self._current, 0.0, False, self._steps >= _episode_steps(self._env.spec), {}

    def render(self) -> Any:
        """A picture, (height, width, 3) uint8, in the mode `rgb_array`."""
        if self.render_mode is None:
            return None
        frames = self._env.render(self._current[None])
        if frames is None:
            raise EnvironmentFault(
                f"{self._env.spec.name}: no picture could be made. It has none, or there is no "
                "OpenGL: install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa."
            )
        return frames[0]

    def close(self) -> None:
        """Close the copy."""
        self._env.close()


class ExportedGoalEnvironment(ExportedEnvironment):
    """One copy as a goal environment: `observation`, `achieved_goal`, `desired_goal`.

    The reward is sparse: 0 where the goal is reached, -1 elsewhere. Desired goals are held-out
    goals. `info["is_success"]` says whether the goal is reached.
    """

    def __init__(self, env: GoalEnvironment, render_mode: str | None = None) -> None:
        """Export `env`, a batch of one copy."""
        super().__init__(env, render_mode)
        goal = Box(-np.inf, np.inf, (len(env.spec.goal_dims),), np.float32)
        self.observation_space = Dict(
            {
                "observation": self.observation_space,
                "achieved_goal": goal,
                "desired_goal": goal,
            }
        )
        self._held_out: Floats | None = None
        self._desired: Floats = np.zeros(goal.shape, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """A new episode with a new desired goal."""
        super().reset(seed=seed)
        if self._held_out is None or seed is not None:
            self._held_out = self._env.goals(_HELD_OUT_GOALS, self.np_random)
        row = self._held_out[self.np_random.integers(_HELD_OUT_GOALS)]
        self._desired = row[list(self._env.spec.goal_dims)]
        return self._present(), self._info()

    def step(self, action: Floats) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One control step towards the desired goal."""
        _, _, terminated, truncated, _ = super().step(action)
        observation, info = self._present(), self._info()
        reward = self.compute_reward(observation["achieved_goal"], self._desired, info)
        return observation, float(reward), terminated, truncated, info

    def compute_reward(self, achieved_goal: Floats, desired_goal: Floats, info: Any) -> Any:
        """0 where the goal is reached, else -1: (k,), (k,) → () or (n, k), (n, k) → (n,)."""
        achieved = self._as_observations(np.atleast_2d(achieved_goal))
        desired = self._as_observations(np.atleast_2d(desired_goal))
        near = self._env.distance(achieved, desired) < self._env.spec.success_threshold
        rewards: NDArray[np.float32] = near.astype(np.float32) - np.float32(1)
        return rewards[0] if np.ndim(achieved_goal) == 1 else rewards

    def _as_observations(self, goals: Floats) -> Floats:
        """Observations whose goal dims are `goals`, (n, k) → (n, d); distances read no others."""
        rows = np.zeros((len(goals), self._env.spec.observation_dim), np.float32)
        rows[:, self._env.spec.goal_dims] = goals
        return rows

    def _present(self) -> dict[str, Floats]:
        achieved = self._current[list(self._env.spec.goal_dims)]
        return {
            "observation": self._current,
            "achieved_goal": achieved,
            "desired_goal": self._desired.copy(),
        }

    def _info(self) -> dict[str, Any]:
        achieved = self._current[list(self._env.spec.goal_dims)]
        return {"is_success": bool(self.compute_reward(achieved, self._desired, {}) == 0)}


class ExportedVectorEnvironment(VectorEnv[Floats, Floats, NDArray[Any]]):
    """All copies at once. They share one clock, so they are truncated and reset together.

    As gymnasium's `AutoresetMode.NEXT_STEP` says, the step after a truncation ignores its actions
    and returns the first observations of the next episode.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, env: GoalEnvironment) -> None:
        """Export the batch `env`."""
        self._env = env
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = _spaces(env.spec)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """New episodes, (num_envs, d); everything random follows from `seed`."""
        super().reset(seed=seed)
        self._env.rng = self.np_random
        self._steps = 0
        return self._env.reset(), {}

    def step(
        self, actions: Floats
    ) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One control step of every copy, or the reset after an episode's end; reward 0."""
        ended = self._steps >= _episode_steps(self._env.spec)
        if ended:
            self._steps = 0
            observations = self._env.reset()
        else:
            self._steps += 1
            observations = self._env.step(actions)
        none = np.zeros(self.num_envs, np.bool_)
        truncated = np.full(self.num_envs, self._steps >= _episode_steps(self._env.spec))
        return observations, np.zeros(self.num_envs), none, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Close the copies."""
        self._env.close()


def _build(name: str, num_envs: int, options: dict[str, Any]) -> GoalEnvironment:
    """A batch of the registered environment; its generator is replaced at the first reset."""
    env = environments.get(name)(num_envs=num_envs, rng=np.random.default_rng(0), **options)
    assert isinstance(env, GoalEnvironment)
    return env


def as_gymnasium(
    name: str, *, render_mode: str | None = None, **options: Any
) -> ExportedEnvironment:
    """A registered environment as a `gymnasium.Env` with a Box observation and no reward.

    Args:
        name: registered name, such as `maze`.
        render_mode: None or `rgb_array`.
        options: further arguments of the environment.

    Raises:
        RegistryError: no such environment.
    """
    return ExportedEnvironment(_build(name, 1, options), render_mode)


def as_goal_env(
    name: str, *, render_mode: str | None = None, **options: Any
) -> ExportedGoalEnvironment:
    """A registered environment as a goal environment with a Dict observation; see `as_gymnasium`.

    Relabelling learners may use it as it is: `compute_reward` takes batches.
    """
    return ExportedGoalEnvironment(_build(name, 1, options), render_mode)


def as_vector_env(name: str, *, num_envs: int = 1, **options: Any) -> ExportedVectorEnvironment:
    """A registered environment as a `gymnasium.vector.VectorEnv`; see `as_gymnasium`."""
    return ExportedVectorEnvironment(_build(name, num_envs, options))


def register() -> None:
    """Give gymnasium the ids `farreach/…-v0` and `farreach/…Goal-v0`; twice does no harm."""
    for title, name in _TITLES.items():
        if f"farreach/{title}-v0" in gymnasium.registry:
            continue
        gymnasium.register(
            id=f"farreach/{title}-v0",
            entry_point=f"{__name__}:as_gymnasium",
            vector_entry_point=f"{__name__}:as_vector_env",
            kwargs={"name": name},
        )
        gymnasium.register(
            id=f"farreach/{title}Goal-v0",
            entry_point=f"{__name__}:as_goal_env",
            kwargs={"name": name},
        )
