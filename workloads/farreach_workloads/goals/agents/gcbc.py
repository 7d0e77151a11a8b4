"""Goal-conditioned behavioural cloning: imitate what the data did on the way to a later state.

Source: arXiv:1912.06088 (goal-conditioned supervised learning), with the goals and networks of
OGBench (arXiv:2410.20092).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from farreach_workloads.goals.agents import losses
from farreach_workloads.goals.agents.rows import GoalMix, TrainingRows
from farreach_workloads.goals.agents.trunk import FlatActor, TrunkAgent, TrunkSettings

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features


class GcbcSettings(TrunkSettings):
    """Behavioural cloning."""

    kind: Literal["gcbc"] = "gcbc"
    actor_goals: GoalMix = GoalMix(future=1.0)
    """Goals that the policy is trained with."""


class Gcbc(TrunkAgent):
    """Minimises -log π(a|s, g) over transitions and goals that their episodes reach later."""

    config: GcbcSettings

    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """The actor alone."""
        return {"actor": FlatActor(features, action_dim, self.config)}

    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """`actor_pair` (n, w) of (s, g) and `action` (n, a)."""
        start = rows.transitions(count, rng)
        goal = rows.goals(start, self.config.actor_goals, rng)
        return {"actor_pair": rows.pair(start, goal), "action": rows.actions(start)}

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The actor's."""
        loss, metrics = self.actor_loss(batch)
        return {"actor_loss": loss}, metrics

    def actor_loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of -log π(a|s, g) up to a constant."""
        mean = self.networks["actor"](batch["actor_pair"])
        error = (mean - batch["action"]).square().mean()
        return losses.behaviour(mean, batch["action"]).mean(), {"action_error": error}
