"""Distance along the graph in lengths instead of hops.

Hops are whole numbers: within a node's region, several steps across, none of them changes, and the
reward tells the policy nothing. The metric comparator's distance says more. An edge is as long as
its ends are apart, a path as long as its edges, and a state joins the graph at whichever of its
node and that node's neighbours makes the way shortest. The unit is the distance at which a state
just counts as reached, so a hop is one to two units long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csgraph, csr_matrix

from farreach_workloads.goals.environments.base import Floats, Ints
from farreach_workloads.goals.folded import FoldedMetric

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle

# Nearest neighbours of a node over which a state may join the graph.
ENTRIES = 12


class PathLengths:
    """Lengths of the shortest ways from states to goals; n nodes, embeddings of e dims."""

    def __init__(self, bundle: Bundle) -> None:
        """The bundle's comparator must be a metric."""
        comparator, nodes = bundle.network.comparator, bundle.embeddings
        assert isinstance(comparator, FoldedMetric)
        self._metric = comparator
        apart = self._units(comparator.all_pairs(nodes, nodes))
        linked = bundle.edges.copy()
        linked[tuple(bundle.connectors.T)] = True
        if not bundle.directed:
            linked |= linked.T
        i, j = np.nonzero(linked)
        # A length of 0 would be no edge to scipy.
        graph = csr_matrix((np.maximum(apart[i, j], 1e-6), (i, j)), apart.shape)
        self.between: Floats = csgraph.dijkstra(graph).astype(np.float32)  # (n, n)
        np.fill_diagonal(linked, True)
        entries = np.argsort(np.where(linked, apart, np.inf), axis=1)[:, :ENTRIES]
        # Nodes with fewer neighbours have themselves again.
        own = np.take_along_axis(linked, entries, axis=1)
        self._entries = np.where(own, entries, np.arange(len(nodes))[:, None])
        self._embeddings = nodes[self._entries]  # (n, k, e)

    def _units(self, logits: Floats) -> Floats:
        return 1.0 - logits / np.float32(self._metric.offset)

    def apart(self, start: Floats, end: Floats) -> Floats:
        """Distance of embeddings in units, row by row: (m, e) both → (m,)."""
        return self._units(self._metric.logits(start, end))

    def lengths(
        self, start: Floats, node: Ints, goal: Floats, goal_node: Ints, seen: Floats
    ) -> Floats:
        """Length of the way from each state to its goal.

        A goal that counts as reachable from the state (one unit) is as far as it is; to others the
        way leads over the goal's node.

        Args:
            start: (m, e) embeddings of states.
            node: (m,) the node that each gets to.
            goal: (m, e) embeddings of goals.
            goal_node: (m,) the node that gets to each.
            seen: (m, e) embeddings of the goals as the states see them; see `Features.as_goal`.

        Returns:
            (m,) float32, at least 0.
        """
        count, entries = len(start), self._entries.shape[1]
        ends = self._embeddings[node].reshape(count * entries, -1)
        to_entry = self.apart(np.repeat(start, entries, axis=0), ends).reshape(count, entries)
        along = to_entry + self.between[self._entries[node], goal_node[:, None]]
        far = along.min(axis=1) + self.apart(self._node_embedding(goal_node), goal)
        near = self.apart(start, seen)
        return np.where(near <= 1.0, near, np.maximum(far, 1.0)).astype(np.float32)

    def _node_embedding(self, node: Ints) -> Floats:
        # A node is its own nearest neighbour, and so its first entry.
        return self._embeddings[node, 0]
