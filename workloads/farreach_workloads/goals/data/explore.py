"""Exploration by random network distillation: data of an agent that seeks what it has not seen.

A SAC agent without goals is rewarded by how badly a network predicts the output of a fixed random
network on the next state, and the network learns from the states that the agent visits. What is
recorded is all that the agent did while it learned.

Source: random network distillation, arXiv:1810.12894; an agent's whole experience as a data set,
ExORL, arXiv:2201.13425. The networks are smaller than theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from farreach_workloads.goals.config import SacConfig
from farreach_workloads.goals.data.behaviours import MakeEnvironment, behaviours
from farreach_workloads.goals.environments.base import Floats
from farreach_workloads.goals.sac import GoalSac

if TYPE_CHECKING:
    from farreach_workloads.goals.environments.base import GoalEnvironmentSpec

# Episodes that run at the same time; the next ones are by the agent that these have trained.
COPIES = 25
UPDATES_PER_STEP = 2  # of all copies together
BATCH = 256
# Steps of all copies before the agent acts: they measure the spread of the states too.
FIRST_STEPS = 100
UNIFORM_FRAC = 0.1  # of the actions afterwards, so that no state lacks some actions
REPRESENTATION, HIDDEN = 32, 128
CLIP = 5.0  # spreads beyond which a state is cut off
SETTINGS = SacConfig(lr=1e-3, discount=0.98, entropy_weight=0.05, batch=BATCH)


@behaviours.add("rnd")
def rnd(
    make: MakeEnvironment, rngs: Sequence[np.random.Generator], steps: int
) -> tuple[Floats, Floats]:
    """Seek new states by random network distillation; each shard has an agent of its own."""
    torch.set_num_threads(1)
    explorer: Explorer | None = None
    recorded = []
    for begin in range(0, len(rngs), COPIES):
        own = rngs[begin : begin + COPIES]
        env = make(len(own))
        explorer = explorer or Explorer(env.spec, len(rngs) * steps, own[0])
        before = env.scatter(own)
        observations, actions = [before], []
        for _ in range(steps):
            action = explorer.act(before, own)
            after = env.step(action)
            explorer.observe(before, action, after)
            observations.append(after)
            actions.append(action)
            before = after
        recorded.append((np.stack(observations, axis=1), np.stack(actions, axis=1)))
    observed, acted = zip(*recorded, strict=True)
    return np.concatenate(observed), np.concatenate(acted)


class Explorer:
    """The agent, its replay of everything so far, and the two networks that tell new from old."""

    def __init__(self, spec: GoalEnvironmentSpec, capacity: int, rng: np.random.Generator) -> None:
        """An agent for at most `capacity` steps; its randomness stems from `rng`."""
        self._rng = np.random.default_rng(rng.integers(2**63))
        seed = int(self._rng.integers(2**31))
        width, actions = spec.observation_dim, spec.action_dim
        self._before = np.empty((capacity, width), np.float32)
        self._after = np.empty((capacity, width), np.float32)
        self._action = np.empty((capacity, actions), np.float32)
        self._count, self._calls = 0, 0
        self._mean, self._spread = np.zeros(width, np.float32), np.ones(width, np.float32)
        self._agent = GoalSac(SETTINGS, _State(width), actions, seed, "cpu")
        torch.manual_seed(seed)
        self._fixed = _network(width).requires_grad_(False)
        self._predictor = _network(width)
        self._optimiser = torch.optim.Adam(self._predictor.parameters(), lr=1e-3, fused=True)
        self._typical = 1.0

    def act(self, observations: Floats, rngs: Sequence[np.random.Generator]) -> Floats:
        """An action for each copy, (n, a) float32, with noise of its own generator."""
        actions = self._action.shape[1]
        uniform = np.stack([rng.uniform(-1, 1, actions) for rng in rngs]).astype(np.float32)
        noise = np.stack([rng.standard_normal(actions) for rng in rngs]).astype(np.float32)
        at_random = np.array([rng.random() for rng in rngs]) < UNIFORM_FRAC
        if self._calls < FIRST_STEPS:
            return uniform
        inputs = torch.from_numpy(self._inputs(observations))
        chosen = self._agent.sample(inputs, torch.from_numpy(noise)).numpy()
        return np.where(at_random[:, None], uniform, chosen)

    def observe(self, before: Floats, action: Floats, after: Floats) -> None:
        """Remember a step of all copies and learn from what is remembered."""
        rows = slice(self._count, self._count + len(before))
        self._before[rows], self._action[rows], self._after[rows] = before, action, after
        self._count, self._calls = rows.stop, self._calls + 1
        if self._calls == FIRST_STEPS:
            seen = self._after[: self._count]
            self._mean, self._spread = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-3)
        if self._calls >= FIRST_STEPS:
            for _ in range(UPDATES_PER_STEP):
                self._learn()

    def _learn(self) -> None:
        rows = self._rng.integers(0, self._count, BATCH)
        after = torch.from_numpy(self._inputs(self._after[rows]))
        error = (self._predictor(after) - self._fixed(after)).square().mean(dim=1)
        self._optimiser.zero_grad(set_to_none=True)
        error.mean().backward()
        self._optimiser.step()
        novelty = error.detach()
        # In units of its own running mean, or it would vanish as the predictor learns.
        self._typical += 0.01 * (float(novelty.mean()) - self._typical)
        self._agent.update(
            {
                "pair": torch.from_numpy(self._inputs(self._before[rows])),
                "next_pair": after,
                "action": torch.from_numpy(self._action[rows]),
                "reward": novelty / max(self._typical, 1e-8),
            }
        )

    def _inputs(self, observations: Floats) -> Floats:
        scaled = (observations - self._mean) / self._spread
        return np.clip(scaled, -CLIP, CLIP, dtype=np.float32)


class _State:
    """What SAC must know of its input: here it is the state alone, without a goal."""

    def __init__(self, width: int) -> None:
        self.pair_width = self.observation_width = width


def _network(before: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, REPRESENTATION),
    )
