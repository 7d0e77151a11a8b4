"""The shortest paths between all nodes, walked when they are asked for.

Written out, n nodes with paths of up to h hops would take some n² × h × 4 bytes: 8 GB for 10,000
nodes 20 hops apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from farreach_workloads.goals.environments.base import Ints

if TYPE_CHECKING:
    from farreach_workloads.goals.fresh.cover import DataGraph

# Pairs of nodes whose paths are walked together.
PAIRS_TOGETHER = 2_000_000


class Ways:
    """What training rows ask of the paths.

    Attributes:
        stored: (n, n) int16, edges with a transition behind them on the path from i to j.
    """

    def __init__(self, graph: DataGraph) -> None:
        """Walk every path once, of a graph of which every two nodes are connected."""
        self._next, self._is_stored = graph.paths.next_hop.ravel(), graph.edge.ravel() >= 0
        self._count = count = len(graph.edge)
        self.stored: Ints = np.zeros((count, count), np.int16)
        together = max(1, PAIRS_TOGETHER // count)
        for first in range(0, count, together):
            starts = np.arange(first, min(first + together, count))
            node: Ints = np.repeat(starts, count)
            end = np.tile(np.arange(count), len(starts))
            found = np.zeros(len(node), np.int16)
            for _ in range(int(graph.paths.hops[starts].max())):
                following = self._step(node, end)
                found += self._is_stored.take(node * count + following)
                node = following
            self.stored[starts] = found.reshape(len(starts), count)

    def after(self, start: Ints, end: Ints, steps: Ints) -> Ints:
        """The nodes after so many steps on the paths from `start` to `end`; all (m,)."""
        order = np.argsort(-steps)  # those that go on are then the first
        longer = len(steps) - np.cumsum(np.bincount(steps))
        node, end = start[order], end[order]
        for going in longer[:-1].tolist():
            node[:going] = self._step(node[:going], end[:going])
        result = np.empty_like(node)
        result[order] = node
        return result

    def stored_edge(self, start: Ints, end: Ints, number: Ints) -> tuple[Ints, Ints]:
        """Both ends of one of the `stored` edges of each path, by its number; all (m,)."""
        tails, heads = np.empty_like(start), np.empty_like(start)
        left, place, tail = number + 1, np.arange(len(start)), start
        while place.size:
            head = self._step(tail, end)
            left = left - self._is_stored.take(tail * self._count + head)
            found = left == 0
            tails[place[found]], heads[place[found]] = tail[found], head[found]
            place, tail, end, left = (x[~found] for x in (place, head, end, left))
        return tails, heads

    def _step(self, node: Ints, end: Ints) -> Ints:
        return self._next.take(node * self._count + end).astype(np.int64)
