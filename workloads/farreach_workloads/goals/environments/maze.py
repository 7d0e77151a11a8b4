"""The point maze "U-shaped four rooms", in NumPy, all copies at once.

The agent starts in room 1 and room 4 is next door but can only be reached through rooms 2 and 3.
A hundred uniform random actions never leave room 1, which is what makes the maze a test of
exploration (arXiv:2206.11733 and arXiv:2301.02099 use it).

The position is written directly, as in the original environments; the three velocities of the
observation are reset noise and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach.registry import environments
from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
    Ints,
)
from farreach_workloads.goals.environments.grid_geodesic import GridGeodesic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Row i lies at y = 4i - 28, column j at x = 4j - 4; B is a block, R the start cell.
LAYOUT = (
    "BBBBBBBBB",
    "BEEEBEEEB",
    "BEEEEEEEB",
    "BEEEBEEEB",
    "BBEBBBEBB",
    "BEEEBEEEB",
    "BEEEBEEEB",
    "BREEBEEEB",
    "BBBBBBBBB",
)
CELL = 4.0
RADIUS = 0.4
LOW = np.array([-1.6, -25.6])
HIGH = np.array([25.6, 1.6])
ROOM_BORDER = np.array([12.5, -12.5])
TURN_PER_ACTION = 0.25  # rad
RESTITUTION = 0.8
START_NOISE = 0.1
CLOCK_SCALE = 0.001
CLEARANCE_CELL = 0.25  # spacing of the table that tells which moves cannot touch a wall


def cell_centre(row: int, column: int) -> tuple[float, float]:
    """x, y of the centre of a cell of LAYOUT."""
    return CELL * column - CELL, CELL * row - 7 * CELL


def wall_segments() -> tuple[Floats, Floats]:
    """Faces of the blocks that look at a free cell, pushed out by the body's radius.

    Returns:
        The vertical faces as rows (x, y low, y high) and the horizontal ones as (y, x low, x high).
    """
    vertical, horizontal = [], []
    half = CELL / 2 + RADIUS
    for row, line in enumerate(LAYOUT):
        for column, kind in enumerate(line):
            if kind != "B":
                continue
            x, y = cell_centre(row, column)
            for d_row, d_column in ((0, -1), (0, 1), (-1, 0), (1, 0)):
                r, c = row + d_row, column + d_column
                if not (0 <= r < len(LAYOUT) and 0 <= c < len(line)) or LAYOUT[r][c] == "B":
                    continue
                if d_column:
                    vertical.append((x + d_column * half, y - half, y + half))
                else:
                    horizontal.append((y + d_row * half, x - half, x + half))
    return np.array(vertical), np.array(horizontal)


def is_free(positions: Floats) -> np.ndarray:
    """Whether a body fits at each position: (n, 2) → (n,) bool.

    Inside the limits and none of the four points (x ± radius, y ± radius) in a block.
    """
    inside = np.all((positions >= LOW) & (positions <= HIGH), axis=1)
    blocked = np.array([[kind == "B" for kind in line] for line in LAYOUT])
    for dx in (-RADIUS, RADIUS):
        for dy in (-RADIUS, RADIUS):
            column = np.rint((positions[:, 0] + dx + CELL) / CELL).astype(int).clip(0, 8)
            row = np.rint((positions[:, 1] + dy + 7 * CELL) / CELL).astype(int).clip(0, 8)
            inside &= ~blocked[row, column]
    return inside


class Walls:
    """Finds the first wall that a straight move crosses."""

    def __init__(self) -> None:
        """The walls of LAYOUT, with the table that sorts out moves far from any wall."""
        self.vertical, self.horizontal = wall_segments()
        self._clearance = self._clearance_table()

    def _clearance_table(self) -> Floats:
        """Lower bound of the distance to any wall from each cell of a fine grid."""
        counts = np.ceil((HIGH - LOW) / CLEARANCE_CELL).astype(int) + 1
        x = LOW[0] + CLEARANCE_CELL * (np.arange(counts[0]) + 0.5)
        y = LOW[1] + CLEARANCE_CELL * (np.arange(counts[1]) + 0.5)
        nearest = np.full((len(x), len(y)), np.inf)
        for at, low, high in self.vertical:
            along = np.maximum(np.maximum(low - y, y - high), 0.0)
            nearest = np.minimum(nearest, np.hypot((x - at)[:, None], along[None, :]))
        for at, low, high in self.horizontal:
            along = np.maximum(np.maximum(low - x, x - high), 0.0)
            nearest = np.minimum(nearest, np.hypot(along[:, None], (y - at)[None, :]))
        return nearest - CLEARANCE_CELL * np.sqrt(0.5)

    def near(self, positions: Floats, reach: Floats) -> Ints:
        """Rows whose move of length `reach` could touch a wall."""
        cell = ((positions - LOW) / CLEARANCE_CELL).astype(np.int64)
        np.clip(cell, 0, np.array(self._clearance.shape) - 1, out=cell)
        return np.flatnonzero(self._clearance[cell[:, 0], cell[:, 1]] <= np.abs(reach))

    def first_hit(self, start: Floats, end: Floats) -> tuple[Floats, Floats]:
        """Where the moves first cross a wall.

        Args:
            start: (n, 2).
            end: (n, 2).

        Returns:
            The fraction of the move at the crossing, (n,), inf where there is none, and the
            mirror image of `end` in the wall that is crossed, (n, 2).
        """
        fraction = np.full(len(start), np.inf)
        mirror = end.copy()
        for axis, faces in ((0, self.vertical), (1, self.horizontal)):
            move = end - start
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (faces[:, 0] - start[:, axis, None]) / move[:, axis, None]  # (n, faces)
                other = start[:, 1 - axis, None] + t * move[:, 1 - axis, None]
            hit = (t >= 0) & (t <= 1) & (other >= faces[:, 1]) & (other <= faces[:, 2])
            t = np.where(hit, t, np.inf)
            first = t.argmin(axis=1)
            nearest = t[np.arange(len(t)), first]
            closer = nearest < fraction
            fraction[closer] = nearest[closer]
            mirror[closer] = end[closer]
            mirror[closer, axis] = 2 * faces[first[closer], 0] - end[closer, axis]
        return fraction, mirror

    def stop(self, start: Floats, end: Floats) -> Floats:
        """Where a body ends up that wants to move from `start` to `end`, (n, 2).

        A move that meets a wall at c with mirror image m of its end goes to c + 0.8 (m - c);
        if the way there meets a wall as well, the body stays where it was.
        """
        fraction, mirror = self.first_hit(start, end)
        rows = np.flatnonzero(np.isfinite(fraction))
        result = end.copy()
        if len(rows):
            begin = start[rows]
            crossing = begin + fraction[rows, None] * (end[rows] - begin)
            bounced = crossing + RESTITUTION * (mirror[rows] - crossing)
            again, _ = self.first_hit(begin, bounced)
            result[rows] = np.where(np.isfinite(again)[:, None], begin, bounced)
        return result


@environments.add("maze")
class Maze(GoalEnvironment):
    """U-shaped four rooms; observation x, y, heading, three velocities, 0.001 × step count.

    An action is (move, turn): the heading turns by 0.25 × turn rad, then the body moves by `move`
    units (backwards if negative) along the new heading. A goal is reached within 1.0 of its x, y.
    """

    spec = GoalEnvironmentSpec(
        name="maze",
        observation_dim=7,
        action_dim=2,
        horizon=100,
        success_threshold=1.0,
        reachability_dims=(0, 1, 2),
        policy_dims=(0, 1, 2),
        goal_dims=(0, 1),
        angle_dims=(2,),
        plane_dims=(0, 1),
        categories=("room1", "room2", "room3", "room4"),
    )

    def __init__(self, num_envs: int, rng: np.random.Generator) -> None:
        """A batch of mazes, at the start; see `GoalEnvironment`."""
        super().__init__(num_envs, rng)
        self._walls = Walls()
        self._geodesic: GridGeodesic | None = None
        self._cells: Ints | None = None
        self.reset()

    def reset(self) -> Floats:
        """x, y and heading uniform in ±0.1 around 0, velocities normal with deviation 0.1."""
        pose = self.rng.uniform(-START_NOISE, START_NOISE, (self.num_envs, 3))
        self._position, self._heading = pose[:, :2].copy(), pose[:, 2].copy()
        self._velocity = self.rng.normal(0.0, 0.1, (self.num_envs, 3))
        self._steps = 0
        return self._observe()

    def scatter(self, rngs: Sequence[np.random.Generator]) -> Floats:
        """Anywhere free, with any heading."""
        starts = np.concatenate([self.goals(1, rng) for rng in rngs])
        self._velocity = np.array([rng.normal(0.0, 0.1, 3) for rng in rngs])
        self._steps = 0
        return self.place(starts[:, :2], starts[:, 2])

    def step(self, actions: Floats) -> Floats:
        """Turn, then move; see the class."""
        actions = np.clip(actions, -1.0, 1.0).astype(np.float64)
        heading = self._heading + TURN_PER_ACTION * actions[:, 1]
        self._heading = np.mod(heading + np.pi, 2 * np.pi) - np.pi
        move = actions[:, :1] * np.stack([np.cos(self._heading), np.sin(self._heading)], axis=1)
        target = self._position + move
        near = self._walls.near(self._position, actions[:, 0])
        if len(near):
            target[near] = self._walls.stop(self._position[near], target[near])
        self._position = target
        self._steps += 1
        return self._observe()

    def place(self, positions: Floats, headings: Floats) -> Floats:
        """Put the copies somewhere: (num_envs, 2), (num_envs,) → observations."""
        self._position = np.asarray(positions, np.float64).copy()
        self._heading = np.asarray(headings, np.float64).copy()
        return self._observe()

    def _observe(self) -> Floats:
        observations = np.empty((self.num_envs, 7), np.float32)
        observations[:, :2] = self._position
        observations[:, 2] = self._heading
        observations[:, 3:6] = self._velocity
        observations[:, 6] = CLOCK_SCALE * self._steps
        return observations

    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """Uniform free positions with uniform headings and zero velocity, (count, 7)."""
        found = np.empty((0, 2))
        while len(found) < count:
            candidates = rng.uniform(LOW, HIGH, (2 * count, 2))
            found = np.concatenate([found, candidates[is_free(candidates)]])
        goals = np.zeros((count, 7), np.float32)
        goals[:, :2] = found[:count]
        goals[:, 2] = rng.uniform(-np.pi, np.pi, count)
        return goals

    def distance(self, observations: Floats, goals: Floats) -> Floats:
        """Euclidean in x, y."""
        return np.linalg.norm(observations[:, :2] - goals[:, :2], axis=1)

    def path_distance(self, observations: Floats, goals: Floats) -> Floats:
        """Length of the shortest free path in x, y."""
        if self._geodesic is None:
            self._geodesic = GridGeodesic(is_free, LOW, HIGH, spacing=0.8)
        return self._geodesic.distance(observations[:, :2], goals[:, :2])

    def categories(self, observations: Floats) -> Ints:
        """The room, 0 to 3."""
        east = observations[:, 0] >= ROOM_BORDER[0]
        north = observations[:, 1] > ROOM_BORDER[1]
        return np.where(east, np.where(north, 3, 2), np.where(north, 0, 1))

    def cells(self, observations: Floats) -> tuple[Ints, int]:
        """1 × 1 cells whose centre is free."""
        size = np.ceil(HIGH - LOW).astype(int)
        if self._cells is None:
            grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
            free = is_free(LOW + grid.reshape(-1, 2) + 0.5)
            self._cells = np.where(free, np.cumsum(free) - 1, -1)
        index = np.clip((observations[:, :2] - LOW).astype(int), 0, size - 1)
        return self._cells[index[:, 0] * size[1] + index[:, 1]], int(self._cells.max()) + 1

    def draw(self, axes: Axes) -> None:
        """Draw the blocks."""
        from matplotlib.patches import Rectangle

        for row, line in enumerate(LAYOUT):
            for column, kind in enumerate(line):
                if kind == "B":
                    x, y = cell_centre(row, column)
                    corner: Any = (x - CELL / 2, y - CELL / 2)
                    axes.add_patch(Rectangle(corner, CELL, CELL, color="0.35", linewidth=0))
        axes.set_xlim(-6, 30)
        axes.set_ylim(-30, 6)
        axes.set_aspect("equal")
