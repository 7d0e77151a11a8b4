"""Last stage: goal-conditioned SAC on rows of the data set, which never sees the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach import messages, seeding
from farreach_workloads.goals.learner import learning_rate
from farreach_workloads.goals.sac import GoalSac

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.environments.base import GoalEnvironmentSpec
    from farreach_workloads.goals.fresh.config import FreshRunConfig
    from farreach_workloads.goals.fresh.relabel import RowSource

# Rows that are drawn and rewarded together: large enough to spread NumPy's cost per call.
ROWS_TOGETHER = 8192


class FreshLearner:
    """Draws rows and takes gradient steps.

    ```
    learner = FreshLearner(config, spec, source, bundle)
    metrics = learner.update(1000, progress=0.1)
    ```
    """

    def __init__(
        self,
        config: FreshRunConfig,
        spec: GoalEnvironmentSpec,
        source: RowSource,
        bundle: Bundle,
    ) -> None:
        """A fresh agent that learns from the rows of `source`."""
        torch.set_num_threads(config.runtime.torch_threads)
        self._config, self._source, self._bundle = config, source, bundle
        self._features = bundle.features(config, spec)
        self._rng = seeding.generator(config.seed, "learner")
        self._agent = GoalSac(
            config.agent, self._features, spec.action_dim, config.seed, config.runtime.device
        )
        self.updates = 0

    def update(self, count: int, progress: float) -> dict[str, float]:
        """Take `count` gradient steps.

        Args:
            count: number of updates.
            progress: share of training that is done, for the learning rate.

        Returns:
            Means over the updates.
        """
        begin = time.perf_counter()
        size = self._config.agent.batch
        lr = learning_rate(self._config.agent, progress)
        self._agent.set_lr(lr)
        done, sums, reward_sum = 0, torch.zeros(3), 0.0
        while done < count:
            together = min(max(1, ROWS_TOGETHER // size), count - done)
            batch, reward = self.batch(together * size)
            reward_sum += reward * together
            for index in range(together):
                part = slice(index * size, (index + 1) * size)
                losses = self._agent.update({k: v[part] for k, v in batch.items()})
                sums += torch.stack(losses).cpu()
            done += together
        self.updates += count
        critic_loss, q_value, entropy = (sums / count).tolist()
        return {
            "learner/critic_loss": critic_loss,
            "learner/q_value": q_value,
            "learner/entropy": entropy,
            "learner/reward": reward_sum / count,
            "learner/lr": lr,
            "throughput/updates_per_s": count / (time.perf_counter() - begin),
        }

    def batch(self, count: int) -> tuple[dict[str, torch.Tensor], float]:
        """Rows ready for the agent, on its device, and their mean reward."""
        rows = self._source.batch(count, self._rng, self._agent)
        arrays = {
            "pair": self._features.pair(rows.observation, rows.goal),
            "next_pair": self._features.pair(rows.next_observation, rows.goal),
            "action": rows.action,
            "reward": rows.reward,
        }
        if rows.continues is not None:
            arrays["continues"] = rows.continues
        device = self._agent.device
        tensors = {k: torch.from_numpy(v).to(device) for k, v in arrays.items()}
        return tensors, float(rows.reward.mean())

    def policy(self) -> dict[str, np.ndarray]:
        """The policy's weights now."""
        return self._agent.export_policy()

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, and the memory for those who only evaluate."""
        return {
            "updates": self.updates,
            "rng": messages.generator_state(self._rng),
            "agent": self._agent.state(),
            "bundle": self._bundle.arrays(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`; the memory is that of the stages, which the state only repeats."""
        self.updates = int(state["updates"])
        messages.restore_generator(self._rng, state["rng"])
        self._agent.restore(state["agent"])
