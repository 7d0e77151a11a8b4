"""Any gymnasium environment: made with clear errors, and stepped as many copies in a loop."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict

from farreach.errors import ConfigError, EnvironmentFault, RegistryError
from farreach_workloads.goals.environments.base import Floats

GOAL_KEYS = ("achieved_goal", "observation", "desired_goal")


class _PlainEnum:
    """An enum of MuJoCo whose members are plain integers."""

    def __init__(self, enum: Any) -> None:
        self._enum = enum

    def __getattr__(self, name: str) -> int:
        return int(getattr(self._enum, name))


class _MujocoWithPlainJointTypes:
    """The mujoco module, but for `mjtJoint`, whose members are plain integers."""

    mjtJoint = _PlainEnum(mujoco.mjtJoint)  # noqa: N815, mujoco's name

    def __getattr__(self, name: str) -> Any:
        return getattr(mujoco, name)


def mend_joint_helpers() -> None:
    """Make gymnasium-robotics' joint helpers work with mujoco 3.17.

    They ask whether a joint's type, a NumPy integer, is in a tuple of enum members, which is never
    so in these versions, and Fetch, Hand and FrankaKitchen stop with an AssertionError.
    """
    from gymnasium_robotics.utils import mujoco_utils

    mujoco_utils.mujoco = _MujocoWithPlainJointTypes()


def make_gymnasium(name: str, make: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """A gymnasium environment without time limit, gymnasium-robotics' included.

    Args:
        name: gymnasium id.
        make: further arguments of `gymnasium.make`.

    Raises:
        RegistryError: there is no such id.
        ConfigError: the environment refuses an argument.
        EnvironmentFault: a package that the environment needs is missing.
    """
    if name not in gymnasium.registry:
        # Its import prints a notice about the rewards of Adroit's hands, whatever is asked for.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
    entry_point = getattr(gymnasium.registry.get(name), "entry_point", None)
    if str(entry_point).startswith("gymnasium_robotics."):
        mend_joint_helpers()
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(
            name, max_episode_steps=-1, disable_env_checker=True, **make
        )
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvironmentFault(f"{name}: {error}. Install what it names.") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=1)
        mend = f"Did you mean {near[0]!r}?" if near else "gymnasium.registry holds all ids."
        raise RegistryError(f"environment.id: no {name!r} in gymnasium. {mend}") from error
    except TypeError as error:
        raise ConfigError(f"environment.make: {name} refuses {dict(make)}: {error}") from error
    _remove_model_file(env)
    return env


def _remove_model_file(env: gymnasium.Env[Any, Any]) -> None:
    """Remove what a maze of gymnasium-robotics was loaded from, which it leaves in /tmp."""
    file = getattr(env.unwrapped, "tmp_xml_file_path", None)
    # Old versions share a file between processes, one of which may be about to read it.
    if file is not None and Path(file).name != "ant_maze.xml":
        with contextlib.suppress(OSError):
            Path(file).unlink()


def _flat_box(name: str, space: gymnasium.Space[Any], what: str) -> Box:
    """`space`, if it is a vector Box; EnvironmentFault otherwise."""
    if isinstance(space, Box) and len(space.shape) == 1:
        return space
    raise EnvironmentFault(
        f"{name}: its {what} space is {space}, but only a Box of shape (d,) can be used. Register "
        "a version of it that is wrapped to have one (gymnasium.wrappers)."
    )


def _goal_boxes(name: str, space: Dict) -> tuple[Box, ...]:
    """The Boxes of a goal environment's Dict, in the order of `GOAL_KEYS`."""
    missing = [key for key in GOAL_KEYS if key not in space.spaces]
    if missing:
        raise EnvironmentFault(
            f"{name}: its observation is a Dict without {', '.join(missing)}; a goal environment "
            f"has {', '.join(GOAL_KEYS)}. Register a flattened version of it."
        )
    return tuple(_flat_box(name, space[key], key) for key in GOAL_KEYS)


class ObservationReader:
    """Turns an environment's observations into rows: the achieved goal first, if there is one."""

    def __init__(self, name: str, space: gymnasium.Space[Any]) -> None:
        """Reader of the environment `name`; raises EnvironmentFault if the space is unusable."""
        self._name = name
        self.has_goal = isinstance(space, Dict)
        if isinstance(space, Dict):
            achieved, observation, _ = _goal_boxes(name, space)
            self.goal_dim = achieved.shape[0]
            self._shapes = {"achieved_goal": achieved.shape, "observation": observation.shape}
        else:
            self.goal_dim = _flat_box(name, space, "observation").shape[0]
            self._shapes = {"observation": (self.goal_dim,)}
        self.dim = sum(shape[0] for shape in self._shapes.values())

    def row(self, observation: Any) -> Floats:
        """One observation as (dim,) float64; raises EnvironmentFault on a wrong shape or NaN."""
        parts = observation if self.has_goal else {"observation": observation}
        values = []
        for key, shape in self._shapes.items():
            value = np.asarray(parts[key], np.float64)
            if value.shape != shape:
                raise EnvironmentFault(
                    f"{self._name}: its {key} has shape {value.shape} but its space says {shape}. "
                    "gymnasium.utils.env_checker.check_env finds such faults."
                )
            values.append(value)
        row = np.concatenate(values)
        if not np.isfinite(row).all():
            raise EnvironmentFault(
                f"{self._name}: observation {np.flatnonzero(~np.isfinite(row)).tolist()} is NaN or "
                "infinite. Check that the policy's actions are finite, then the environment."
            )
        return row


