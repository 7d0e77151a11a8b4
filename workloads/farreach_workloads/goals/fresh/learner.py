"""Last stage: an agent on rows of the data set, which never sees the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach import messages, seeding
from farreach_workloads.goals.learner import take_updates

if TYPE_CHECKING:
    from farreach_workloads.goals.agents.build import Agent
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.fresh.config import FreshRunConfig
    from farreach_workloads.goals.fresh.relabel import RowSource


class FreshLearner:
    """Draws rows and takes gradient steps.

    ```
    learner = FreshLearner(config, agent, source, bundle)
    metrics = learner.update(1000, progress=0.1)
    ```
    """

    def __init__(
        self, config: FreshRunConfig, agent: Agent, source: RowSource, bundle: Bundle
    ) -> None:
        """`agent` learns from the rows of `source`; evaluation needs the `bundle`."""
        torch.set_num_threads(config.runtime.torch_threads)
        self._agent, self._source, self._bundle = agent, source, bundle
        self._rng = seeding.generator(config.seed, "learner")
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

    def batch(self, count: int) -> dict[str, torch.Tensor]:
        """Rows ready for the agent, on its device."""
        arrays = self._source.inputs(count, self._rng)
        return {k: torch.from_numpy(v).to(self._agent.device) for k, v in arrays.items()}

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
