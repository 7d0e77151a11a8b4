"""The policy learner: SAC, and the replay unless that is kept in shards elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment
from farreach_workloads.goals.experience import Experience, Rows
from farreach_workloads.goals.sac import GoalSac

if TYPE_CHECKING:
    from farreach_workloads.goals.agents.build import Agent
    from farreach_workloads.goals.config import AgentSettings, GoalsRunConfig

# Rows that are relabelled and rewarded together: large enough to spread NumPy's cost per call.
ROWS_TOGETHER = 8192
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
    """Owns the agent, and the replay unless there are shards of it.

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
        self._experience = Experience(config, env)
        self._updates = 0
        self._agent: GoalSac | None = None
        self._bundle: Bundle | None = None

    def add(self, episodes: Mapping[str, Any]) -> None:
        """Store episodes; see `Experience.add`."""
        self._experience.add(episodes)

    def take_over(self, observations: Floats, actions: Floats) -> None:
        """Store what another run has experienced; see `Experience.take_over`."""
        self._experience.take_over(observations, actions)

    def begin_with(self, agent: Mapping[str, Any]) -> None:
        """Take over another run's agent, from a state of `GoalSac`."""
        assert self._agent is not None
        self._agent.restore(agent)

    def set_bundle(self, bundle: Bundle) -> None:
        """Use this bundle from the next batch on; see `Experience.set_bundle`."""
        self._bundle = bundle
        if self._agent is None:
            self._agent = GoalSac(
                self._config.agent,
                bundle.features(self._config, self._env.spec),
                self._env.spec.action_dim,
                self._config.seed,
                self._config.runtime.device,
            )
        self._experience.set_bundle(bundle)

    def update(
        self, count: int, progress: float, *drawn: Rows
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Take `count` gradient steps.

        Args:
            count: number of updates.
            progress: share of training that is done, for the learning rate.
            drawn: what shards have drawn for all updates together, if there are any.

        Returns:
            Means over the updates, and the policy's weights after the last one.
        """
        assert self._agent is not None
        draw = self._mixed(drawn) if drawn else self.batch
        metrics = take_updates(self._agent, draw, count, progress)
        self._updates += count
        return metrics, self._agent.export_policy()

    def batch(self, count: int) -> dict[str, torch.Tensor]:
        """Relabelled rows ready for the agent, on its device."""
        return self._on_device(self._experience.rows(count))

    def _mixed(self, drawn: Sequence[Rows]) -> DrawRows:
        """Rows of several shards in random order, handed out one after the other."""
        total = sum(len(rows["reward"]) for rows in drawn)
        order = self._experience.rng.permutation(total)
        every = {name: np.concatenate([rows[name] for rows in drawn])[order] for name in drawn[0]}
        begin = 0

        def draw(count: int) -> dict[str, torch.Tensor]:
            nonlocal begin
            rows = slice(begin, begin + count)
            begin += count
            return self._on_device({name: values[rows] for name, values in every.items()})

        return draw

    def _on_device(self, rows: Rows) -> dict[str, torch.Tensor]:
        assert self._agent is not None
        return {k: torch.from_numpy(v).to(self._agent.device) for k, v in rows.items()}

    def policy(self) -> dict[str, np.ndarray]:
        """The policy's weights now."""
        assert self._agent is not None
        return self._agent.export_policy()

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, the whole replay and the pinned bundle included."""
        return self._experience.state() | {
            "updates": self._updates,
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
        self._experience.restore(state)
