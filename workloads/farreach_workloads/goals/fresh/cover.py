"""Second stage: the memory, the nearest nodes of every state, and the graph.

Source: arXiv:2301.02099, memory and graph, and its released code. The moving state uses the node
that it can get to (`outward`), a goal the node that gets to it (`inward`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach import seeding
from farreach.data.episodes import OBSERVATION, EpisodeStore
from farreach.errors import DataError
from farreach_workloads.goals.environments.base import Floats, GoalEnvironmentSpec, Ints
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.folded import FoldedReachability
from farreach_workloads.goals.graph import Paths, directed_paths, shortest_paths
from farreach_workloads.goals.novelty import BestNode

if TYPE_CHECKING:
    from farreach_workloads.goals.fresh.config import FreshRunConfig
    from farreach_workloads.goals.reachability_trainer import ReachabilityWeights

# Candidates that are filtered together; between two such groups nodes can be given up.
CANDIDATES_TOGETHER = 20_000
ROWS_TOGETHER = 50_000


@dataclass(frozen=True)
class Memory:
    """The nodes that cover the data.

    Attributes:
        nodes: (n, d) observations; node 0 is the first of all.
        rows: (n,) their rows in the data set.
        tested: how many candidates were looked at.
        overwritten: how often a full memory gave a node up.
    """

    nodes: Floats
    rows: Ints
    tested: int
    overwritten: int


def build_memory(
    store: EpisodeStore,
    config: FreshRunConfig,
    spec: GoalEnvironmentSpec,
    weights: ReachabilityWeights,
) -> Memory:
    """Filter a share of the observations, in their order.

    A state becomes a node if no node reaches it and it reaches none (undirected: if it reaches
    none). A full memory gives up a random node, but for node 0.

    Raises:
        DataError: all of the data fall to one node.
    """
    settings = config.memory
    network = weights.network
    features = Features(spec, config.features, config.reachability, weights.scale, weights.unit)
    rng = seeding.generator(config.seed, "memory")
    kept = np.flatnonzero(rng.random(store.rows) < settings.keep_frac)
    candidates = np.union1d([0], kept)
    rows = np.zeros(settings.capacity, np.int64)
    nodes = np.zeros((settings.capacity, network.embedding), np.float32)
    count, overwritten = 0, 0
    for begin in range(0, len(candidates), CANDIDATES_TOGETHER):
        group = candidates[begin : begin + CANDIDATES_TOGETHER]
        embeddings = network.embed(features.reachability(store[OBSERVATION][group]))

        def covered(which: Ints, slots: Ints, own: Floats = embeddings) -> Floats:
            outward = network.all_pairs(own[which], nodes[slots])
            if not config.reachability.directed:
                return outward
            return np.maximum(outward, network.all_pairs(nodes[slots], own[which]).T)

        position = -1
        if count == 0:
            nodes[0], count, position = embeddings[0], 1, 0
        best = BestNode(covered, len(group), count)
        while (position := best.next_below(settings.threshold, position)) >= 0:
            slot = count
            if count == settings.capacity:
                slot = int(rng.integers(1, count))
                overwritten += 1
            count = max(count, slot + 1)
            nodes[slot], rows[slot] = embeddings[position], group[position]
            best.placed(slot, position, count)
    if count < 2:
        raise DataError(
            f"memory.threshold {settings.threshold:g}: every one of {len(candidates):,} candidates "
            "counts as reached from the first, so the memory has one node. Raise it, train the "
            "network for longer, or lower reachability.window."
        )
    return Memory(store[OBSERVATION][rows[:count]], rows[:count], len(candidates), overwritten)


def nearest_of_rows(
    store: EpisodeStore,
    features: Features,
    network: FoldedReachability,
    nodes: Floats,
    first: int,
    last: int,
) -> tuple[Ints, Ints]:
    """Outward and inward node of the rows from `first` to before `last`, int16 both.

    Args:
        store: the data set.
        features: of the network.
        network: the reachability network.
        nodes: embeddings of the memory, (n, e).
        first: row to begin with.
        last: row to end before.
    """
    outward = np.empty(last - first, np.int16)
    inward = np.empty(last - first, np.int16)
    for begin in range(first, last, ROWS_TOGETHER):
        end = min(begin + ROWS_TOGETHER, last)
        own = network.embed(features.reachability(store[OBSERVATION][np.arange(begin, end)]))
        part = slice(begin - first, end - first)
        outward[part] = network.nearest(own, nodes)[0]
        inward[part] = network.nearest(own, nodes, incoming=True)[0]
    return outward, inward


@dataclass(frozen=True)
class DataGraph:
    """The directed graph, and the transitions behind its edges.

    Attributes:
        edges: (n, n) bool, what the transitions support and the network does not contradict.
        paths: hops and next hops of the connected graph.
        edge: (n, n) int32, number of the edge from i to j, -1 without a transition behind it.
        edge_starts: (edges + 1,) where the transitions of each edge begin in `edge_rows`.
        edge_rows: rows that the transitions lead to.
        contradicted: edges that the network removed.
    """

    edges: np.ndarray
    paths: Paths
    edge: Ints
    edge_starts: Ints
    edge_rows: Ints
    contradicted: int


def build_graph(
    store: EpisodeStore,
    config: FreshRunConfig,
    outward: Ints,
    inward: Ints,
    score: Callable[[Ints, Ints], Floats],
    count: int,
) -> DataGraph:
    """Edges from a share of the transitions: in → out of each end, and across.

    Args:
        store: the data set.
        config: of the run.
        outward: (rows,) node that each state gets to.
        inward: (rows,) node that gets to each state.
        score: (nodes i, nodes j) → logits (len(i), len(j)).
        count: number of nodes.
    """
    settings = config.graph
    rng = seeding.generator(config.seed, "graph")
    rows = transitions(store)
    rows = rows[rng.random(len(rows)) < settings.edge_frac]
    before = rows - 1
    tails = np.stack([inward[before], inward[rows], inward[before]]).astype(np.int64)
    heads = np.stack([outward[before], outward[rows], outward[rows]]).astype(np.int64)
    support = _support(tails, heads, count, directed=config.reachability.directed)
    moved = tails != heads
    pair, rows = (tails * count + heads)[moved], np.tile(rows, (3, 1))[moved]
    supported = support >= settings.min_edge_support
    edges = supported.copy()
    least = settings.min_edge_probability
    if least > 0:
        every = np.arange(count)
        scores = score(every, every)
        if not config.reachability.directed:
            scores = np.maximum(scores, scores.T)
        edges &= scores >= np.log(least / (1 - least))
    connect = directed_paths if config.reachability.directed else shortest_paths
    paths = connect(edges, score)
    order = np.argsort(pair, kind="stable")
    pair, rows = pair[order], rows[order]
    kept = edges.ravel()[pair]
    pair, rows = pair[kept], rows[kept]
    numbers, first = np.unique(pair, return_index=True)
    edge = np.full(count * count, -1, np.int32)
    edge[numbers] = np.arange(len(numbers))
    return DataGraph(
        edges,
        paths,
        edge.reshape(count, count),
        np.append(first, len(rows)).astype(np.int64),
        rows,
        int(supported.sum() - edges.sum()),
    )


def _support(tails: Ints, heads: Ints, count: int, *, directed: bool) -> Ints:
    """How many transitions support the edge between each two nodes.

    Args:
        tails: (3, m) where the three edges of each transition begin; it counts once for those
            that are the same.
        heads: (3, m) where they end.
        count: number of nodes.
        directed: whether an edge back is another one.

    Returns:
        (count, count), 0 on the diagonal.
    """
    if not directed:
        tails, heads = np.minimum(tails, heads), np.maximum(tails, heads)
    pair = tails * count + heads
    is_new = tails != heads
    is_new[1] &= pair[1] != pair[0]
    is_new[2] &= (pair[2] != pair[0]) & (pair[2] != pair[1])
    support = np.bincount(pair[is_new], minlength=count * count).reshape(count, count)
    return support if directed else support + support.T


def transitions(store: EpisodeStore) -> Ints:
    """Rows that a transition leads to: all but the first of each episode."""
    is_first = np.zeros(store.rows, np.bool_)
    is_first[store.starts[:-1]] = True
    return np.flatnonzero(~is_first)


def graph_arrays(graph: DataGraph) -> dict[str, Any]:
    """A graph as arrays, for a file."""
    return {
        "edges": graph.edges,
        "hops": graph.paths.hops,
        "next_hop": graph.paths.next_hop,
        "connectors": graph.paths.connectors,
        "components": graph.paths.components,
        "edge": graph.edge,
        "edge_starts": graph.edge_starts,
        "edge_rows": graph.edge_rows,
        "contradicted": graph.contradicted,
    }


def graph_from_arrays(content: dict[str, Any]) -> DataGraph:
    """The inverse of `graph_arrays`."""
    names = ("hops", "next_hop", "connectors", "components")
    paths = Paths(**{name: content.pop(name) for name in names})
    return DataGraph(paths=paths, **content)
