"""The policy learner: replay, relabelling and SAC in one process, so that no batch ever travels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach import messages, seeding
from farreach.data.replay import Ring
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.relabel import Relabeller
from farreach_workloads.goals.sac import GoalSac

if TYPE_CHECKING:
    from farreach_workloads.goals.agents.build import Agent
    from farreach_workloads.goals.config import AgentSettings, GoalsRunConfig

# Rows that are relabelled and rewarded together: large enough to spread NumPy's cost per call.
ROWS_TOGETHER = 8192
# Stored episodes that are annotated anew when a bundle comes in.
REANNOTATED_EPISODES = 64
FINAL_LR_FRAC = 0.1


def learning_rate(config: AgentSettings, progress: float) -> float:
    """Constant, then linear to a tenth of it over the last `lr_decay_frac` of training."""
    if config.lr_decay_frac == 0:
        return config.lr
    left = min(1.0, max(0.0, (1.0 - progress) / config.lr_decay_frac))
    return config.lr * (FINAL_LR_FRAC + (1 - FINAL_LR_FRAC) * left)


# count → rows as tensors on the agent's device.
DrawRows = Callable[[int], dict[str, torch.Tensor]]


def take_updates(agent: Agent, draw: DrawRows, count: int, progress: float) -> dict[str, float]:
    """Take `count` gradient steps on fresh rows, several minibatches drawn at a time.

    Args:
        agent: takes the steps.
        draw: what it learns from.
        count: number of updates.
        progress: share of training that is done, for the learning rate.

    Returns:
        Means over the updates of what the agent reports, and the seconds that they took.
    """
    begin = time.perf_counter()
    size = agent.config.batch
    lr = learning_rate(agent.config, progress)
    agent.set_lr(lr)
    done, names, total = 0, [], torch.zeros(())
    reward = torch.zeros(())
    while done < count:
        together = min(max(1, ROWS_TOGETHER // size), count - done)
        batch = draw(together * size)
        if "reward" in batch:
            reward = reward + batch["reward"].mean() * together
        for index in range(together):
            rows = slice(index * size, (index + 1) * size)
            found = agent.update({k: v[rows] for k, v in batch.items()})
            names = list(found)
            total = total + torch.stack(list(found.values())).cpu()
        done += together
    metrics = dict(zip(names, (total / count).tolist(), strict=True))
    if "reward" in batch:
        metrics["reward"] = float(reward) / count
    return {f"learner/{name}": value for name, value in metrics.items()} | {
        "learner/lr": lr,
        "learner/busy_s": time.perf_counter() - begin,
    }


class Learner:
    """Owns the replay and the agent.

    ```
    learner.set_bundle(bundle)
    learner.add(episodes)
    metrics, weights = learner.update(32, progress=0.1)
    ```
    """

    def __init__(self, config: GoalsRunConfig, env: GoalEnvironment) -> None:
        """An empty replay; the agent is built when the first bundle tells the size of its input."""
        torch.set_num_threads(config.runtime.torch_threads)
        self._config, self._env = config, env
        self._ring = Ring(max(1, config.agent.replay_steps // config.phases.policy_steps))
        self._relabeller = Relabeller(config, env)
        self._rng = seeding.generator(config.seed, "learner")
        self._last_seq: dict[int, int] = {}
        self._updates = 0
        self._agent: GoalSac | None = None
        self._bundle: Bundle | None = None
        self._features: Features | None = None

    def add(self, episodes: Mapping[str, Any]) -> None:
        """Store episodes; a message that came before is dropped.

        Args:
            episodes: `observations` (n, steps + 1, d), `actions` (n, steps, a), `goals` (n, d),
                `goal_slot` (n,), `nearest` (n, steps + 1) and `version` (n,) of the bundle they
                were annotated with; `producer` and `seq` identify the message.
        """
        producer, seq = episodes["producer"], episodes["seq"]
        if seq <= self._last_seq.get(producer, -1):
            return
        self._last_seq[producer] = seq
        columns = ("observations", "actions", "goals", "goal_slot", "nearest", "version")
        self._ring.append({name: episodes[name] for name in columns})

    def begin_with(self, agent: Mapping[str, Any], observations: Floats, actions: Floats) -> None:
        """Take over another run's agent, and experience with the last state as the goal.

        Args:
            agent: a state of `GoalSac`.
            observations: (n, steps + 1, d).
            actions: (n, steps, a).
        """
        assert self._agent is not None
        self._agent.restore(agent)
        count, shape = len(observations), observations.shape[:2]
        # Nodes of version -1 are no longer what they were, so that each use looks them up.
        self._ring.append(
            {
                "observations": observations,
                "actions": actions,
                "goals": observations[:, -1],
                "goal_slot": np.full(count, -1),
                "nearest": np.zeros(shape, np.int32),
                "version": np.full(count, -1),
            }
        )

    def set_bundle(self, bundle: Bundle) -> None:
        """Use this bundle from the next batch on and re-annotate a few stored episodes with it."""
        self._bundle = bundle
        self._features = bundle.features(self._config, self._env.spec)
        if self._agent is None:
            self._agent = GoalSac(
                self._config.agent,
                self._features,
                self._env.spec.action_dim,
                self._config.seed,
                self._config.runtime.device,
            )
        if len(self._ring):
            rows = self._rng.integers(
                0, len(self._ring), min(REANNOTATED_EPISODES, len(self._ring))
            )
            observations = self._ring["observations"][rows]
            flat = observations.reshape(-1, observations.shape[-1])
            nearest = bundle.nearest(bundle.network.embed(self._features.reachability(flat)))
            self._ring["nearest"][rows] = nearest.reshape(observations.shape[:2])
            # The goal keeps its slot only if that still means the same node.
            slot, version = self._ring["goal_slot"][rows], self._ring["version"][rows]
            self._ring["goal_slot"][rows] = np.where(bundle.valid(slot, version), slot, -1)
            self._ring["version"][rows] = bundle.version

    def update(self, count: int, progress: float) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Take `count` gradient steps.

        Args:
            count: number of updates.
            progress: share of training that is done, for the learning rate.

        Returns:
            Means over the updates, and the policy's weights after the last one.
        """
        assert self._agent is not None
        metrics = take_updates(self._agent, self.batch, count, progress)
        self._updates += count
        return metrics, self._agent.export_policy()

    def batch(self, count: int) -> dict[str, torch.Tensor]:
        """Relabelled rows ready for the agent, on its device."""
        assert self._bundle is not None
        assert self._features is not None
        assert self._agent is not None
        sample = self._relabeller.sample(self._ring, self._bundle, self._features, count, self._rng)
        reward = self._relabeller.reward(sample, self._bundle, self._features)
        arrays = {
            "pair": self._features.pair(sample.observation, sample.goal),
            "next_pair": self._features.pair(sample.next_observation, sample.goal),
            "action": sample.action,
            "reward": reward,
        }
        return {k: torch.from_numpy(v).to(self._agent.device) for k, v in arrays.items()}

    def policy(self) -> dict[str, np.ndarray]:
        """The policy's weights now."""
        assert self._agent is not None
        return self._agent.export_policy()

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, the whole replay and the pinned bundle included."""
        return {
            "updates": self._updates,
            "ring": self._ring.state(),
            "last_seq": dict(self._last_seq),
            "rng": messages.generator_state(self._rng),
            "agent": self._agent.state() if self._agent else None,
            "bundle": self._bundle.arrays() if self._bundle else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        if state["bundle"] is not None:
            self.set_bundle(Bundle.from_arrays(state["bundle"]))
        if state["agent"] is not None and self._agent is not None:
            self._agent.restore(state["agent"])
        self._updates = state["updates"]
        self._ring.restore(state["ring"])
        self._last_seq = dict(state["last_seq"])
        messages.restore_generator(self._rng, state["rng"])
