"""gymnasium-robotics' PointMaze, all copies stepped by one call into MuJoCo.

The environment's own `step` spends nine tenths of its time in Python. This one does the same
arithmetic, bit by bit, for all copies at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from farreach.errors import EnvironmentFault
from farreach_workloads.goals.environments.base import Floats
from farreach_workloads.goals.environments.batched_physics import BatchedPhysics
from farreach_workloads.goals.environments.maze_map import MazeMap

BALL_RADIUS = 0.1  # m
# The force-driven ball would gain speed without bound; the environment clips it before each step.
MAX_SPEED = 5.0  # m/s, along each axis


class PointMazeCopies:
    """`num_envs` balls; an observation is x, y (the goal's dims), x, y, x speed, y speed."""

    def __init__(
        self, model: mujoco.MjModel, maze: MazeMap, num_envs: int, num_threads: int
    ) -> None:
        """Balls that start in the maze's reset cell.

        Args:
            model: the environment's own MuJoCo model, walls included.
            maze: where to start.
            num_envs: number of copies.
            num_threads: threads that share them.
        """
        self._physics = BatchedPhysics(model, num_envs, num_threads)
        self._maze = maze

    def reset(self, rng: np.random.Generator) -> Floats:
        """All balls at rest in the reset cell, (num_envs, 6) float32."""
        self._physics.reset()
        return self.place(self._maze.starts(len(self._physics.qpos), rng), 0.0)

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Every ball at rest anywhere it can get to, (num_envs, 6) float32."""
        self._physics.reset()
        return self.place(np.concatenate([self._maze.goals(1, rng) for rng in rngs]), 0.0)

    def place(self, positions: Floats, speeds: Floats | float) -> Floats:
        """Put the balls somewhere: (num_envs, 2) both → observations."""
        self._physics.qpos[:] = positions
        self._physics.qvel[:] = speeds
        return self._observe()

    def step(self, actions: Floats) -> Floats:
        """Push each ball with 100 N × action for 0.01 s, (num_envs, 2) → (num_envs, 6) float32."""
        np.clip(actions, -1.0, 1.0, out=self._physics.ctrl)
        np.clip(self._physics.qvel, -MAX_SPEED, MAX_SPEED, out=self._physics.qvel)
        diverged = self._physics.step(substeps=1)
        if len(diverged):
            raise EnvironmentFault(
                f"PointMaze: copies {diverged.tolist()} diverged; actions hold NaN or the balls "
                "were placed inside a wall. Look at what the policy returns."
            )
        return self._observe()

    def _observe(self) -> Floats:
        observations = np.empty((len(self._physics.qpos), 6), np.float32)
        observations[:, 0:2] = self._physics.qpos
        observations[:, 2:4] = self._physics.qpos
        observations[:, 4:6] = self._physics.qvel
        return observations

    def close(self) -> None:
        """Nothing is held open."""
