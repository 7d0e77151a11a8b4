"""The bundle: one version of network, memory and graph, immutable, read by every process.

Whoever computes a reward, picks a goal or plans a path pins one bundle and asks it; a new bundle
never changes an old one. Slot numbers identify nodes together with `born`: an annotation made at
version v is still about the same node if that node was born at or before v.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from farreach_workloads.goals.environments.base import (
    Floats,
    GoalEnvironment,
    GoalEnvironmentSpec,
    Ints,
)
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.folded import FoldedReachability

if TYPE_CHECKING:
    from farreach_workloads.goals.config import ReachingConfig


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Memory nodes of one refresh and the network that compares states with them.

    There are n nodes, with observations of d dims.

    Attributes:
        version: higher with every refresh.
        network: reachability network, folded.
        scale, unit: (d,), see `Features`.
        nodes: (n, d) observations.
        embeddings: (n, e).
        predecessor: (n,) node that was pursued when it was found; -1 for the root.
        directed: whether getting to a node and from it are two things; then `edges` is not
            symmetric, and a goal's node is the one that gets to it.
    """

    version: int
    network: FoldedReachability
    scale: Floats
    unit: Floats
    nodes: Floats
    embeddings: Floats
    predecessor: Ints
    directed: bool = False

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    def features(self, config: ReachingConfig, spec: GoalEnvironmentSpec) -> Features:
        """The transformation of observations that belongs to this refresh."""
        return Features(spec, config.features, config.reachability, self.scale, self.unit)

    def nearest(self, embeddings: Floats) -> Ints:
        """The node that each state reaches best: (m, e) → (m,)."""
        return self.network.nearest(embeddings, self.embeddings)[0]

    def nearest_to_goals(self, embeddings: Floats) -> Ints:
        """The node that stands for each goal: (m, e) → (m,)."""
        return self.network.nearest(embeddings, self.embeddings, incoming=self.directed)[0]


@dataclass(frozen=True, kw_only=True)
class Guide(Nodes):
    """What rollouts need of a bundle, an eighth of its size: which nodes to go to, and the way.

    Attributes:
        chances: (n,) probability of each node as a goal.
        routes: `next_hop` of the bundle, packed; empty if nobody plans on it.
    """

    chances: Floats
    routes: bytes

    @property
    def next_hop(self) -> Ints:
        """(n, n) int16, read-only; see `graph.Paths`."""
        return _unpacked(self.routes).reshape(len(self), len(self))

    def subgoal(self, start: Ints, end: Ints, ahead: Ints) -> Ints:
        """The node `ahead` hops along the shortest path, or the end if that is nearer; (n,) all."""
        node, next_hop = start, self.next_hop
        for step in range(int(ahead.max(initial=0))):
            node = np.where(step < ahead, next_hop[node, end].astype(np.int64), node)
        return node


# A rollout gets the same routes many times, each time as other bytes of the same content.
@lru_cache(maxsize=1)
def _unpacked(routes: bytes) -> Ints:
    return np.frombuffer(zlib.decompress(routes), np.int16)


@dataclass(frozen=True, kw_only=True)
class Bundle(Nodes):
    """Network, memory nodes and graph of one refresh.

    Attributes:
        born: (n,) version since which this slot means this node.
        added_at: (n,) environment steps at which it was added.
        passes: (n,) how often random walks came by.
        attempts, successes: (n,) pursuits of the node as a goal, and how many ended at it.
        edges: (n, n) bool, symmetric: walks crossed between the two nodes, and it counts.
        hops, next_hop: (n, n) int16, see `graph.Paths`.
        connectors: (k, 2) edges without a transition behind them.
        components: connected components before connecting.
    """

    born: Ints
    added_at: Ints
    passes: Floats
    attempts: Floats
    successes: Floats
    edges: NDArray[np.bool_]
    hops: Ints
    next_hop: Ints
    connectors: Ints
    components: int

    def valid(self, slots: Ints, version: Ints) -> np.ndarray:
        """Whether annotations (slot, version) still mean the node that they meant."""
        inside = (slots >= 0) & (slots < len(self))
        return inside & (self.born[np.where(inside, slots, 0)] <= version)

    def guide(self, mode: str, *, plans: bool = True) -> Guide:
        """The part of it that leads to goals.

        Args:
            mode: how goals are chosen, see `goal_weights`.
            plans: whether ways between nodes are asked for.
        """
        names = [field.name for field in fields(Nodes)]
        return Guide(
            **{name: getattr(self, name) for name in names},
            chances=self.goal_weights(mode),
            routes=zlib.compress(self.next_hop.tobytes(), 1) if plans else b"",
        )

    def path(self, start: int, end: int) -> list[int]:
        """All nodes of the shortest path, both ends included."""
        nodes = [start]
        while nodes[-1] != end:
            nodes.append(int(self.next_hop[nodes[-1], end]))
        return nodes

    @cached_property
    def degree(self) -> Ints:
        """Number of neighbours of each node, (n,)."""
        return self.edges.sum(axis=1)

    def goal_weights(self, mode: str) -> Floats:
        """Probability of each node as a goal, (n,).

        uniform: equal. novelty and chained: ∝ 1 / (1 + passes of random walks). frontier:
        ∝ 1 / (1 + neighbours), times four for nodes of the newest version. success_band: nodes
        reached in 20 to 80 % of at least four tries count ten times.
        """
        if mode == "uniform":
            weights: Floats = np.ones(len(self))
        elif mode in ("novelty", "chained"):
            weights = 1.0 / (1.0 + self.passes)
        elif mode == "frontier":
            weights = np.where(self.born == self.version, 4.0, 1.0) / (1.0 + self.degree)
        else:
            rate = self.successes / np.maximum(self.attempts, 1.0)
            band = (self.attempts >= 4) & (rate >= 0.2) & (rate <= 0.8)
            weights = np.where(band, 10.0, 1.0)
        return weights / weights.sum()

    def arrays(self) -> dict[str, Any]:
        """Every field as arrays and numbers, for a checkpoint."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return content | {"network": self.network.arrays()}

    @classmethod
    def from_arrays(cls, content: dict[str, Any]) -> Bundle:
        """The inverse of `arrays`."""
        return cls(**{**content, "network": FoldedReachability.from_arrays(content["network"])})


def nodes_per_category(bundle: Bundle, env: GoalEnvironment) -> dict[str, float]:
    """`memory/nodes_<category>` for each category of the environment, {} if there is only one."""
    names = env.spec.categories
    if len(names) == 1:
        return {}
    label = env.categories(bundle.nodes)
    return {f"memory/nodes_{name}": float((label == i).sum()) for i, name in enumerate(names)}
