"""Geometry of gymnasium-robotics' mazes: cells, walls, free paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from farreach.errors import ConfigError
from farreach_workloads.goals.environments.base import Floats, Ints
from farreach_workloads.goals.environments.grid_geodesic import GridGeodesic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WALL = 1
SUB_CELLS = 4  # coverage cells per side of a maze cell
QUADRANTS = ("north_west", "north_east", "south_west", "south_east")
_NODES_PER_SIDE = 4


class MazeMap:
    """A maze of square cells; row 0 is the northernmost."""

    def __init__(
        self,
        name: str,
        cells: list[list[Any]],
        side: float,
        noise: float,
        radius: float,
        reset_cell: tuple[int, int] | None,
        centre: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """The maze and the one place where every copy starts.

        Args:
            name: gymnasium id, for errors.
            cells: rows of cells; 1 is a wall, anything else is free.
            side: length of a cell's side.
            noise: half of the width of the square of start positions, and of goals, around the
                centre of a cell, in sides.
            radius: of the body, which keeps its centre off the walls.
            reset_cell: row and column where every copy starts; the first free cell in reading
                order if None.
            centre: x, y of the middle of the whole map.

        Raises:
            ConfigError: the reset cell is a wall or outside of the map.
        """
        self._free: NDArray[np.bool_] = np.array([[cell != WALL for cell in row] for row in cells])
        self._side = side
        self._noise = noise
        self._radius = radius
        half = 0.5 * side * np.array(self._free.shape)[::-1]
        self._low, self._high = np.array(centre) - half, np.array(centre) + half
        self._north_west = np.array([self._low[0], self._high[1]])
        self._centre = centre
        row, column = reset_cell or (int(i) for i in np.argwhere(self._free)[0])
        inside = 0 <= row < self._free.shape[0] and 0 <= column < self._free.shape[1]
        if not inside or not self._free[row, column]:
            raise ConfigError(
                f"environment.reset_cell: [{row}, {column}] is not a free cell of {name}. Free "
                f"cells: {', '.join(f'[{i}, {j}]' for i, j in np.argwhere(self._free))}."
            )
        self.reset_cell = (row, column)
        regions, _ = label(self._free)
        self._reachable = regions == regions[row, column]
        fine = np.kron(self._reachable, np.ones((SUB_CELLS, SUB_CELLS), np.bool_))
        self._sub_cells = np.where(fine, np.cumsum(fine).reshape(fine.shape) - 1, -1)
        self._geodesic = GridGeodesic(
            self.is_free, self._low + side / 2, self._high, spacing=side / _NODES_PER_SIDE
        )

    def starts(self, count: int, rng: np.random.Generator) -> Floats:
        """Start positions: the reset cell's centre with noise, (count, 2)."""
        return self._around(np.tile(self.reset_cell, (count, 1)), rng)

    def goals(self, count: int, rng: np.random.Generator) -> Floats:
        """Positions uniform over the cells that can be reached, with noise, (count, 2)."""
        cells = np.argwhere(self._reachable)
        return self._around(cells[rng.integers(len(cells), size=count)], rng)

    def _around(self, cells: Ints, rng: np.random.Generator) -> Floats:
        """Noisy positions around the centres of cells given by row and column, (n, 2)."""
        offsets = (cells[:, ::-1] + 0.5) * np.array([self._side, -self._side])
        noise = rng.uniform(-self._noise, self._noise, (len(cells), 2))
        return self._north_west + offsets + self._side * noise

    def _lookup(self, positions: Floats, table: NDArray[Any], side: float, outside: Any) -> Any:
        """The table's entry at each position; `outside` beyond its border."""
        columns = np.floor((positions[:, 0] - self._north_west[0]) / side).astype(np.int64)
        rows = np.floor((self._north_west[1] - positions[:, 1]) / side).astype(np.int64)
        inside = (rows >= 0) & (rows < table.shape[0]) & (columns >= 0) & (columns < table.shape[1])
        return np.where(inside, table[rows * inside, columns * inside], outside)

    def is_free(self, positions: Floats) -> NDArray[np.bool_]:
        """Whether the body fits at each position: (n, 2) → (n,)."""
        free = np.ones(len(positions), np.bool_)
        for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            moved = positions + self._radius * np.array(corner)
            free &= self._lookup(moved, self._free, self._side, outside=False)
        return free

    def path_distance(self, starts: Floats, ends: Floats) -> Floats:
        """Length of the shortest free path, (n, 2), (n, 2) → (n,)."""
        return self._geodesic.distance(starts, ends)

    def sub_cells(self, positions: Floats) -> tuple[Ints, int]:
        """Coverage cell of each position, -1 outside, and how many cells there are."""
        index = self._lookup(positions, self._sub_cells, self._side / SUB_CELLS, outside=-1)
        return index, int(self._sub_cells.max()) + 1

    def quadrants(self, positions: Floats) -> Ints:
        """Index into `QUADRANTS` of each position, (n,)."""
        east, north = positions[:, 0] >= self._centre[0], positions[:, 1] >= self._centre[1]
        return np.where(north, 0, 2) + np.where(east, 1, 0)

    def draw(self, axes: Axes) -> None:
        """Draw the walls."""
        from matplotlib.patches import Rectangle

        for row, column in np.argwhere(~self._free):
            corner = self._north_west + self._side * np.array([column, -(row + 1)])
            axes.add_patch(
                Rectangle((corner[0], corner[1]), self._side, self._side, color="0.35", linewidth=0)
            )
        axes.set_xlim(self._low[0], self._high[0])
        axes.set_ylim(self._low[1], self._high[1])
        axes.set_aspect("equal")
