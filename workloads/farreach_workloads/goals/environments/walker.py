"""dm_control's planar walker with the twelve body poses of RoboYoga as goals.

The physics, the observation and the reset are dm_control's; only the Python around them is
replaced, by MuJoCo's batched stepping.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from farreach.errors import ConfigError, EnvironmentFault
from farreach.registry import environments
from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
    Ints,
)
from farreach_workloads.goals.environments.batched_physics import BatchedPhysics
from farreach_workloads.goals.environments.frames import LazyFrames

SUBSTEPS = 10  # of 0.0025 s
SUCCESS_THRESHOLD = 0.7
# Joint positions (z, x, torso, right hip, knee, ankle, left hip, knee, ankle) of each goal;
# the name first.
POSES: dict[str, tuple[float, ...]] = {
    "lie_back": (-1.2, 0.0, -1.57, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "lie_front": (-1.2, 0.0, 1.57, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "legs_up": (-1.24, 0.0, -1.57, 1.57, 0.0, 0.0, 1.57, 0.0, 0.0),
    "kneel": (-0.5, 0.0, 0.0, 0.0, -1.57, -0.8, 1.57, -1.57, 0.0),
    "side_angle": (-0.3, 0.0, 0.9, 0.0, 0.0, -0.7, 1.87, -1.07, 0.0),
    "stand_up": (-0.15, 0.0, 0.34, 0.74, -1.34, 0.0, 1.1, -0.66, -0.1),
    "lean_back": (-0.27, 0.0, -0.45, 0.22, -1.5, 0.86, 0.6, -0.8, -0.4),
    "boat": (-1.04, 0.0, -0.8, 1.6, 0.0, 0.0, 1.6, 0.0, 0.0),
    "bridge": (-1.1, 0.0, -2.2, -0.3, -1.5, 0.0, -0.3, -0.8, -0.4),
    "one_foot": (-0.2, 0.0, 0.0, 0.7, -1.34, 0.5, 1.5, -0.6, 0.1),
    "head_stand": (-1.0, 0.0, -3.0, 0.6, -1.0, -0.3, 0.9, -0.5, 0.3),
    "arabesque": (-0.34, 0.0, 1.57, 1.57, 0.0, 0.0, 0.0, 0.0, 0.0),
}
_TORSO_HEIGHT = 1.3  # m, at joint position 0
_TORSO = 2
# Joint positions that success looks at: height, torso, hips and knees; not x nor the ankles.
_MEASURED = [0, 2, 3, 4, 6, 7]
_SWAPPED_LEGS = [0, 1, 2, 6, 7, 8, 3, 4, 5]
# xx and xz of a body's rotation, of torso, right thigh, leg, foot, left thigh, leg, foot.
_ORIENTATIONS = slice(0, 14)
_HEIGHT = 14
_VELOCITIES = slice(15, 24)


def walker_model() -> mujoco.MjModel:
    """The model that dm_control ships; raises EnvironmentFault if dm_control is not installed."""
    # Found, not imported: importing the suite would load all its domains and OpenGL.
    found = importlib.util.find_spec("dm_control")
    folders = found.submodule_search_locations if found is not None else None
    path = Path(folders[0]) / "suite" / "walker.xml" if folders else None
    if path is None or not path.is_file():
        raise EnvironmentFault(
            f"walker: dm_control's walker.xml is not at {path}. Install dm-control==1.0.50."
        )
    return mujoco.MjModel.from_xml_path(str(path))


def joint_positions(observations: Floats) -> Floats:
    """Joint positions that an observation stems from, x set to 0: (..., 24) → (..., 9) float64.

    A body's rotation about the y axis is the torso's angle minus the angles of the joints
    between the torso and it.
    """
    values = np.asarray(observations, np.float64)
    cosine, sine = values[..., 0:14:2], values[..., 1:14:2]
    angles = np.arctan2(sine, cosine)  # (..., 7)
    parents = angles[..., [0, 1, 2, 0, 4, 5]]
    joints = parents - angles[..., 1:]
    positions = np.zeros((*values.shape[:-1], 9))
    positions[..., 0] = values[..., _HEIGHT] - _TORSO_HEIGHT
    positions[..., _TORSO] = angles[..., 0]
    positions[..., 3:] = np.mod(joints + np.pi, 2 * np.pi) - np.pi
    return positions


def pose_distance(positions: Floats, goals: Floats) -> Floats:
    """Largest difference of a measured joint, legs exchanged or not: (..., 9), (..., 9) → (...).

    Source: the measure of LEXA's RoboYoga benchmark, arXiv:2110.09514.
    """

    def largest(goals: Floats) -> Floats:
        gap = np.abs(positions - goals)
        turn = np.mod(gap[..., _TORSO], 2 * np.pi)
        gap[..., _TORSO] = np.minimum(turn, 2 * np.pi - turn)
        return gap[..., _MEASURED].max(axis=-1)

    return np.minimum(largest(goals), largest(goals[..., _SWAPPED_LEGS]))


class _Bodies(BatchedPhysics):
    """Walkers and what dm_control observes of them."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, num_threads: int) -> None:
        super().__init__(model, num_envs, num_threads)
        self._rotations = self.bind("xmat")  # (num_envs, bodies, 9)
        self._centres = self.bind("xpos")  # (num_envs, bodies, 3)

    def observe(self) -> Floats:
        """Orientations, height, velocities, (num_envs, 24) float32."""
        observations = np.empty((len(self.qpos), 24), np.float32)
        # Entries 0 and 2 of the row-major rotation matrix; body 0 is the world.
        observations[:, _ORIENTATIONS] = self._rotations[:, 1:, [0, 2]].reshape(-1, 14)
        observations[:, _HEIGHT] = self._centres[:, 1, 2]
        observations[:, _VELOCITIES] = self.qvel
        return observations

    def place(self, positions: Floats, velocities: Floats | float) -> Floats:
        """Put the copies into joint states, (num_envs, 9) both; their observations."""
        self.reset()
        self.qpos[:] = positions
        self.qvel[:] = velocities
        self.update_positions()
        return self.observe()


