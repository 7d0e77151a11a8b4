"""Which agents there are, and how to make one from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from pydantic import Discriminator, Tag
from torch import Tensor

from farreach_workloads.goals.agents.crl import Crl, CrlSettings
from farreach_workloads.goals.agents.gcbc import Gcbc, GcbcSettings
from farreach_workloads.goals.agents.gciql import Gciql, GciqlSettings
from farreach_workloads.goals.agents.gcivl import Gcivl, GcivlSettings
from farreach_workloads.goals.agents.hiql import Hiql, HiqlSettings
from farreach_workloads.goals.agents.qrl import Qrl, QrlSettings
from farreach_workloads.goals.agents.trunk import TrunkAgent, TrunkPolicy, TrunkSettings
from farreach_workloads.goals.config import AgentSettings, OfflineSacConfig, SacConfig
from farreach_workloads.goals.sac import GoalSac, Policy

if TYPE_CHECKING:
    from farreach_workloads.goals.features import Features

_ON_TRUNK: dict[type[TrunkSettings], type[TrunkAgent]] = {
    GcbcSettings: Gcbc,
    GcivlSettings: Gcivl,
    GciqlSettings: Gciql,
    CrlSettings: Crl,
    QrlSettings: Qrl,
    HiqlSettings: Hiql,
}


def agent_kind(raw: Any) -> Any:
    """The agent that settings are of; one that is not named is SAC."""
    return raw.get("kind", "sac") if isinstance(raw, dict) else getattr(raw, "kind", None)


OfflineAgent = Annotated[
    Annotated[OfflineSacConfig, Tag("sac")]
    | Annotated[GcbcSettings, Tag("gcbc")]
    | Annotated[GcivlSettings, Tag("gcivl")]
    | Annotated[GciqlSettings, Tag("gciql")]
    | Annotated[CrlSettings, Tag("crl")]
    | Annotated[QrlSettings, Tag("qrl")]
    | Annotated[HiqlSettings, Tag("hiql")],
    Discriminator(agent_kind),
]


class Acting(Protocol):
    """A policy as evaluation uses it."""

    def load(self, weights: Any) -> None:
        """Copy an agent's exported policy."""

    def act(self, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Actions without noise: (n, d), (n, d) → (n, a) float32."""


class Agent(Protocol):
    """What a learner trains."""

    config: Any
    device: Any

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One gradient step of everything; losses and metrics, each ()."""

    def set_lr(self, lr: float) -> None:
        """Learning rate from now on."""

    def export_policy(self) -> dict[str, np.ndarray]:
        """The policy's weights now."""

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs; `actor` holds the policy's weights."""

    def restore(self, state: Any) -> None:
        """Take over a `state`."""


def make_agent(
    settings: AgentSettings, features: Features, action_dim: int, seed: int, device: str
) -> GoalSac | TrunkAgent:
    """A fresh agent."""
    if isinstance(settings, TrunkSettings):
        return _ON_TRUNK[type(settings)](settings, features, action_dim, seed, device)
    assert isinstance(settings, SacConfig)
    return GoalSac(settings, features, action_dim, seed, device)


def make_policy(settings: AgentSettings, features: Features, action_dim: int) -> Acting:
    """The policy of such an agent, with arbitrary weights until `load`."""
    if isinstance(settings, TrunkSettings):
        agent = _ON_TRUNK[type(settings)](settings, features, action_dim, 0, "cpu")
        return TrunkPolicy(agent.networks["actor"], features)
    assert isinstance(settings, SacConfig)
    return Policy(settings, features, action_dim)
