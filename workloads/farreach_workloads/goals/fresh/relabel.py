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
from typing import TYPE_CHECKING, Protocol

import numpy as np

from farreach.data.episodes import ACTION, OBSERVATION, EpisodeStore
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints
from farreach_workloads.goals.fresh.lengths import PathLengths
from farreach_workloads.goals.fresh.ways import Ways
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
        node: (n,) the node that hops count from.
        hops: (n,) from where the transition leads to, to the goal.
        kind: (n,) BASE, SUBGOAL, EDGE, FUTURE or NODE.
    """

    following: Ints
    goal_row: Ints
    goal_node: Ints
    node: Ints
    hops: Ints
    kind: Ints

    def shuffled(self, rng: np.random.Generator) -> Rows:
        """The same rows in another order."""
        order = rng.permutation(len(self.kind))
        return Rows(*(getattr(self, field.name)[order] for field in fields(self)))


class Discrete:
    """A distribution over 0 … k - 1, with a guide that says where in its cumulative sum to look.

    Several times as fast as a binary search (Chen and Asau, 1974).
    """

    def __init__(self, weights: Floats) -> None:
        """Probabilities in proportion to `weights`, (k,)."""
        self._cumulative = np.cumsum(weights, dtype=np.float64)
        self._cumulative /= self._cumulative[-1]
        begins = np.arange(len(weights)) / len(weights)
        self._guide = np.searchsorted(self._cumulative, begins, side="right")

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        """`count` independent draws."""
        at = rng.random(count)
        found = self._guide[(at * len(self._guide)).astype(np.int64)]
        behind = np.flatnonzero(self._cumulative[found] <= at)
        while behind.size:
            found[behind] += 1
            behind = behind[self._cumulative[found[behind]] <= at[behind]]
        return found


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
        self._ways = Ways(graph)
        self._by_outward = _Groups(following, outward[following], count)
        self._by_inward = _Groups(np.arange(store.rows), inward, count)
        self._subgoals = hops.astype(np.int32) + 1 if settings.subgoal_rows else 0 * hops
        self._per_pair = 1 + self._subgoals
        if settings.edge_rows:
            self._per_pair = self._per_pair + self._ways.stored
        weight: Floats = self._per_pair.astype(np.float64)
        weight *= np.outer(self._by_outward.sizes, self._by_inward.sizes)
        self._pairs = Discrete(weight.ravel())
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
        pair = self._pairs.draw(count, rng)
        start = pair // nodes
        end = pair - nodes * start
        following = self._by_outward.draw(start, rng)
        goal_row = self._by_inward.draw(end, rng)
        one = _below(rng, self._per_pair[start, end])
        subgoals = self._subgoals[start, end]
        kind = np.where(one == 0, BASE, np.where(one <= subgoals, SUBGOAL, EDGE))
        node, goal_node, hops = (
            start.copy(),
            end.copy(),
            self._graph.paths.hops[start, end].astype(np.int64),
        )
        sub = np.flatnonzero(kind == SUBGOAL)
        ahead = one[sub] - 1
        goal_node[sub] = self._ways.after(start[sub], end[sub], ahead)
        hops[sub], goal_row[sub] = ahead, -1
        edge = np.flatnonzero(kind == EDGE)
        behind = one[edge] - 1 - subgoals[edge]
        tail, head = self._ways.stored_edge(start[edge], end[edge], behind)
        number = self._graph.edge[tail, head]
        begin = self._graph.edge_starts[number]
        chosen = _below(rng, self._graph.edge_starts[number + 1] - begin)
        following[edge] = self._graph.edge_rows[begin + chosen]
        node[edge], hops[edge] = head, self._graph.paths.hops[head, end[edge]]
        return Rows(following, goal_row, goal_node, node, hops, kind)

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
        node = self._outward[following].astype(np.int64)
        hops = self._graph.paths.hops[node, goal_node].astype(np.int64)
        return Rows(following, goal_row, goal_node, node, hops, np.full(len(following), kind))


def _below(rng: np.random.Generator, bound: Ints) -> Ints:
    """A uniform integer in [0, bound) for each bound."""
    return np.minimum((rng.random(len(bound)) * bound).astype(np.int64), bound - 1)


@dataclass
class Batch:
    """Rows as arrays: observation, action, next observation and goal (n, ·), reward (n,).

    `continues` (n,) is 0 where the bootstrap is cut; None if it is nowhere.
    """

    observation: Floats
    action: Floats
    next_observation: Floats
    goal: Floats
    reward: Floats
    continues: Floats | None = None

    def inputs(self, features: Features) -> dict[str, Floats]:
        """The rows as `GoalSac.update` takes them."""
        arrays = {
            "pair": features.pair(self.observation, self.goal),
            "next_pair": features.pair(self.next_observation, self.goal),
            "action": self.action,
            "reward": self.reward,
        }
        return arrays if self.continues is None else arrays | {"continues": self.continues}


class RowSource(Protocol):
    """What the learner trains on."""

    def inputs(self, count: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Draw `count` rows, in no order, as the agent's `update` takes them."""


class PathSource:
    """The paper's rows with the shaped reward."""

    def __init__(
        self,
        rows: PathRows,
        store: EpisodeStore,
        bundle: Bundle,
        features: Features,
        settings: ShapedRewardConfig,
        env: GoalEnvironment,
    ) -> None:
        """Rewards come from bundle and hops; `env` supplies true distances to the oracle alone."""
        self._env = env
        self._rows, self._store, self._bundle = rows, store, bundle
        self._features, self._settings = features, settings
        self._lengths = PathLengths(bundle) if settings.distance == "lengths" else None

    def inputs(self, count: int, rng: np.random.Generator) -> dict[str, Floats]:
        """See `RowSource`."""
        # Kinds come one after the other, and a minibatch shall hold all of them.
        return self.fetch(self._rows.draw(count, rng).shuffled(rng)).inputs(self._features)

    def fetch(self, rows: Rows) -> Batch:
        """What the rows hold, and the shaped reward of each; see `ShapedRewardConfig`."""
        bundle, settings = self._bundle, self._settings
        observations, network = self._store[OBSERVATION], bundle.network
        following = observations[rows.following]
        start = network.embed(self._features.reachability(following))
        goal = bundle.nodes.take(rows.goal_node, axis=0)
        end = bundle.embeddings.take(rows.goal_node, axis=0)
        data = np.flatnonzero(rows.goal_row >= 0)
        goal[data] = drawn = observations[rows.goal_row[data]]
        end[data] = network.embed(self._features.reachability(drawn))
        if self._lengths is not None:
            seen = self._features.reachability(self._features.as_goal(goal, following))
            ways = (start, rows.node, end, rows.goal_node, network.embed(seen))
            value = -self._lengths.lengths(*ways)
        elif settings.distance == "reachability":
            value = network.logits(start, end)
        elif settings.distance == "oracle":
            value = -self._env.path_distance(following, goal)
        elif settings.distance == "oracle_sparse":
            is_there = self._env.distance(following, goal) < self._env.spec.success_threshold
            value = np.where(is_there, 0.0, -1.0)
        else:
            near = sigmoid(network.logits(start, end) / settings.temperature) - 1.0
            value = settings.weight * near - rows.hops
        return Batch(
            observations[rows.following - 1],
            self._store[ACTION][rows.following].astype(np.float32, copy=False),
            following,
            goal,
            (settings.scale * value).astype(np.float32),
        )
