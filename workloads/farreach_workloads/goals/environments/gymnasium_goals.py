"""Any gymnasium or gymnasium-robotics environment as a goal environment, by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from farreach.errors import ConfigError
from farreach.registry import environments
from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
    Ints,
)
from farreach_workloads.goals.environments.gymnasium_copies import (
    GymnasiumCopies,
    make_gymnasium,
    repeated_goal_dims,
)
from farreach_workloads.goals.environments.maze_map import QUADRANTS, MazeMap
from farreach_workloads.goals.environments.point_maze import BALL_RADIUS, PointMazeCopies

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_HORIZON = 200
DEFAULT_SUCCESS_THRESHOLD = 0.25
# The constant in gymnasium-robotics' MazeEnv.compute_reward, which no attribute holds.
MAZE_SUCCESS_THRESHOLD = 0.45
ANT_TORSO_RADIUS = 0.25  # m
HORIZONS = {
    "PointMaze_UMaze": 150,
    "PointMaze_Medium": 250,
    "PointMaze_Large": 400,
    "AntMaze_UMaze": 500,
    "Fetch": 50,
}
_GOALS_PER_WALK = 16


def default_horizon(name: str) -> int:
    """Steps of an evaluation episode: `HORIZONS`, else the id's own time limit, else 200."""
    for prefix, horizon in HORIZONS.items():
        if name.startswith(prefix):
            return horizon
    registered = gymnasium.registry.get(name)
    return (registered and registered.max_episode_steps) or DEFAULT_HORIZON


def maze_map(
    env: gymnasium.Env[Any, Any], name: str, reset_cell: Sequence[int] | None
) -> MazeMap | None:
    """The map of one of gymnasium-robotics' mazes, None for any other environment."""
    inner: Any = env.unwrapped
    if not hasattr(getattr(inner, "maze", None), "maze_map"):
        if reset_cell is not None:
            raise ConfigError(
                f"environment.reset_cell: {name} has no cells, it is not a maze of "
                "gymnasium-robotics. Leave reset_cell out."
            )
        return None
    return MazeMap(
        name=name,
        cells=inner.maze.maze_map,
        side=inner.maze.maze_size_scaling,
        noise=inner.position_noise_range,
        radius=BALL_RADIUS if is_point_maze(env) else ANT_TORSO_RADIUS,
        reset_cell=None if reset_cell is None else (reset_cell[0], reset_cell[1]),
    )


