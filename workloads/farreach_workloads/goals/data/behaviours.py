"""Behaviours: what acts while the episodes of a data set are recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csgraph, csr_matrix

from farreach.errors import ConfigError
from farreach.registry import Registry
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints
from farreach_workloads.goals.environments.ogbench_maze import NOISE, OGBenchPointMaze

# number of copies → environment
MakeEnvironment = Callable[[int], GoalEnvironment]
# (how to make the environment, a generator per episode, steps) → observations (n, steps + 1, d) and
# actions (n, steps, a), float32 both. An episode depends on its own generator alone, or on those
# of its shard.
Behaviour = Callable[[MakeEnvironment, Sequence[np.random.Generator], int], tuple[Floats, Floats]]

# OGBench's recipe: deviation of the noise on actions, and how many cells away stitch's goals lie.
WAYPOINT_NOISE = 0.5
STITCH_CELLS = 4

behaviours: Registry[Behaviour] = Registry("behaviour")


@behaviours.add("random")
def random(
    make: MakeEnvironment, rngs: Sequence[np.random.Generator], steps: int
) -> tuple[Floats, Floats]:
    """Uniform random actions, as in the maze and pusher data of arXiv:2301.02099."""
    env = make(len(rngs))
    first = env.scatter(rngs)
    shape = (steps, env.spec.action_dim)
    actions = np.stack([rng.uniform(-1, 1, shape).astype(np.float32) for rng in rngs], axis=1)
    observations = np.concatenate([first[None], env.walk(actions)])
    return np.swapaxes(observations, 0, 1), np.swapaxes(actions, 0, 1)


@behaviours.add("navigate")
def navigate(
    make: MakeEnvironment, rngs: Sequence[np.random.Generator], steps: int
) -> tuple[Floats, Floats]:
    """OGBench's `navigate`: noisy ways from goal to goal, a new one whenever one is reached."""
    return _Walkers(make(len(rngs)), rngs).follow(steps, _vertices, keep_going=True)


@behaviours.add("stitch")
def stitch(
    make: MakeEnvironment, rngs: Sequence[np.random.Generator], steps: int
) -> tuple[Floats, Floats]:
    """OGBench's `stitch`: a noisy way to a goal four cells away, and staying there."""
    return _Walkers(make(len(rngs)), rngs).follow(steps, _four_cells_away, keep_going=False)


# (free or not of each cell of the map, free cells, index of the start cell) → indices of the cells
# that a goal may lie in.
_Choice = Callable[[Floats, Ints, int], Ints]


def _vertices(free: Floats, cells: Ints, start: int) -> Ints:
    """Cells that are no straight corridor."""
    rows, columns = cells.T
    vertical = free[rows - 1, columns] & free[rows + 1, columns]
    horizontal = free[rows, columns - 1] & free[rows, columns + 1]
    beside = free[rows - 1, columns] | free[rows + 1, columns]
    above = free[rows, columns - 1] | free[rows, columns + 1]
    corridor = (vertical & ~above) | (horizontal & ~beside)
    return np.flatnonzero(~corridor)


def _four_cells_away(free: Floats, cells: Ints, start: int) -> Ints:
    """Cells at that many steps from the start, or the start itself if there are none."""
    near = np.abs(cells[:, None] - cells[None]).sum(axis=2) == 1
    steps = csgraph.dijkstra(csr_matrix(near), indices=start, unweighted=True)
    found = np.flatnonzero(steps == STITCH_CELLS)
    return found if len(found) else np.array([start])


class _Walkers:
    """Balls that follow OGBench's way to goals, with noise on every action.

    Source: the recipe of arXiv:2410.20092 for its point mazes: the way leads over centres of
    neighbouring cells, in the goal's cell to that cell's centre; the goal itself lies within 1.0 of
    it, and is reached within 1.0.
    """

    def __init__(self, env: GoalEnvironment, rngs: Sequence[np.random.Generator]) -> None:
        if not isinstance(env, OGBenchPointMaze):
            raise ConfigError(
                f"behaviour: navigate and stitch need a map, which environment {env.spec.name!r} "
                "has not. Take environment.name: ogbench_pointmaze, or behaviour: random."
            )
        self._env, self._rngs = env, rngs
        self._cells, self._towards = env.next_cells()
        self._centres = env.centres(self._cells)
        self._index = np.full(env.free.shape, -1)
        self._index[tuple(self._cells.T)] = np.arange(len(self._cells))

    def follow(self, steps: int, choice: _Choice, keep_going: bool) -> tuple[Floats, Floats]:
        """Observations (n, steps + 1, 2) and actions (n, steps, 2)."""
        env, count = self._env, len(self._rngs)
        observations = np.empty((count, steps + 1, 2), np.float32)
        actions = np.empty((count, steps, 2), np.float32)
        observations[:, 0] = env.scatter(self._rngs)
        noise = [rng.normal(0, WAYPOINT_NOISE, (steps, 2)) for rng in self._rngs]
        starts = self._cells_of(env.positions)
        choices = [choice(env.free, self._cells, int(start)) for start in starts]
        goals = np.empty(count, np.int64)
        places = np.empty((count, 2))

        def new_goal(copy: int) -> None:
            rng = self._rngs[copy]
            goals[copy] = choices[copy][rng.integers(len(choices[copy]))]
            places[copy] = self._centres[goals[copy]] + rng.uniform(-NOISE, NOISE, 2)

        for copy in range(count):
            new_goal(copy)
        for step in range(steps):
            at = env.positions
            gap = self._centres[self._towards[goals, self._cells_of(at)]] - at
            direction = gap / (np.linalg.norm(gap, axis=1, keepdims=True) + 1e-6)
            drawn = direction + [own[step] for own in noise]
            actions[:, step] = np.clip(drawn, -1, 1)
            observations[:, step + 1] = env.step(actions[:, step])
            if keep_going:
                reached = env.distance(env.positions, places) <= env.spec.success_threshold
                for copy in np.flatnonzero(reached).tolist():
                    new_goal(copy)
        return observations, actions

    def _cells_of(self, positions: Floats) -> Ints:
        """Index of the free cell of each position, (n, 2) → (n,)."""
        return self._index[tuple(self._env.cell_of(positions).T)]
