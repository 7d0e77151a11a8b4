"""Behaviours: what acts while the episodes of a data set are recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from farreach.registry import Registry
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment

# (environment with one copy per generator, generators, steps) → observations (n, steps + 1, d) and
# actions (n, steps, a), float32 both. What a copy does depends on its own generator alone.
Behaviour = Callable[[GoalEnvironment, Sequence[np.random.Generator], int], tuple[Floats, Floats]]

behaviours: Registry[Behaviour] = Registry("behaviour")


@behaviours.add("random")
def random(
    env: GoalEnvironment, rngs: Sequence[np.random.Generator], steps: int
) -> tuple[Floats, Floats]:
    """Uniform random actions, as in the maze and pusher data of arXiv:2301.02099."""
    first = env.scatter(rngs)
    shape = (steps, env.spec.action_dim)
    actions = np.stack([rng.uniform(-1, 1, shape).astype(np.float32) for rng in rngs], axis=1)
    observations = np.concatenate([first[None], env.walk(actions)])
    return np.swapaxes(observations, 0, 1), np.swapaxes(actions, 0, 1)
