"""The goal memory: states that the memory cannot reach yet, and the graph that walks draw over it.

Refresh (`integrate`): take over the new network, re-embed all nodes, filter the random walks that
came in since, link the nodes that consecutive states of a walk fall to, connect, publish.

Source: arXiv:2206.11733, Figure 1; filter and graph as in the code it shares with
arXiv:2301.02099.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farreach import messages, seeding
from farreach_workloads.goals.bundle import Bundle, Guide, nodes_per_category
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.graph import shortest_paths
from farreach_workloads.goals.novelty import BestNode, Cover
from farreach_workloads.goals.rollout import guide_for_rollouts

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig
    from farreach_workloads.goals.folded import FoldedReachability
    from farreach_workloads.goals.reachability_trainer import ReachabilityWeights

# Node columns that follow a node through overwriting, pruning and checkpoints.
COLUMNS = (
    "nodes",
    "embeddings",
    "born",
    "added_at",
    "predecessor",
    "passes",
    "attempts",
    "successes",
)


class GoalMemory:
    """Nodes and graph; a plain object whose actor is a wrapper.

    ```
    memory.add(walks)                       # any number of times
    bundle, guide, metrics = memory.integrate(weights)
    ```
    """

    def __init__(self, config: GoalsRunConfig, env: GoalEnvironment) -> None:
        """An empty memory; `env` supplies the spec and, for the oracle curriculum, distances."""
        self._config, self._settings = config, config.memory
        self._env, self._spec = env, env.spec
        self._rng = seeding.generator(config.seed, "memory")
        self._waiting: list[dict[str, Any]] = []
        self._version = 0
        self._count = 0
        capacity, d = self._settings.capacity, env.spec.observation_dim
        self._columns: dict[str, Any] = {
            "nodes": np.zeros((capacity, d), np.float32),
            "embeddings": np.zeros((capacity, config.reachability.embedding), np.float32),
            "born": np.zeros(capacity, np.int64),
            "added_at": np.zeros(capacity, np.int64),
            "predecessor": np.full(capacity, -1, np.int64),
            "passes": np.zeros(capacity),
            "attempts": np.zeros(capacity),
            "successes": np.zeros(capacity),
        }
        self._support = np.zeros((capacity, capacity), np.int32)

    def add(self, walks: Mapping[str, Any]) -> None:
        """Queue random walks for the next refresh.

        Args:
            walks: `observations` (n, steps + 1, d); `goal_slot` (n,) and `goal_version` (n,), the
                node that was pursued before each walk (-1: none); `reached` (n,) bool, whether the
                pursuit ended at it; `env_steps`, the step count when they were collected.
        """
        self._waiting.append({name: np.array(value) for name, value in walks.items()})

    def integrate(self, weights: ReachabilityWeights) -> tuple[Bundle, Guide, dict[str, float]]:
        """Re-embed, filter the queued walks, link, connect.

        Returns:
            The new bundle, what rollouts need of it, and metrics.
        """
        self._version += 1
        config = self._config
        features = Features(
            self._spec, config.features, config.reachability, weights.scale, weights.unit
        )
        network = weights.network
        n = self._count
        column = self._columns
        column["embeddings"][:n] = network.embed(features.reachability(column["nodes"][:n]))
        pruned = self._prune(network) if self._settings.prune else 0
        added, candidates = 0, 0
        for walks in self._waiting:
            self._count_pursuits(walks)
        for walks in self._waiting:
            new, tested = self._filter_and_link(walks, network, features)
            added, candidates = added + new, candidates + tested
        self._waiting.clear()
        supported = self._supported()
        bundle = self._bundle(weights, supported)
        agreed = float(bundle.edges.sum() / supported.sum()) if supported.any() else 1.0
        metrics = {
            "memory/nodes": float(len(bundle)),
            "memory/added": float(added),
            "memory/pruned": float(pruned),
            "memory/candidates": float(candidates),
            "graph/edges": float(bundle.edges.sum() // 2),
            "graph/contradicted_frac": 1.0 - agreed,
            "graph/components": float(bundle.components),
            "graph/connectors": float(len(bundle.connectors)),
            "graph/diameter_hops": float(bundle.hops.max()),
            "graph/mean_hops": float(bundle.hops.mean()),
        }
        metrics |= nodes_per_category(bundle, self._env)
        return bundle, guide_for_rollouts(bundle, config), metrics

    def _count_pursuits(self, walks: Mapping[str, Any]) -> None:
        """Book which goals were tried and which were reached; goals that are gone become -1."""
        slot = walks["goal_slot"]
        mine = (slot >= 0) & (slot < self._count)
        mine &= self._columns["born"][np.where(mine, slot, 0)] <= walks["goal_version"]
        np.add.at(self._columns["attempts"], slot[mine], 1.0)
        np.add.at(self._columns["successes"], slot[mine], walks["reached"][mine].astype(float))
        slot[~mine] = -1

    def _filter_and_link(
        self, walks: Mapping[str, Any], network: FoldedReachability, features: Features
    ) -> tuple[int, int]:
        """Sequential novelty filter over candidates in order; returns (nodes added, candidates)."""
        observations = walks["observations"][:, :: self._settings.stride]
        walk_count, per_walk, d = observations.shape
        candidates = observations.reshape(-1, d)
        embeddings = network.embed(features.reachability(candidates))
        walk = np.repeat(np.arange(walk_count), per_walk)
        position = -1
        if self._count == 0:
            self._place(0, candidates[0], embeddings[0], -1, walks)
            self._count, position = 1, 0  # a node already, so no candidate any more
        node_embeddings = self._columns["embeddings"]

        def outgoing(rows: Ints, slots: Ints) -> Floats:
            return network.all_pairs(embeddings[rows], node_embeddings[slots])

        nearest = BestNode(outgoing, len(candidates), self._count)
        cover, threshold = self._novelty(outgoing, network, candidates, embeddings)
        covered = nearest
        if cover is not outgoing:
            covered = BestNode(cover, len(candidates), self._count)
        alive = np.ones(len(candidates), bool)
        added = 0
        while (position := covered.next_below(threshold, position)) >= 0:
            slot = self._slot_for_new(network)
            alive[:position] &= nearest.slot[:position] != slot
            goal = int(walks["goal_slot"][walk[position]])
            self._place(slot, candidates[position], embeddings[position], goal, walks)
            for track in {id(t): t for t in (nearest, covered)}.values():
                track.placed(slot, position, self._count)
            # A new node is its own nearest, whatever the network says about a state and itself.
            nearest.slot[position] = slot
            added += 1
        self._link(nearest.slot, walk, alive)
        return added, len(candidates)

    def _novelty(
        self, outgoing: Cover, network: FoldedReachability, candidates: Floats, embeddings: Floats
    ) -> tuple[Cover, float]:
        """What covers a candidate, and the value below which it is novel.

        Undirected: the logit candidate → node. Directed: the better of the two directions, so that
        a state joins only if no node reaches it and it reaches none. Oracle curriculum: one radius
        minus the oracle distance.
        """
        nodes, node_embeddings = self._columns["nodes"], self._columns["embeddings"]

        def either_way(rows: Ints, slots: Ints) -> Floats:
            incoming = network.all_pairs(node_embeddings[slots], embeddings[rows])
            return np.maximum(outgoing(rows, slots), incoming.T)

        def oracle(rows: Ints, slots: Ints) -> Floats:
            pairs = [
                self._env.distance(candidates[rows], np.broadcast_to(nodes[slot], (len(rows), d)))
                for slot in slots
            ]
            return radius - np.stack(pairs, axis=1)

        d = candidates.shape[1]
        radius = self._settings.oracle_radius * self._spec.success_threshold
        if self._settings.novelty == "oracle":
            return oracle, 0.0
        cover = either_way if self._config.reachability.directed else outgoing
        return cover, self._settings.threshold

    def _link(self, nearest: Ints, walk: Ints, alive: np.ndarray) -> None:
        """Count passes and the transitions between the nodes of consecutive states.

        `alive` is false where the node was overwritten after the state had fallen to it.
        """
        np.add.at(self._columns["passes"], nearest[alive], 1.0)
        consecutive = (walk[1:] == walk[:-1]) & alive[1:] & alive[:-1]
        i, j = nearest[:-1][consecutive], nearest[1:][consecutive]
        different = i != j
        i, j = i[different], j[different]
        np.add.at(self._support, (i, j), 1)
        np.add.at(self._support, (j, i), 1)

    def _slot_for_new(self, network: FoldedReachability) -> int:
        """A free slot, or the one that a full memory gives up (never the root)."""
        if self._count < self._settings.capacity:
            self._count += 1
            return self._count - 1
        if self._settings.replace == "random":
            slot = int(self._rng.integers(1, self._count))
        else:
            embeddings = self._columns["embeddings"]
            scores = network.all_pairs(embeddings, embeddings)
            np.fill_diagonal(scores, -np.inf)
            slot = 1 + int(scores.max(axis=0)[1:].argmax())
        predecessor = self._columns["predecessor"]
        predecessor[predecessor == slot] = predecessor[slot]
        for walks in self._waiting:
            goal = walks["goal_slot"]
            goal[goal == slot] = predecessor[slot]
        self._support[slot, :] = 0
        self._support[:, slot] = 0
        return slot

    def _place(
        self, slot: int, observation: Floats, embedding: Floats, goal: int, walks: Mapping[str, Any]
    ) -> None:
        column = self._columns
        column["nodes"][slot] = observation
        column["embeddings"][slot] = embedding
        column["born"][slot] = self._version
        column["added_at"][slot] = int(walks["env_steps"])
        column["predecessor"][slot] = goal
        for name in ("passes", "attempts", "successes"):
            column[name][slot] = 0.0

    def _prune(self, network: FoldedReachability) -> int:
        """Drop the later of two nodes that reach each other both ways; the root stays."""
        n = self._count
        embeddings = self._columns["embeddings"][:n]
        scores = network.all_pairs(embeddings, embeddings) > self._settings.threshold
        mutual = scores & scores.T
        keep = np.ones(n, bool)
        for node in range(1, n):
            keep[node] = not (mutual[node, :node] & keep[:node]).any()
        if keep.all():
            return 0
        # Who was found from a dropped node inherits its predecessor. A predecessor is always the
        # older node, so the chain ends.
        predecessor = self._columns["predecessor"][:n]
        while (orphans := (predecessor >= 0) & ~keep[predecessor]).any():
            predecessor[orphans] = predecessor[predecessor[orphans]]
        kept = np.flatnonzero(keep)
        moved = np.full(n, -1)
        moved[kept] = np.arange(len(kept))
        for name in COLUMNS:
            self._columns[name][: len(kept)] = self._columns[name][kept]
        # Slots change their meaning, so annotations from before must not survive. The nodes in them
        # are old ones all the same, so what is found now is of a version of its own.
        shifted = np.flatnonzero(kept != np.arange(len(kept)))
        self._columns["born"][shifted] = self._version
        self._version += 1
        predecessor = self._columns["predecessor"][: len(kept)]
        predecessor[:] = np.where(predecessor >= 0, moved[predecessor], -1)
        support = self._support[np.ix_(kept, kept)]
        self._support[:] = 0
        self._support[: len(kept), : len(kept)] = support
        self._count = len(kept)
        return n - len(kept)

    def _supported(self) -> NDArray[np.bool_]:
        """Edges that walks crossed often enough, (n, n).

        Often is relative: of a node that thousands of walks have left, some took an edge only
        because the network once mistook a state.
        """
        support = self._support[: self._count, : self._count]
        left = support.sum(axis=1)
        share = self._settings.min_edge_share * np.minimum(left[:, None], left)
        return (support >= self._settings.min_edge_support) & (support >= share)

    def _contradicted(self, edges: NDArray[np.bool_], score: Cover) -> NDArray[np.bool_]:
        """Edges of which the network says, in both directions, that nobody walks them, (n, n).

        A young network takes a region that was just found for an old one, and walks at its border
        then support edges across the map. Few of them spoil all hop counts, so every refresh asks
        the network anew.
        """
        least = self._settings.min_edge_probability
        if least == 0:
            return np.zeros_like(edges)
        every = np.arange(self._count)
        scores = score(every, every)
        return edges & (np.maximum(scores, scores.T) < np.log(least / (1 - least)))

    def _bundle(self, weights: ReachabilityWeights, supported: NDArray[np.bool_]) -> Bundle:
        columns = {name: self._columns[name][: self._count].copy() for name in COLUMNS}
        embeddings = columns["embeddings"]

        def score(i: Ints, j: Ints) -> Floats:
            return weights.network.all_pairs(embeddings[i], embeddings[j])

        edges = supported & ~self._contradicted(supported, score)
        paths = shortest_paths(edges, score)
        return Bundle(
            version=self._version,
            network=weights.network,
            scale=weights.scale,
            unit=weights.unit,
            edges=edges,
            hops=paths.hops,
            next_hop=paths.next_hop,
            connectors=paths.connectors,
            components=paths.components,
            **columns,
        )

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, walks that wait for a refresh included."""
        n = self._count
        return {
            "version": self._version,
            "columns": {name: self._columns[name][:n] for name in COLUMNS},
            "support": self._support[:n, :n],
            "waiting": list(self._waiting),
            "rng": messages.generator_state(self._rng),
        }

    def restore(self, state: Mapping[str, Any], version: int = 0) -> None:
        """Take over a `state`.

        Args:
            state: from `state`.
            version: lowest version to continue from; a memory that comes back from an older
                checkpoint must not publish a version that readers have already seen.
        """
        n = len(state["columns"]["nodes"])
        self._count, self._version = n, max(int(state["version"]), version)
        for name in COLUMNS:
            self._columns[name][:n] = state["columns"][name]
        self._support[:] = 0
        self._support[:n, :n] = state["support"]
        self._waiting.clear()
        for walks in state["waiting"]:
            self.add(walks)
        messages.restore_generator(self._rng, state["rng"])
