"""Last stage: goal-conditioned SAC on rows of the data set, which never sees the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach import messages, seeding
from farreach_workloads.goals.learner import take_updates
from farreach_workloads.goals.sac import GoalSac

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.environments.base import GoalEnvironmentSpec
    from farreach_workloads.goals.fresh.config import FreshRunConfig
    from farreach_workloads.goals.fresh.relabel import RowSource


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
            See `take_updates`.
        """
        metrics = take_updates(self._agent, self.batch, count, progress)
        self.updates += count
        return metrics

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
