"""Batches from the replay: hindsight goals and rewards, all drawn at sampling time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from farreach.data.replay import Ring
from farreach_workloads.goals import rewards
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.config import GoalsRunConfig
    from farreach_workloads.goals.features import Features

ORIGINAL, FUTURE, NODE, REPLAY = range(4)


@dataclass
class Transitions:
    """n relabelled transitions.

    Attributes:
        observation, next_observation, goal: (n, d).
        action: (n, a).
        next_slot: (n,) node of the next observation.
        goal_slot: (n,) node of the goal.
        kind: (n,) ORIGINAL, FUTURE, NODE or REPLAY.
    """

    observation: Floats
    action: Floats
    next_observation: Floats
    goal: Floats
    next_slot: Ints
    goal_slot: Ints
    kind: Ints


def future_steps(rng: np.random.Generator, t: Ints, horizon: int, mean: float) -> Ints:
    """Index of a future state: t + 1, t + 2, … geometric with the given mean, at most `horizon`."""
    ahead = rng.geometric(1.0 / mean, len(t)) if mean > 1 else np.ones(len(t), np.int64)
    return np.minimum(t + ahead, horizon)


class Relabeller:
    """Draws transitions with goals in the configured shares and computes their rewards."""

    def __init__(self, config: GoalsRunConfig, env: GoalEnvironment) -> None:
        """`env` supplies oracle distances to the oracle rewards, and nothing to the others."""
        self._env = env
        self._relabel, self._reward = config.relabel, config.reward
        shares = [getattr(config.relabel, k) for k in ("original", "future", "node", "replay")]
        self._edges = np.cumsum(shares)
        self._needs_hops = config.reward.mode.startswith("graph")

    def sample(
        self, ring: Ring, bundle: Bundle, features: Features, count: int, rng: np.random.Generator
    ) -> Transitions:
        """Draw `count` transitions, uniform over the replay, and their goals."""
        observations, nearest, version = ring["observations"], ring["nearest"], ring["version"]
        horizon = observations.shape[1] - 1
        row = rng.integers(0, len(ring), count)
        t = rng.integers(0, horizon, count)
        kind = np.minimum(np.searchsorted(self._edges, rng.random(count), side="right"), 3)
        goal = ring["goals"][row]
        slot, slot_version = ring["goal_slot"][row], version[row]
        future = np.flatnonzero(kind == FUTURE)
        ahead = future_steps(rng, t[future], horizon, self._relabel.future_mean_steps)
        goal[future] = observations[row[future], ahead]
        slot[future] = nearest[row[future], ahead]
        node = np.flatnonzero(kind == NODE)
        slot[node] = rng.integers(0, len(bundle), len(node))
        goal[node] = bundle.nodes[slot[node]]
        slot_version[node] = bundle.version
        other = np.flatnonzero(kind == REPLAY)
        row2, t2 = rng.integers(0, len(ring), len(other)), rng.integers(0, horizon + 1, len(other))
        goal[other] = observations[row2, t2]
        slot[other], slot_version[other] = nearest[row2, t2], version[row2]
        following = observations[row, t + 1]
        next_slot = nearest[row, t + 1].astype(np.int64)
        if self._needs_hops:
            refresh_slots(bundle, features, following, next_slot, version[row])
            refresh_slots(bundle, features, goal, slot, slot_version)
        return Transitions(
            observations[row, t], ring["actions"][row, t], following, goal, next_slot, slot, kind
        )

    def reward(self, batch: Transitions, bundle: Bundle, features: Features) -> Floats:
        """Reward of each transition under the current bundle, (n,) float32."""
        mode, scale = self._reward.mode, self._reward.scale
        if mode == "oracle_dense":
            return (-scale * self._env.path_distance(batch.next_observation, batch.goal)).astype(
                np.float32
            )
        if mode == "oracle_sparse":
            distance = self._env.distance(batch.next_observation, batch.goal)
            return rewards.sparse_reward(distance, self._env.spec.success_threshold)
        network, temperature = bundle.network, self._reward.temperature
        start = network.embed(features.reachability(batch.next_observation))
        if mode == "graph_node":
            end = bundle.embeddings[batch.next_slot]
        else:
            end = network.embed(features.reachability(batch.goal))
        if mode == "reachability":
            return rewards.reachability_reward(network.logits(start, end), scale, temperature)
        hops = bundle.hops[batch.next_slot, batch.goal_slot]
        logits = None if mode == "graph" else network.logits(start, end)
        return rewards.graph_reward(hops, logits, scale, temperature)


def refresh_slots(
    bundle: Bundle, features: Features, observations: Floats, slots: Ints, version: Ints
) -> None:
    """Look up, in place, the node of every observation whose annotation has become void."""
    void = np.flatnonzero(~bundle.valid(slots, version))
    if len(void):
        embeddings = bundle.network.embed(features.reachability(observations[void]))
        slots[void] = bundle.nearest(embeddings)
