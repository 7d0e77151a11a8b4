"""Rewards as pure functions of hops and reachability; never stored, always from one bundle.

Source: the reward modes of the code that arXiv:2206.11733 grew from; arXiv:2301.02099, the shaped
reward. All look at the next state s'.
"""

from __future__ import annotations

import numpy as np

from farreach_workloads.goals.environments.base import Floats, Ints


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def graph_reward(
    hops: Ints, logits: Floats | None, scale: float, temperature: float = 1.0
) -> Floats:
    """Scale × (-hops + σ(R / temperature) - 1); without the second term if `logits` is None.

    Args:
        hops: (n,) from the node of s' to the node of the goal.
        logits: (n,) R(s' → g) for `graph_goal`, R(s' → node of s') for `graph_node`.
        scale: factor of both terms.
        temperature: flattens the sigmoid above 1.

    Returns:
        (n,) float32.
    """
    near = 0.0 if logits is None else sigmoid(logits / temperature) - 1.0
    return (scale * (near - hops)).astype(np.float32)


def reachability_reward(logits: Floats, scale: float, temperature: float = 1.0) -> Floats:
    """Scale × (σ(R(s' → g) / temperature) - 1): (n,) → (n,) float32."""
    return (scale * (sigmoid(logits / temperature) - 1.0)).astype(np.float32)


def sparse_reward(distances: Floats, threshold: float) -> Floats:
    """0 within the threshold, -1 elsewhere (hindsight experience replay's reward), (n,) float32."""
    return np.where(distances < threshold, 0.0, -1.0).astype(np.float32)