@environments.add("walker")
class Walker(GoalEnvironment):
    """Planar walker; observation: 14 orientation components, torso height, 9 velocities.

    One control step is 0.025 s. Evaluation holds each action for two of them; a `step` is one, or
    as many as `hold` says.
    """

    spec = GoalEnvironmentSpec(
        name="walker",
        observation_dim=24,
        action_dim=6,
        horizon=500,
        success_threshold=SUCCESS_THRESHOLD,
        reachability_dims=tuple(range(15)),
        policy_dims=tuple(range(24)),
        goal_dims=tuple(range(15)),
        categories=tuple(POSES),
        action_repeat=2,
    )

    def __init__(
        self, num_envs: int, rng: np.random.Generator, hold: int = 1, num_threads: int = 1
    ) -> None:
        """A batch of walkers.

        Args:
            num_envs: number of copies.
            rng: source of all randomness.
            hold: control steps for which a step holds its action, 1 or 2; with 2 the agent
                decides as often while it learns as in evaluation.
            num_threads: threads that share the physics, 0 for one per CPU; the result does not
                depend on it.

        Raises:
            ConfigError: another `hold`.
        """
        super().__init__(num_envs, rng)
        if hold not in (1, 2):
            raise ConfigError(
                f"environment.options.hold is {hold}; the walker's evaluation holds an action for "
                "two control steps, so it must be 1 or 2"
            )
        self.spec = replace(Walker.spec, action_repeat=Walker.spec.action_repeat // hold)
        self._substeps = SUBSTEPS * hold
        model = walker_model()
        self._physics = _Bodies(model, num_envs, num_threads)
        self._joint_ranges = model.jnt_range[3:].copy()
        self._frames = LazyFrames(model, camera="side")
        self._poses = np.array(list(POSES.values()))
        self._goals = _Bodies(model, len(POSES), num_threads=1).place(self._poses, 0.0)
        self.diverged = 0
        self.reset()

    def reset(self) -> Floats:
        """Random joints at rest at the default height, as dm_control does it.

        Hips, knees and ankles are uniform in their ranges, the torso's angle is uniform in ±π.
        The body may start inside the floor and is then pushed out.
        """
        self._restart(np.arange(self.num_envs))
        return self._physics.observe()

    def _restart(self, ids: Ints) -> None:
        """Put the named copies into the start distribution."""
        self._physics.reset(ids)
        self._physics.qpos[ids, _TORSO:] = self._random_joints(len(ids), self.rng)
        self._physics.update_positions(ids)

    def _random_joints(self, count: int, rng: np.random.Generator) -> Floats:
        """The torso's angle, hips, knees and ankles, (count, 7)."""
        low, high = self._joint_ranges.T
        torso = rng.uniform(-np.pi, np.pi, (count, 1))
        return np.concatenate([torso, rng.uniform(low, high, (count, 6))], axis=1)

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Random joints, as after a reset."""
        self._physics.reset()
        joints = np.concatenate([self._random_joints(1, rng) for rng in rngs])
        self._physics.qpos[:, _TORSO:] = joints
        self._physics.update_positions()
        return self._physics.observe()

    def place(self, positions: Floats, velocities: Floats) -> Floats:
        """Put the copies into given joint states, (num_envs, 9) both → observations."""
        return self._physics.place(positions, velocities)

    def joint_state(self) -> tuple[Floats, Floats]:
        """Copies of the joint positions and velocities, (num_envs, 9) float64 both."""
        return self._physics.qpos.copy(), self._physics.qvel.copy()

    def step(self, actions: Floats) -> Floats:
        """`hold` control steps; copies that diverge start anew, and `diverged` counts them."""
        np.clip(actions, -1.0, 1.0, out=self._physics.ctrl)
        diverged = self._physics.step(self._substeps, positions=True)
        if len(diverged):
            self.diverged += len(diverged)
            self._restart(diverged)
        return self._physics.observe()

    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """The twelve poses at rest, in turn, (count, 24)."""
        return self._goals[np.arange(count) % len(self._goals)]

    def distance(self, observations: Floats, goals: Floats) -> Floats:
        """See `pose_distance`."""
        return pose_distance(joint_positions(observations), joint_positions(goals))

    def categories(self, observations: Floats) -> Ints:
        """The nearest pose if it is reached, else -1."""
        distances = pose_distance(joint_positions(observations)[:, None], self._poses)
        nearest = distances.argmin(axis=1)
        return np.where(distances.min(axis=1) < SUCCESS_THRESHOLD, nearest, -1)

    def render(self, observations: Floats) -> NDArray[np.uint8] | None:
        """The walker from the side, (n, 96, 96, 3), or None without OpenGL."""
        return self._frames.frames(joint_positions(observations))

    def close(self) -> None:
        """Free the OpenGL context."""
        self._frames.close()
