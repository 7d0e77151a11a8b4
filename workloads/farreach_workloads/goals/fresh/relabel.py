"""Third stage's batches: which rows they hold, in the paper's exact shares, and their rewards.

The paper fills a buffer: a uniform transition (s, a, s') and a uniform goal g give one base row.
With P the shortest path from the node u that s' gets to, to the node w that gets to g, every node
of P gives one row with that node as the goal, and every edge of P with a stored transition gives
one row with that transition and the goal g. Here a row is drawn at a time, with the same
probabilities: first the pair (u, w), in proportion to how many rows all of its transitions and
goals give together, then a transition of u, a goal of w, and one of the pair's rows.

Source: arXiv:2301.02099, its released code's replay filler.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from farreach.data.episodes import ACTION, OBSERVATION, EpisodeStore
from farreach_workloads.goals.environments.base import Floats, Ints
from farreach_workloads.goals.relabel import future_steps
from farreach_workloads.goals.rewards import sigmoid

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.features import Features
    from farreach_workloads.goals.fresh.config import RowsConfig, ShapedRewardConfig
    from farreach_workloads.goals.fresh.cover import DataGraph

BASE, SUBGOAL, EDGE, FUTURE, NODE = range(5)


@dataclass
class Rows:
    """n rows to train on.

    Attributes:
        following: (n,) row of the data set that the transition leads to; it starts one before.
        goal_row: (n,) row of the goal, or -1 where a node is the goal.
        goal_node: (n,) the node that is the goal, or that gets to it.
        hops: (n,) from where the transition leads to, to the goal.
        kind: (n,) BASE, SUBGOAL, EDGE, FUTURE or NODE.
    """

    following: Ints
    goal_row: Ints
    goal_node: Ints
    hops: Ints
    kind: Ints

    def shuffled(self, rng: np.random.Generator) -> Rows:
        """The same rows in another order."""
        order = rng.permutation(len(self.kind))
        return Rows(*(getattr(self, field.name)[order] for field in fields(self)))


class _Groups:
    """Rows grouped by their node, to draw uniformly from a node's own."""

    def __init__(self, rows: Ints, nodes: Ints, count: int) -> None:
        order = np.argsort(nodes, kind="stable")
        self.rows = rows[order].astype(np.int64 if rows.max(initial=0) >= 2**31 else np.int32)
        self.sizes = np.bincount(nodes, minlength=count)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def draw(self, nodes: Ints, rng: np.random.Generator) -> Ints:
        """A uniform row of each node, (n,) → (n,)."""
        return self.rows[self.starts[nodes] + _below(rng, self.sizes[nodes])].astype(np.int64)