def is_point_maze(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether this is gymnasium-robotics' PointMaze itself, not a subclass of it."""
    kind = type(env.unwrapped)
    return kind.__module__.startswith("gymnasium_robotics.") and kind.__name__ == "PointMazeEnv"


@environments.add("gymnasium")
class GymnasiumGoals(GoalEnvironment):
    """A gymnasium environment with continuous observations and actions.

    * With a Dict of `observation`, `achieved_goal` and `desired_goal` an observation here is the
      achieved goal followed by the observation; the achieved goal's dims define goals and success.
    * With a Box an observation is a goal as it is.

    Time limits are off, and the environment's own goal ends nothing. In a maze every copy starts in
    one cell and goals are uniform over all cells that can be reached from there. Elsewhere held-out
    goals are the desired goals of fresh resets, or, without such, states of random walks.
    """

    FREE_OPTIONS = GoalEnvironment.FREE_OPTIONS | {
        "horizon",
        "goal_success_threshold",
        "reset_cell",
    }

    def __init__(
        self,
        num_envs: int,
        rng: np.random.Generator,
        id: str,  # noqa: A002, the name that gymnasium's users know
        horizon: int | None = None,
        goal_success_threshold: float | None = None,
        make: Mapping[str, Any] | None = None,
        reset_cell: Sequence[int] | None = None,
        num_threads: int = 1,
    ) -> None:
        """A batch of copies of the environment.

        Args:
            num_envs: number of copies.
            rng: source of all randomness.
            id: gymnasium id, such as `PointMaze_UMaze-v3`.
            horizon: steps of an evaluation episode; see `default_horizon`.
            goal_success_threshold: Euclidean distance of the goal's dims below which a goal counts
                as reached; the environment's own if it has one, else 0.25.
            make: further arguments of `gymnasium.make`.
            reset_cell: row and column where copies start, for mazes; the first free cell if None.
            num_threads: threads that step the copies of a PointMaze, 0 for one per CPU.

        Raises:
            RegistryError: unknown id.
            ConfigError: an argument of `make` or the reset cell is wrong.
            EnvironmentFault: no Box observation, a wrong shape or NaN.
        """
        super().__init__(num_envs, rng)
        options = dict(make or {})
        spare = make_gymnasium(id, options)
        self._maze = maze_map(spare, id, reset_cell)
        threshold = goal_success_threshold or self._own_threshold(spare)
        reset_options = {"reset_cell": np.array(self._maze.reset_cell)} if self._maze else None
        self._spare = GymnasiumCopies(id, [spare], threshold, reset_options)
        self._repeated = repeated_goal_dims(self._spare, rng) if self._spare.reader.has_goal else ()
        self.spec = self._make_spec(id, horizon or default_horizon(id), threshold)
        self._copies: GymnasiumCopies | PointMazeCopies
        if self._maze is not None and is_point_maze(spare):
            inner: Any = spare.unwrapped
            self._copies = PointMazeCopies(inner.model, self._maze, num_envs, num_threads)
        else:
            envs = [make_gymnasium(id, options) for _ in range(num_envs)]
            self._copies = GymnasiumCopies(id, envs, threshold, reset_options)
        self.reset()

    def _own_threshold(self, env: gymnasium.Env[Any, Any]) -> float:
        """The environment's success threshold, or the default."""
        if self._maze is not None:
            return MAZE_SUCCESS_THRESHOLD
        return float(getattr(env.unwrapped, "distance_threshold", DEFAULT_SUCCESS_THRESHOLD))

    def _make_spec(self, name: str, horizon: int, threshold: float) -> GoalEnvironmentSpec:
        reader = self._spare.reader
        goal_dims = tuple(range(reader.goal_dim))
        return GoalEnvironmentSpec(
            name=name,
            observation_dim=reader.dim,
            action_dim=self._spare.action_dim,
            horizon=horizon,
            success_threshold=threshold,
            reachability_dims=goal_dims,
            policy_dims=tuple(d for d in range(reader.dim) if d not in self._repeated),
            goal_dims=goal_dims,
            plane_dims=(0, 1) if self._maze is not None else None,
            categories=QUADRANTS if self._maze is not None else ("all",),
        )

    def reset(self) -> Floats:
        """Reset every copy, in mazes into the reset cell, (num_envs, d) float32."""
        return self._copies.reset(self.rng)

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Reset every copy; in PointMaze anywhere instead of in the reset cell."""
        return self._copies.scatter(rngs)

    def step(self, actions: Floats) -> Floats:
        """Step every copy; one that ended holds its last observation."""
        return self._copies.step(actions)

    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """Held-out goals, see the class; dims that do not define the goal are those of a reset."""
        if self._maze is not None:
            rows = np.repeat(self._spare.reset(rng), count, axis=0)
            return self._with_goals(rows, self._maze.goals(count, rng))
        if self._spare.reader.has_goal:
            drawn = [self._spare.sample_desired(rng) for _ in range(count)]
            rows = np.array([row for row, _ in drawn], np.float32)
            return self._with_goals(rows, np.array([goal for _, goal in drawn]))
        return self._walked_goals(count, rng)

    def _with_goals(self, rows: Floats, goals: Floats) -> Floats:
        """Rows (n, d) whose goal dims, and the dims that repeat them, are `goals` (n, k)."""
        rows[:, self.spec.goal_dims] = goals
        if self._repeated:
            rows[:, self._repeated] = goals
        return rows

    def _walked_goals(self, count: int, rng: np.random.Generator) -> Floats:
        """States of uniform random walks of at most `horizon` steps at random times, (count, d)."""
        found: list[Floats] = []
        while len(found) < count:
            self._spare.reset(rng)
            walk: list[Floats] = []
            while len(walk) < self.spec.horizon and not self._spare.all_ended:
                walk.append(self._spare.step(rng.uniform(-1, 1, (1, self.spec.action_dim)))[0])
            times = rng.integers(len(walk), size=min(_GOALS_PER_WALK, count - len(found)))
            found.extend(walk[time] for time in times)
        return np.array(found)

    def distance(self, observations: Floats, goals: Floats) -> Floats:
        """Euclidean in the dims that define the goal."""
        gap = observations - goals
        return np.linalg.norm(gap[..., self.spec.goal_dims], axis=-1)

    def path_distance(self, observations: Floats, goals: Floats) -> Floats:
        """Length of the shortest free path in mazes, `distance` elsewhere."""
        if self._maze is None:
            return self.distance(observations, goals)
        return self._maze.path_distance(observations[:, :2], goals[:, :2])

    def categories(self, observations: Floats) -> Ints:
        """The quadrant in mazes."""
        if self._maze is None:
            return super().categories(observations)
        return self._maze.quadrants(observations)

    def cells(self, observations: Floats) -> tuple[Ints, int]:
        """Sixteenths of the maze's cells; no such notion elsewhere."""
        if self._maze is None:
            return super().cells(observations)
        return self._maze.sub_cells(observations)

    def draw(self, axes: Axes) -> None:
        """Draw the walls of a maze."""
        if self._maze is not None:
            self._maze.draw(axes)

    def close(self) -> None:
        """Close every copy."""
        self._copies.close()
        self._spare.close()
