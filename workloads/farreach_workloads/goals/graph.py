"""The graph over memory nodes: connecting it, hop distances and next hops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csgraph, csr_matrix

from farreach_workloads.goals.environments.base import Floats, Ints


@dataclass(frozen=True)
class Paths:
    """Shortest paths between all nodes.

    Attributes:
        hops: (n, n) int16, number of edges; the graph is connected, so none is missing.
        next_hop: (n, n) int16, the node after i on the way to j; i itself where i = j.
        connectors: edges that had to be added to connect the graph, (k, 2).
        components: connected components before that.
    """

    hops: Ints
    next_hop: Ints
    connectors: Ints
    components: int


def shortest_paths(adjacency: np.ndarray, score: Callable[[Ints, Ints], Floats]) -> Paths:
    """Connect the graph, then find all shortest paths by breadth-first search.

    While there are several components, the smallest (the first on ties) is joined to the rest by
    the pair of nodes with the best score.

    Args:
        adjacency: (n, n) bool, symmetric.
        score: (nodes i, nodes j) → (len(i), len(j)), how well j is reached from i.

    Source: arXiv:2301.02099, graph over the memory; the undirected case.
    """
    count = len(adjacency)
    connected = adjacency.copy()
    connectors = []
    components, labels = csgraph.connected_components(csr_matrix(connected), directed=False)
    before = components
    while components > 1:
        smallest = int(np.bincount(labels).argmin())
        inside, outside = np.flatnonzero(labels == smallest), np.flatnonzero(labels != smallest)
        scores = np.maximum(score(inside, outside), score(outside, inside).T)
        i, j = np.unravel_index(int(scores.argmax()), scores.shape)
        pair = (int(inside[i]), int(outside[j]))
        connectors.append(pair)
        connected[pair[0], pair[1]] = connected[pair[1], pair[0]] = True
        components, labels = csgraph.connected_components(csr_matrix(connected), directed=False)
    hops, previous = csgraph.shortest_path(
        csr_matrix(connected), unweighted=True, directed=False, return_predecessors=True
    )
    # In an undirected graph the node before i on the way from j is the node after i towards j.
    next_hop = previous.T.astype(np.int16)
    np.fill_diagonal(next_hop, np.arange(count))
    assert (next_hop >= 0).all(), "the graph is connected, so every pair has a path"
    return Paths(
        hops.astype(np.int16),
        np.ascontiguousarray(next_hop),
        np.array(connectors, np.int64).reshape(-1, 2),
        before,
    )


def directed_paths(adjacency: np.ndarray, score: Callable[[Ints, Ints], Floats]) -> Paths:
    """The same in a directed graph, which is made strongly connected.

    While there are several strong components, the smallest (the first on ties) gets one edge: the
    better of the best one from it to a node that it does not reach yet, and of the best one to it
    from a node that does not reach it yet.

    Args:
        adjacency: (n, n) bool, [i, j] for an edge from i to j.
        score: as in `shortest_paths`.

    Source: arXiv:2301.02099, graph over the memory, and its released code.
    """
    count = len(adjacency)
    connected = adjacency.copy()
    connectors = []

    def strong() -> tuple[int, Ints]:
        return csgraph.connected_components(csr_matrix(connected), connection="strong")

    components, labels = strong()
    before = components
    every = np.arange(count)
    while components > 1:
        size = np.bincount(labels)[labels]  # of each node's component
        inside = np.flatnonzero(labels == labels[size.argmin()])
        graph = csr_matrix(connected)
        # All of a strong component reach the same nodes, so its first node speaks for it.
        unreached = np.isinf(csgraph.dijkstra(graph, indices=inside[0], unweighted=True))
        unreaching = np.isinf(csgraph.dijkstra(graph.T, indices=inside[0], unweighted=True))
        best, edge = -np.inf, (-1, -1)
        for away, others in ((True, every[unreached]), (False, every[unreaching])):
            if not len(others):
                continue
            scores = score(inside, others) if away else score(others, inside)
            i, j = np.unravel_index(int(scores.argmax()), scores.shape)
            if scores[i, j] > best:
                best = float(scores[i, j])
                edge = (inside[i], others[j]) if away else (others[i], inside[j])
        connectors.append((int(edge[0]), int(edge[1])))
        connected[edge] = True
        components, labels = strong()
    # Searched backwards, from each end: the node before i on the way back is the node after i.
    hops, previous = csgraph.shortest_path(
        csr_matrix(connected.T), unweighted=True, return_predecessors=True
    )
    next_hop = previous.T.astype(np.int16)
    np.fill_diagonal(next_hop, every)
    assert (next_hop >= 0).all(), "the graph is strongly connected, so every pair has a path"
    return Paths(
        np.ascontiguousarray(hops.T.astype(np.int16)),
        np.ascontiguousarray(next_hop),
        np.array(connectors, np.int64).reshape(-1, 2),
        before,
    )
