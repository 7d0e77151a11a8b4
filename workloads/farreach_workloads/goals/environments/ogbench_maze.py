"""OGBench's point mazes, all copies stepped by one call into MuJoCo.

Map, model, tasks and success are the `ogbench` package's; only the Python around the physics is
replaced, bit by bit (arXiv:2410.20092).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from farreach.errors import ConfigError, EnvironmentFault
from farreach.registry import environments, near_match
from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
    Ints,
)
from farreach_workloads.goals.environments.batched_physics import BatchedPhysics
from farreach_workloads.goals.environments.maze_map import MazeMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAZES = ("medium", "large", "giant")
SUBSTEPS = 5  # of 0.02 s
STEP_LENGTH = 0.2  # units per unit of action
SIDE = 4.0
NOISE = 1.0  # half of the width of the square of starts, and of goals, around a cell's centre
RADIUS = 0.7
SUCCESS_THRESHOLD = 1.0
HORIZON = 1000
# Row, column, in the order in which OGBench looks for the next cell of a path.
_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))


@environments.add("ogbench_pointmaze")
class OGBenchPointMaze(GoalEnvironment):
    """A ball in one of OGBench's mazes; observation: x, y.

    An action moves the ball by 0.2 × action, then walls push it out. The five tasks of the maze are
    the evaluation: copy i starts where task i mod 5 does, and its goal is that task's. OGBench
    counts a goal as reached at any step, which is `success_any` here.
    """

    spec = GoalEnvironmentSpec(
        name="ogbench_pointmaze",
        observation_dim=2,
        action_dim=2,
        horizon=HORIZON,
        success_threshold=SUCCESS_THRESHOLD,
        reachability_dims=(0, 1),
        policy_dims=(0, 1),
        goal_dims=(0, 1),
        plane_dims=(0, 1),
        categories=("task1", "task2", "task3", "task4", "task5"),
    )

    def __init__(
        self,
        num_envs: int,
        rng: np.random.Generator,
        maze: str = "medium",
        num_threads: int = 1,
    ) -> None:
        """A batch of balls.

        Args:
            num_envs: number of copies.
            rng: source of all randomness.
            maze: medium, large or giant.
            num_threads: threads that share the physics, 0 for one per CPU; the result does not
                depend on it.

        Raises:
            ConfigError: no such maze.
        """
        super().__init__(num_envs, rng)
        if maze not in MAZES:
            hint = near_match(str(maze), list(MAZES))
            raise ConfigError(f"environment.options.maze: no maze {maze!r}. {hint}")
        inner = _original(maze)
        self.free: Any = inner.maze_map == 0  # (rows, columns) bool
        self._tasks = [(task["init_ij"], task["goal_ij"]) for task in inner.task_infos]
        self._physics = BatchedPhysics(inner.model, num_envs, num_threads)
        rows, columns = self.free.shape
        self._map = MazeMap(
            name=f"ogbench_pointmaze {maze}",
            cells=inner.maze_map[::-1].tolist(),  # their row 0 is the southernmost
            side=SIDE,
            noise=NOISE / SIDE,
            radius=RADIUS,
            reset_cell=None,
            centre=(SIDE * (columns - 3) / 2, SIDE * (rows - 3) / 2),
        )
        self.reset()

    @property
    def positions(self) -> Floats:
        """x, y of each copy in full precision, a copy, (num_envs, 2) float64."""
        return self._physics.qpos.copy()

    def reset(self) -> Floats:
        """Copy i within 1.0 in x and y of where task i mod 5 starts."""
        cells = np.array([start for start, _ in self._tasks])
        return self.place(self._around(cells[np.arange(self.num_envs) % len(cells)], self.rng))

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Anywhere within 1.0 of the centre of a free cell."""
        cells = np.argwhere(self.free)
        drawn = [self._around(cells[[rng.integers(len(cells))]], rng) for rng in rngs]
        return self.place(np.concatenate(drawn))

    def place(self, positions: Floats) -> Floats:
        """Put the copies somewhere, (num_envs, 2) → observations."""
        self._physics.reset()
        self._physics.qpos[:] = positions
        return self._observe()

    def step(self, actions: Floats) -> Floats:
        """Move by 0.2 × action, then 0.1 s of physics from rest."""
        self._physics.qpos[:] += STEP_LENGTH * np.clip(actions, -1.0, 1.0).astype(np.float64)
        self._physics.qvel[:] = 0.0
        diverged = self._physics.step(SUBSTEPS)
        if len(diverged):
            raise EnvironmentFault(
                f"ogbench_pointmaze: copies {diverged.tolist()} diverged; actions hold NaN, or the "
                "balls were placed inside a wall. Look at what the policy returns."
            )
        return self._observe()

    def _observe(self) -> Floats:
        return self._physics.qpos.astype(np.float32)

    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """Goals of the five tasks in turn, within 1.0 of their cell's centre, (count, 2)."""
        cells = np.array([goal for _, goal in self._tasks])
        return self._around(cells[np.arange(count) % len(cells)], rng).astype(np.float32)

    def goal_categories(self, goals: Floats) -> Ints:
        """The task, by the order of the goals: two tasks may share a goal."""
        return np.arange(len(goals)) % len(self._tasks)

    def categories(self, observations: Floats) -> Ints:
        """The first task whose goal's cell the ball is in, -1 if there is none."""
        cells = self.cell_of(observations)
        result = np.full(len(cells), -1)
        for index in reversed(range(len(self._tasks))):
            result[(cells == self._tasks[index][1]).all(axis=1)] = index
        return result

    def distance(self, observations: Floats, goals: Floats) -> Floats:
        """Euclidean."""
        return np.linalg.norm(observations - goals, axis=1)

    def path_distance(self, observations: Floats, goals: Floats) -> Floats:
        """Length of the shortest free path."""
        return self._map.path_distance(observations, goals)

    def cells(self, observations: Floats) -> tuple[Ints, int]:
        """Sixteenths of the maze's cells."""
        return self._map.sub_cells(observations)

    def cell_of(self, positions: Floats) -> Ints:
        """Row and column, in OGBench's order, of each position: (n, 2) → (n, 2)."""
        columns_and_rows = ((positions + SIDE + 0.5 * SIDE) / SIDE).astype(np.int64)
        return columns_and_rows[:, ::-1]

    def centres(self, cells: Ints) -> Floats:
        """x, y of the centres of cells, (n, 2) → (n, 2)."""
        return SIDE * cells[:, ::-1].astype(np.float64) - SIDE

    def _around(self, cells: Ints, rng: np.random.Generator) -> Floats:
        return self.centres(cells) + rng.uniform(-NOISE, NOISE, (len(cells), 2))

    def next_cells(self) -> tuple[Ints, Ints]:
        """The maze's free cells, and the next one on OGBench's way from each to each.

        Returns:
            Row and column of the free cells, (k, 2), and (k, k): entry (goal, cell) is the index of
            the neighbour to go to, the first in the order of `_NEIGHBOURS` that is nearer to the
            goal; the cell itself at the goal.
        """
        cells = np.argwhere(self.free)
        index = np.full(self.free.shape, -1)
        index[tuple(cells.T)] = np.arange(len(cells))
        # Maps are walled in, so every neighbour is on the map.
        neighbours = np.stack([index[tuple((cells + step).T)] for step in _NEIGHBOURS])  # (4, k)
        towards = np.tile(np.arange(len(cells)), (len(cells), 1))
        for goal in range(len(cells)):
            steps = np.full(len(cells), np.iinfo(np.int64).max)
            steps[goal], edge = 0, [goal]
            while edge:
                cell = edge.pop(0)
                for near in neighbours[:, cell]:
                    if near >= 0 and steps[near] > steps[cell] + 1:
                        steps[near] = steps[cell] + 1
                        edge.append(int(near))
            for near in neighbours[::-1]:  # the first of the order is written last
                nearer = (near >= 0) & (steps[near] < steps)
                towards[goal, nearer] = near[nearer]
        return cells, towards

    def draw(self, axes: Axes) -> None:
        """Draw the walls."""
        self._map.draw(axes)


@lru_cache  # each makes a temporary file that stays
def _original(maze: str) -> Any:
    """OGBench's own environment, of which nothing is changed."""
    import ogbench.locomaze  # noqa: F401 (registers its environments)

    env: Any = gymnasium.make(f"pointmaze-{maze}-v0").unwrapped
    return env
