"""Lengths of shortest free paths in the plane, over a grid of nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from farreach_workloads.goals.environments.base import Floats

# Half of the 16 directions of a node's neighbours, knight's moves included; the graph is
# undirected. They keep the detour of a straight line below 2.8 %; eight neighbours allow 8.2 %.
_OFFSETS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2))
# Segments are tested at points that lie at most this part of a spacing apart.
_RESOLUTION = 0.25
_CANDIDATES = 4
_PAIRS_PER_CHUNK = 4096


class GridGeodesic:
    """Shortest free paths between points of a rectangle with obstacles.

    Where the straight segment is free its length is the answer. Elsewhere the path leads over
    grid nodes, each linked with its 16 nearest directions. The table of all pairs of nodes
    (float32) is built on the first such question.

    ```
    geodesic = GridGeodesic(maze_is_free, low=(-1.6, -25.6), high=(25.6, 1.6), spacing=0.8)
    lengths = geodesic.distance(starts, goals)     # (n, 2), (n, 2) → (n,)
    ```
    """

    def __init__(
        self,
        free: Callable[[Floats], NDArray[np.bool_]],
        low: ArrayLike,
        high: ArrayLike,
        spacing: float,
    ) -> None:
        """A grid from `low` to `high`.

        Args:
            free: tells of points, (n, 2), whether a path may go through them, (n,).
            low: (2,), the first node.
            high: (2,), the bound that no node exceeds.
            spacing: distance between neighbouring nodes; narrower than half the narrowest door.
        """
        self._free = free
        self._low = np.asarray(low, np.float64)
        self._high = np.asarray(high, np.float64)
        self._spacing = spacing

    def distance(self, starts: Floats, ends: Floats) -> Floats:
        """Length of the shortest free path of each pair.

        A point that is not free itself stands for the free nodes around it, so that a body which
        is pressed a little into a wall still has a path.

        Args:
            starts: (n, 2).
            ends: (n, 2).

        Returns:
            (n,) float64; infinity where there is no path.
        """
        starts = np.asarray(starts, np.float64)
        ends = np.asarray(ends, np.float64)
        lengths = np.linalg.norm(ends - starts, axis=1)
        blocked = np.flatnonzero(~self._segments_free(starts, ends))
        for chunk in np.split(blocked, np.arange(_PAIRS_PER_CHUNK, len(blocked), _PAIRS_PER_CHUNK)):
            lengths[chunk] = self._over_nodes(starts[chunk], ends[chunk])
        return lengths

    def _over_nodes(self, starts: Floats, ends: Floats) -> Floats:
        """The shortest way start → a nearby node → a node near the end → end, (n,)."""
        if len(starts) == 0 or len(self._nodes) == 0:
            return np.full(len(starts), np.inf)
        from_nodes, from_lengths = self._access(starts)  # (n, candidates)
        to_nodes, to_lengths = self._access(ends)
        between = self._table[from_nodes[:, :, None], to_nodes[:, None, :]]
        ways = from_lengths[:, :, None] + between + to_lengths[:, None, :]
        return ways.reshape(len(starts), -1).min(axis=1)

    def _access(self, points: Floats) -> tuple[NDArray[np.intp], Floats]:
        """Nodes near each point and the lengths to them, (n, candidates) both.

        Nodes that the point does not see have length infinity, unless it sees none: then the
        nearest one counts.
        """
        lengths, nodes = self._tree.query(
            points, k=np.arange(1, _CANDIDATES + 1), distance_upper_bound=2 * self._spacing
        )
        nodes = np.where(np.isfinite(lengths), nodes, 0)
        seen = self._segments_free(
            np.repeat(points, _CANDIDATES, axis=0), self._nodes[nodes.ravel()]
        ).reshape(lengths.shape)
        seen[~seen.any(axis=1), 0] = True
        return nodes, np.where(seen, lengths, np.inf)

    def _segments_free(self, starts: Floats, ends: Floats) -> NDArray[np.bool_]:
        """Whether the inner points of each segment are free, (n,)."""
        lengths = np.linalg.norm(ends - starts, axis=1)
        resolution = _RESOLUTION * self._spacing
        steps = np.maximum(np.ceil(lengths / resolution), 1).astype(np.int64)
        clear = np.ones(len(starts), np.bool_)
        for step in range(1, int(steps.max(initial=1))):
            asked = np.flatnonzero(clear & (steps > step))
            part = (step / steps[asked])[:, None]
            clear[asked] = self._free(starts[asked] + part * (ends[asked] - starts[asked]))
        return clear

    @cached_property
    def _nodes(self) -> Floats:
        """Free nodes, (nodes, 2)."""
        return self._grid[self._node_index >= 0]

    @cached_property
    def _grid(self) -> Floats:
        """All nodes, (columns, rows, 2)."""
        counts = np.floor((self._high - self._low) / self._spacing + 1e-9).astype(np.int64) + 1
        axes = [
            low + self._spacing * np.arange(n) for low, n in zip(self._low, counts, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    @cached_property
    def _node_index(self) -> NDArray[np.int64]:
        """Number of each free node, -1 for the others, (columns, rows)."""
        shape = self._grid.shape[:2]
        is_free = np.asarray(self._free(self._grid.reshape(-1, 2))).reshape(shape)
        return np.where(is_free, np.cumsum(is_free).reshape(shape) - 1, -1)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self._nodes)

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """Path lengths between all pairs of nodes, (nodes, nodes)."""
        index = self._node_index
        columns, rows = index.shape
        heads, tails = [], []
        for right, up in _OFFSETS:
            first = index[: max(columns - right, 0), max(-up, 0) : max(rows - max(up, 0), 0)]
            second = index[right:, max(up, 0) :][: first.shape[0], : first.shape[1]]
            linked = (first >= 0) & (second >= 0)
            heads.append(first[linked])
            tails.append(second[linked])
        head, tail = np.concatenate(heads), np.concatenate(tails)
        clear = self._segments_free(self._nodes[head], self._nodes[tail])
        head, tail = head[clear], tail[clear]
        lengths = np.linalg.norm(self._nodes[head] - self._nodes[tail], axis=1)
        count = len(self._nodes)
        graph = coo_matrix((lengths, (head, tail)), shape=(count, count)).tocsr()
        table = np.empty((count, count), np.float32)
        # In blocks of rows: the float64 result of all rows at once would need thrice the memory.
        for start in range(0, count, 256):
            rows_asked = np.arange(start, min(start + 256, count))
            table[rows_asked] = dijkstra(graph, directed=False, indices=rows_asked)
        return table
