"""A hand that pushes a puck over a table: "pusher-like".

The original is multiworld's SawyerPushNIPSEasy, which needs a dead version of MuJoCo's bindings.
This is a model of our own with the original's limits, step sizes, start, goals and success test,
without the arm; numbers are not comparable with the original's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np
from numpy.typing import NDArray

from farreach.registry import environments
from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
    Ints,
)
from farreach_workloads.goals.environments.batched_physics import BatchedPhysics
from farreach_workloads.goals.environments.frames import LazyFrames

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUBSTEPS = 50  # of 0.0025 s
STEP_LENGTH = 0.02  # m per unit of action
HAND_LOW, HAND_HIGH = np.array([-0.1, 0.55]), np.array([0.1, 0.65])  # m, of what moves the hand
PUCK_LOW, PUCK_HIGH = np.array([-0.15, 0.5]), np.array([0.15, 0.7])  # m, of goals
START = np.array([-0.02, 0.50, 0.0, 0.6])  # m: hand x, y, puck x, y
HAND_RADIUS, PUCK_RADIUS = 0.02, 0.03  # m
CELL = 0.02  # m, side of a coverage cell of the puck

# Hand and puck meet as two spheres at one height: in the plane of the table these are the discs
# of the cylinders that are drawn, and sphere against sphere is MuJoCo's cheapest contact. A
# damping of 5 N s/m stops the puck of 0.1 kg within a few millimetres.
MODEL = f"""
<mujoco model="pusher-like">
  <option timestep="0.0025" gravity="0 0 0"/>
  <visual><headlight ambient=".5 .5 .5" diffuse=".5 .5 .5"/></visual>
  <default>
    <default class="body"><geom type="sphere" condim="1" rgba="0 0 0 0" mass="0.1"/></default>
    <default class="looks"><geom type="cylinder" contype="0" conaffinity="0" mass="0"/></default>
  </default>
  <worldbody>
    <camera name="above" pos="0 0.6 0.45" xyaxes="1 0 0 0 1 0"/>
    <geom type="box" class="looks" size=".3 .25 .01" pos="0 .6 -.01" rgba=".75 .68 .55 1"/>
    <body name="mocap" mocap="true" pos="0 0 0.06"/>
    <body name="hand" pos="0 0 0.06">
      <joint name="hand_x" type="slide" axis="1 0 0"/>
      <joint name="hand_y" type="slide" axis="0 1 0"/>
      <geom class="body" size="{HAND_RADIUS}"/>
      <geom class="looks" size="{HAND_RADIUS} .05" rgba=".2 .3 .7 1"/>
    </body>
    <body name="puck" pos="0 0 0.06">
      <joint name="puck_x" type="slide" axis="1 0 0" damping="5"/>
      <joint name="puck_y" type="slide" axis="0 1 0" damping="5"/>
      <geom class="body" size="{PUCK_RADIUS}"/>
      <geom class="looks" size="{PUCK_RADIUS} .02" pos="0 0 -.04" rgba=".8 .25 .2 1"/>
    </body>
  </worldbody>
  <equality><weld body1="mocap" body2="hand"/></equality>
</mujoco>
"""


@environments.add("pusher")
class Pusher(GoalEnvironment):
    """Hand and puck in the plane; observation: hand x, y, puck x, y in m.

    An action moves the point that pulls the hand by 0.02 m times its components, within limits
    that the start lies outside of. A goal is reached when the puck is within 0.015 m of it.
    """

    spec = GoalEnvironmentSpec(
        name="pusher",
        observation_dim=4,
        action_dim=2,
        horizon=50,
        success_threshold=0.015,
        reachability_dims=(0, 1, 2, 3),
        policy_dims=(0, 1, 2, 3),
        goal_dims=(2, 3),
        plane_dims=(2, 3),
    )

    def __init__(self, num_envs: int, rng: np.random.Generator, num_threads: int = 1) -> None:
        """A batch of tables.

        Args:
            num_envs: number of copies.
            rng: kept for the contract; nothing here is random but the goals.
            num_threads: threads that share the physics, 0 for one per CPU; the result does not
                depend on it.
        """
        super().__init__(num_envs, rng)
        model = mujoco.MjModel.from_xml_string(MODEL)
        self._physics = BatchedPhysics(model, num_envs, num_threads)
        self._pull: Floats = self._physics.bind("mocap_pos")[:, 0, :2]  # (num_envs, 2), a view
        self._frames = LazyFrames(model, camera="above")
        self.diverged = 0
        self.reset()

    def reset(self) -> Floats:
        """Puck at (0, 0.6), hand at (-0.02, 0.5), at rest."""
        self._restart(np.arange(self.num_envs))
        return self._observe()

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """At the start, which is always the same."""
        return self.reset()

    def _restart(self, ids: Ints) -> None:
        """Put the named copies at the start."""
        self._physics.reset(ids)
        self._physics.qpos[ids] = START
        self._pull[ids] = START[:2]

    def step(self, actions: Floats) -> Floats:
        """Pull the hand for 0.125 s; a copy whose physics diverged starts anew."""
        moved = self._pull + STEP_LENGTH * np.clip(actions, -1.0, 1.0)
        np.clip(moved, HAND_LOW, HAND_HIGH, out=self._pull)
        diverged = self._physics.step(SUBSTEPS)
        if len(diverged):
            self.diverged += len(diverged)
            self._restart(diverged)
        return self._observe()

    def _observe(self) -> Floats:
        return self._physics.qpos.astype(np.float32)

    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """Hand and puck uniform in their rectangles, (count, 4)."""
        low, high = np.concatenate([HAND_LOW, PUCK_LOW]), np.concatenate([HAND_HIGH, PUCK_HIGH])
        return rng.uniform(low, high, (count, 4)).astype(np.float32)

    def distance(self, observations: Floats, goals: Floats) -> Floats:
        """Euclidean between the pucks, in m."""
        return np.linalg.norm(observations[:, 2:] - goals[:, 2:], axis=1)

    def cells(self, observations: Floats) -> tuple[Ints, int]:
        """Squares of 2 cm in the puck's rectangle."""
        shape = np.rint((PUCK_HIGH - PUCK_LOW) / CELL).astype(np.int64)
        index = np.floor((observations[:, 2:] - PUCK_LOW) / CELL).astype(np.int64)
        inside = ((index >= 0) & (index < shape)).all(axis=1)
        return np.where(inside, index[:, 0] * shape[1] + index[:, 1], -1), int(shape.prod())

    def draw(self, axes: Axes) -> None:
        """Draw the puck's goal rectangle, and the hand's limits dashed."""
        from matplotlib.patches import Rectangle

        for low, high, style in ((PUCK_LOW, PUCK_HIGH, "-"), (HAND_LOW, HAND_HIGH, "--")):
            width, height = high - low
            corner = (float(low[0]), float(low[1]))
            axes.add_patch(
                Rectangle(corner, width, height, fill=False, edgecolor="0.35", linestyle=style)
            )
        axes.set_xlim(PUCK_LOW[0] - CELL, PUCK_HIGH[0] + CELL)
        axes.set_ylim(PUCK_LOW[1] - CELL, PUCK_HIGH[1] + CELL)
        axes.set_aspect("equal")

    def render(self, observations: Floats) -> NDArray[np.uint8] | None:
        """The table from above, (n, 96, 96, 3), or None without OpenGL."""
        return self._frames.frames(np.asarray(observations, np.float64))

    def close(self) -> None:
        """Free the OpenGL context."""
        self._frames.close()