class PathRows:
    """Draws rows of the data set as training rows; see the module."""

    def __init__(
        self,
        store: EpisodeStore,
        following: Ints,
        outward: Ints,
        inward: Ints,
        graph: DataGraph,
        settings: RowsConfig,
    ) -> None:
        """Prepare the distributions.

        Args:
            store: the data set.
            following: rows that transitions lead to, (m,).
            outward: (rows,) node that each state gets to.
            inward: (rows,) node that gets to each state.
            graph: the graph.
            settings: shares.
        """
        self._store, self._graph, self._settings = store, graph, settings
        self._outward, self._inward = outward, inward
        self._following = following
        hops, count = graph.paths.hops, len(graph.paths.hops)
        self._by_outward = _Groups(following, outward[following], count)
        self._by_inward = _Groups(np.arange(store.rows), inward, count)
        self._subgoals = hops.astype(np.int64) + 1 if settings.subgoal_rows else 0 * hops
        self._stored = _stored_edges(graph) if settings.edge_rows else 0 * hops.astype(np.int64)
        self._per_pair = 1 + self._subgoals + self._stored
        weight = np.outer(self._by_outward.sizes, self._by_inward.sizes) * self._per_pair
        self._cumulative = np.cumsum(weight.ravel().astype(np.float64))
        self._shares = np.cumsum([settings.path, settings.future, settings.node])

    def draw(self, count: int, rng: np.random.Generator) -> Rows:
        """Draw `count` rows in the configured shares."""
        which = np.minimum(np.searchsorted(self._shares, rng.random(count), side="right"), 2)
        parts = [
            draw(int((which == index).sum()), rng)
            for index, draw in enumerate((self._path, self._future, self._node))
        ]
        return Rows(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Rows))
        )

    def _path(self, count: int, rng: np.random.Generator) -> Rows:
        """Base, sub-goal and edge rows."""
        nodes = len(self._per_pair)
        at = rng.random(count) * self._cumulative[-1]
        pair = np.searchsorted(self._cumulative, at, side="right")
        start, end = np.divmod(np.minimum(pair, nodes * nodes - 1), nodes)
        following = self._by_outward.draw(start, rng)
        goal_row = self._by_inward.draw(end, rng)
        one = _below(rng, self._per_pair[start, end])
        subgoals = self._subgoals[start, end]
        kind = np.where(one == 0, BASE, np.where(one <= subgoals, SUBGOAL, EDGE))
        goal_node, hops = end.copy(), self._graph.paths.hops[start, end].astype(np.int64)
        sub = np.flatnonzero(kind == SUBGOAL)
        ahead = one[sub] - 1
        goal_node[sub] = self._along(start[sub], end[sub], ahead)
        hops[sub], goal_row[sub] = ahead, -1
        edge = np.flatnonzero(kind == EDGE)
        wanted = one[edge] - 1 - subgoals[edge]
        number, head = self._stored_edge(start[edge], end[edge], wanted)
        begin = self._graph.edge_starts[number]
        chosen = _below(rng, self._graph.edge_starts[number + 1] - begin)
        following[edge] = self._graph.edge_rows[begin + chosen]
        hops[edge] = self._graph.paths.hops[head, end[edge]]
        return Rows(following, goal_row, goal_node, hops, kind)

    def _along(self, start: Ints, end: Ints, ahead: Ints) -> Ints:
        """The node so many hops along each path."""
        node, left = start.copy(), ahead.copy()
        while (on := np.flatnonzero(left > 0)).size:
            node[on] = self._graph.paths.next_hop[node[on], end[on]]
            left[on] -= 1
        return node

    def _stored_edge(self, start: Ints, end: Ints, wanted: Ints) -> tuple[Ints, Ints]:
        """Number and head of the `wanted`-th edge of each path that has a transition."""
        node, left = start.copy(), wanted.copy()
        number, head = np.full(len(start), -1), np.full(len(start), -1)
        on = np.arange(len(start))
        while on.size:
            following = self._graph.paths.next_hop[node[on], end[on]].astype(np.int64)
            edge = self._graph.edge[node[on], following]
            here = (edge >= 0) & (left[on] == 0)
            number[on[here]], head[on[here]] = edge[here], following[here]
            left[on] -= edge >= 0
            node[on] = following
            on = on[~here]
        return number, head

    def _future(self, count: int, rng: np.random.Generator) -> Rows:
        """Goals that the transition's own episode reaches later."""
        following = self._following[rng.integers(0, len(self._following), count)]
        starts = self._store.starts
        last = starts[np.searchsorted(starts, following, side="right")] - 1
        mean = self._settings.future_mean_steps
        goal_row = np.minimum(future_steps(rng, following - 1, self._store.rows, mean), last)
        return self._towards(following, goal_row, self._inward[goal_row].astype(np.int64), FUTURE)

    def _node(self, count: int, rng: np.random.Generator) -> Rows:
        """Uniform nodes as goals."""
        following = self._following[rng.integers(0, len(self._following), count)]
        node = rng.integers(0, len(self._per_pair), count)
        return self._towards(following, np.full(count, -1), node, NODE)

    def _towards(self, following: Ints, goal_row: Ints, goal_node: Ints, kind: int) -> Rows:
        hops = self._graph.paths.hops[self._outward[following], goal_node].astype(np.int64)
        return Rows(following, goal_row, goal_node, hops, np.full(len(following), kind))


def _stored_edges(graph: DataGraph) -> Ints:
    """Edges with a transition on the shortest path of each pair, (n, n)."""
    hops, next_hop = graph.paths.hops, graph.paths.next_hop
    count = len(hops)
    stored = np.zeros((count, count), np.int64)
    node = np.repeat(np.arange(count)[:, None], count, axis=1)
    end = np.arange(count)[None, :]
    for _ in range(int(hops.max())):
        following = next_hop[node, end].astype(np.int64)
        stored += graph.edge[node, following] >= 0
        node = following
    return stored


def _below(rng: np.random.Generator, bound: Ints) -> Ints:
    """A uniform integer in [0, bound) for each bound."""
    return np.minimum((rng.random(len(bound)) * bound).astype(np.int64), bound - 1)


@dataclass
class Batch:
    """Rows as arrays: observation, action, next observation and goal (n, ·), reward (n,)."""

    observation: Floats
    action: Floats
    next_observation: Floats
    goal: Floats
    reward: Floats


def fetch(
    rows: Rows,
    store: EpisodeStore,
    bundle: Bundle,
    features: Features,
    settings: ShapedRewardConfig,
) -> Batch:
    """What the rows hold, and the shaped reward of each.

    scale × (-hops + weight × (σ(R(s' → g) / temperature) - 1)); nothing is terminal.
    """
    observations = store[OBSERVATION]
    following = observations[rows.following]
    goal = bundle.nodes[rows.goal_node]
    data = np.flatnonzero(rows.goal_row >= 0)
    goal[data] = observations[rows.goal_row[data]]
    network = bundle.network
    start = network.embed(features.reachability(following))
    end = network.embed(features.reachability(goal))
    near = sigmoid(network.logits(start, end) / settings.temperature) - 1.0
    reward = settings.scale * (settings.weight * near - rows.hops)
    return Batch(
        observations[rows.following - 1],
        store[ACTION][rows.following],
        following,
        goal,
        reward.astype(np.float32),
    )