class GymnasiumCopies:
    """Copies of one environment, stepped one after the other.

    Actions in [-1, 1] are rescaled to the environment's bounds. A copy whose environment ends holds
    its last observation until the next reset, unless it ended because the environment's own desired
    goal was reached, which means nothing here.
    """

    def __init__(
        self,
        name: str,
        envs: Sequence[Any],
        success_threshold: float,
        reset_options: dict[str, Any] | None,
    ) -> None:
        """Take over `envs`.

        Args:
            name: gymnasium id, for errors.
            envs: the copies.
            success_threshold: distance between achieved and desired goal below which an end counts
                as success.
            reset_options: handed to every reset.

        Raises:
            EnvironmentFault: unusable observation or action space.
        """
        self.reader = ObservationReader(name, envs[0].observation_space)
        action_space = _flat_box(name, envs[0].action_space, "action")
        if not action_space.is_bounded():
            raise EnvironmentFault(
                f"{name}: its action space {action_space} has no bounds. Wrap it in "
                "gymnasium.wrappers.ClipAction or RescaleAction and register the wrapped one."
            )
        self.action_dim = action_space.shape[0]
        self._centre = (action_space.high.astype(np.float64) + action_space.low) / 2
        self._half_width = (action_space.high.astype(np.float64) - action_space.low) / 2
        self._action_dtype = action_space.dtype
        self._envs = envs
        self._success_threshold = success_threshold
        self._reset_options = reset_options
        self._rows = np.zeros((len(envs), self.reader.dim))
        self._ended = np.zeros(len(envs), np.bool_)

    def reset(self, rng: np.random.Generator) -> Floats:
        """Reset every copy with a seed of its own, (num_envs, d) float32."""
        return self.scatter([rng] * len(self._envs))

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Reset every copy with a seed from its own generator, (num_envs, d) float32."""
        for index, (env, rng) in enumerate(zip(self._envs, rngs, strict=True)):
            self._rows[index] = self.reader.row(self._reset(env, rng))
        self._ended[:] = False
        return self._rows.astype(np.float32)

    def _reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> Any:
        observation, _ = env.reset(seed=int(rng.integers(2**31)), options=self._reset_options)
        return observation

    def sample_desired(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Reset the first copy: its observation, (d,), and the goal it would be given, (k,)."""
        observation = self._reset(self._envs[0], rng)
        return self.reader.row(observation), np.asarray(observation["desired_goal"], np.float64)

    def step(self, actions: Floats) -> Floats:
        """Step every copy that has not ended, (num_envs, a) → (num_envs, d) float32."""
        scaled = self._centre + self._half_width * np.clip(actions, -1.0, 1.0)
        scaled = scaled.astype(self._action_dtype)
        for index in np.flatnonzero(~self._ended).tolist():
            observation, _, terminated, truncated, _ = self._envs[index].step(scaled[index])
            self._rows[index] = self.reader.row(observation)
            self._ended[index] = truncated or (terminated and not self._is_success(observation))
        return self._rows.astype(np.float32)

    def _is_success(self, observation: Any) -> bool:
        """Whether the environment's own desired goal is reached."""
        if not self.reader.has_goal:
            return False
        gap = np.subtract(observation["achieved_goal"], observation["desired_goal"])
        return bool(np.linalg.norm(gap) <= self._success_threshold)

    @property
    def all_ended(self) -> bool:
        """Whether no copy will move before the next reset."""
        return bool(self._ended.all())

    def close(self) -> None:
        """Close every copy."""
        for env in self._envs:
            env.close()


def repeated_goal_dims(copies: GymnasiumCopies, rng: np.random.Generator) -> tuple[int, ...]:
    """Dims of a row, behind the achieved goal, that repeat it value by value; () if none do.

    Found by watching a few random steps of the given copies.
    """
    rows = []
    for _ in range(2):
        rows.append(copies.reset(rng))
        for _ in range(6):
            actions = rng.uniform(-1, 1, (len(rows[0]), copies.action_dim))
            rows.append(copies.step(actions))
    seen = np.concatenate(rows)
    found: list[int] = []
    for goal_dim in range(copies.reader.goal_dim):
        rest = seen[:, copies.reader.goal_dim :]
        equal = np.flatnonzero((rest == seen[:, goal_dim, None]).all(axis=0))
        equal = equal[~np.isin(equal + copies.reader.goal_dim, found)]
        if len(equal) == 0:
            return ()
        found.append(int(equal[0]) + copies.reader.goal_dim)
    return tuple(found)
