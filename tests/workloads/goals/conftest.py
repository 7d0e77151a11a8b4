"""A world small enough for a head: points on a plane and a network that measures distance.

`Toy` makes everything; R(s → g) = reach - cost × |g - s|₁, so logits, nearest nodes and novelty
can be worked out by hand.
"""

import numpy as np
import pytest

from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.environments.base import GoalEnvironment, GoalEnvironmentSpec
from farreach_workloads.goals.folded import FoldedNetwork, FoldedReachability
from farreach_workloads.goals.graph import shortest_paths
from farreach_workloads.goals.reachability_trainer import ReachabilityWeights


class Plane(GoalEnvironment):
    """Observation x, y and a mark that is new at every reset; an action moves by itself."""

    spec = GoalEnvironmentSpec(
        name="plane",
        observation_dim=3,
        action_dim=2,
        horizon=6,
        success_threshold=0.5,
        reachability_dims=(0, 1),
        policy_dims=(0, 1),
        goal_dims=(0, 1),
        plane_dims=(0, 1),
        categories=("left", "right"),
    )

    def reset(self):
        self._at = np.zeros((self.num_envs, 3), np.float32)
        self._at[:, 2] = self.rng.random(self.num_envs)
        return self._at.copy()

    def step(self, actions):
        self._at[:, :2] += np.clip(actions, -1, 1)
        return self._at.copy()

    def goals(self, count, rng):
        goals = np.zeros((count, 3), np.float32)
        goals[:, :2] = rng.uniform(-4, 4, (count, 2))
        return goals

    def distance(self, observations, goals):
        return np.linalg.norm(observations[:, :2] - goals[:, :2], axis=1)

    def categories(self, observations):
        return (observations[:, 0] >= 0).astype(np.int64)

    def cells(self, observations):
        """Cell 0 is left of the start, cell 1 right of it."""
        return (observations[:, 0] >= 0).astype(np.int64), 2

    def draw(self, axes):
        axes.set_xlim(-8, 8)
        axes.set_ylim(-8, 8)


class Toy:
    """Makes small configurations, environments, networks, walks and bundles."""

    Plane = Plane

    def config(self, **sections):
        defaults = {
            "environment": {"num_envs": 4},
            "features": {
                "angles": "raw",
                "goal": "full",
                "relative": False,
                "scale": "none",
            },
            "phases": {"policy_steps": 6, "random_steps": 5, "planned_frac": 0.0},
            "reachability": {"embedding": 2, "window": 2},
            "memory": {"capacity": 50, "stride": 1},
            "agent": {"hidden": 8, "batch": 8, "replay_steps": 600},
            "evaluation": {"episodes": 40},
        }
        for name, values in sections.items():
            both = isinstance(values, dict) and name in defaults
            defaults[name] = {**defaults[name], **values} if both else values
        return GoalsRunConfig(**defaults)

    def env(self, num_envs=1, seed=0):
        return Plane(num_envs, np.random.default_rng(seed))

    def network(self, reach, forwards=1.0, backwards=1.0, mirror=False):
        """`forwards` is the cost of a unit towards larger x, y; `backwards` of one back."""
        encoder = np.eye(2, dtype=np.float32) * (-1 if mirror else 1)
        e = np.eye(2, dtype=np.float32)
        first = np.concatenate([np.hstack([-e, e]), np.hstack([e, -e])])  # g - s, s - g
        second = -np.array([[forwards]] * 2 + [[backwards]] * 2, np.float32)
        return FoldedReachability(
            [(encoder, np.zeros(2, np.float32))],
            FoldedNetwork(
                [(first, np.zeros(4, np.float32)), (second, np.array([reach], np.float32))]
            ),
        )

    def weights(self, network):
        ones = np.ones(3, np.float32)
        return ReachabilityWeights(1, network, ones, ones)

    def points(self, xs):
        """Observations (..., 3) of points on the x axis."""
        xs = np.asarray(xs, np.float32)
        return np.stack([xs, np.zeros_like(xs), np.zeros_like(xs)], axis=-1)

    def walks(self, xs, goal_slot=-1, goal_version=0, reached=False, env_steps=0):
        """Walks on the x axis: (walks, steps + 1) positions; the rest is the same for all."""
        count = len(xs)
        return {
            "observations": self.points(xs),
            "goal_slot": np.broadcast_to(np.int64(goal_slot), count),
            "goal_version": np.broadcast_to(np.int64(goal_version), count),
            "reached": np.broadcast_to(np.bool_(reached), count),
            "env_steps": env_steps,
        }

    def bundle(self, xs, edges, reach=1.0, **columns):
        """Nodes on the x axis, joined by `edges`; `columns` replaces what is there else."""
        n = len(xs)
        network = columns.pop("network", self.network(reach))
        adjacency = np.zeros((n, n), np.bool_)
        for i, j in edges:
            adjacency[i, j] = adjacency[j, i] = True
        nodes = self.points(xs)
        paths = shortest_paths(adjacency, lambda i, j: -np.abs(i[:, None] - j[None, :]))
        values = {
            "version": 1,
            "network": network,
            "scale": np.ones(3, np.float32),
            "unit": np.ones(3, np.float32),
            "nodes": nodes,
            "embeddings": network.embed(nodes[:, :2]),
            "born": np.ones(n, np.int64),
            "added_at": np.zeros(n, np.int64),
            "predecessor": np.full(n, -1),
            "passes": np.zeros(n),
            "attempts": np.zeros(n),
            "successes": np.zeros(n),
            "edges": adjacency,
            "hops": paths.hops,
            "next_hop": paths.next_hop,
            "connectors": paths.connectors,
            "components": paths.components,
        }
        return Bundle(**{**values, **columns})

    def line(self, count=6, apart=10.0, **columns):
        """A chain of nodes at 0, `apart`, 2 × `apart`, …"""
        edges = [(i, i + 1) for i in range(count - 1)]
        return self.bundle(np.arange(count) * apart, edges, **columns)


@pytest.fixture(scope="session")
def toy():
    return Toy()


def leaves(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}/{index}")
    else:
        yield path, tree


@pytest.fixture(scope="session")
def expect_equal_states():
    """Compares two states bit for bit, the wall-clock time apart."""

    def compare(one, other):
        left, right = dict(leaves(one)), dict(leaves(other))
        assert left.keys() == right.keys()
        for path, value in left.items():
            if not path.endswith("/train_s"):
                np.testing.assert_array_equal(value, right[path], err_msg=path)

    return compare
