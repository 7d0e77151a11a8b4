"""The trunk of the agents: networks, one optimiser for all of them, targets, checkpoints."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from farreach import seeding
from farreach.linear import Linear
from farreach_workloads.goals.agents.rows import GoalMix
from farreach_workloads.goals.config import AgentSettings
from farreach_workloads.goals.reachability_trainer import load_arrays, load_optimiser

if TYPE_CHECKING:
    from farreach_workloads.goals.agents.rows import TrainingRows
    from farreach_workloads.goals.features import Features


class TrunkSettings(AgentSettings):
    """What all agents on the trunk have; the defaults are those of OGBench (arXiv:2410.20092)."""

    lr: float = Field(3e-4, gt=0)
    lr_decay_frac: float = Field(0.0, ge=0, le=1)
    """Last share of training over which the learning rate falls linearly to a tenth."""
    batch: int = Field(1_024, ge=1)
    hidden: int = Field(512, ge=1)
    layers: int = Field(3, ge=1)
    """Hidden layers of every network."""
    layer_norm: bool = True
    """Of every network; OGBench's actors have none, and begin with a last layer a tenth of this."""
    polyak: float = Field(0.005, gt=0, le=1)

    @field_validator("critic_goals", "actor_goals", mode="before", check_fields=False)
    @classmethod
    def _rest_is_the_agents(cls, raw: Any, info: ValidationInfo) -> Any:
        """What a config does not say of a mix is as in the agent's own, not as in any `GoalMix`."""
        if not isinstance(raw, dict):
            return raw
        own = cls.model_fields[str(info.field_name)].default
        return {name: getattr(own, name) for name in GoalMix.model_fields} | raw


class ExpectileSettings(TrunkSettings):
    """What the agents have that bootstrap an expectile of the value over the data's actions."""

    discount: float = Field(0.99, gt=0, lt=1)
    expectile: float = Field(0.9, gt=0, lt=1)
    """Level of the value: 0.5 is the mean over the data's actions, towards 1 the best of them."""
    critic_goals: GoalMix = GoalMix(current=0.2, future=0.5, random=0.3, spread=100.0)
    """Goals that the value is trained with."""
    actor_goals: GoalMix = GoalMix(future=1.0)
    """Goals that the policy is trained with."""


class Mlp(nn.Sequential):
    """Linear layers with GELU, and layer normalisation after it if the settings want that."""

    def __init__(self, before: int, after: int, settings: TrunkSettings) -> None:
        """(n, before) → (n, after)."""
        widths = [before, *[settings.hidden] * settings.layers]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [_linear(wide, narrow), nn.GELU(approximate="tanh")]
            layers += [nn.LayerNorm(narrow)] if settings.layer_norm else []
        super().__init__(*layers, _linear(widths[-1], after))


class Twin(nn.Module):
    """Two networks of the same shape, for a smaller value where they differ."""

    def __init__(self, before: int, after: int, settings: TrunkSettings) -> None:
        """(n, before) → (2, n, after)."""
        super().__init__()
        self.first, self.second = (Mlp(before, after, settings) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Both outputs, stacked."""
        return torch.stack([self.first(inputs), self.second(inputs)])


class Value(nn.Module):
    """Twin values of (state, goal) or (state, goal, action), (2, n)."""

    def __init__(self, before: int, settings: TrunkSettings) -> None:
        """`before` is the width of all inputs together."""
        super().__init__()
        self.twin = Twin(before, 1, settings)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(n, ·) each → (2, n)."""
        return self.twin(torch.cat(inputs, dim=1))[..., 0]


class FlatActor(nn.Module):
    """Mean action of a Gaussian policy with unit variance."""

    def __init__(self, features: Features, action_dim: int, settings: TrunkSettings) -> None:
        """(n, pair width) → (n, a)."""
        super().__init__()
        self.network = Mlp(features.pair_width, action_dim, settings)

    def forward(self, pair: Tensor) -> Tensor:
        """Not bounded; whoever acts clips it."""
        return self.network(pair)


class TrunkAgent(ABC):
    """An agent whose losses are added up and minimised together.

    A subclass makes its networks, draws what they are trained on, and states the losses:

    ```
    agent = Gcivl(settings, features, action_dim, seed=0, device="cpu")
    arrays = agent.draw(rows, 1024, rng)
    metrics = agent.update({name: torch.from_numpy(values) for name, values in arrays.items()})
    ```
    """

    # Names of the networks that a slowly following copy is kept of.
    TARGETS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        settings: TrunkSettings,
        features: Features,
        action_dim: int,
        seed: int,
        device: str,
    ) -> None:
        """Fresh networks on `device`; all randomness follows from `seed`."""
        self.config: TrunkSettings = settings
        self.device = torch.device(device)
        torch.manual_seed(seeding.child_seed(seed, "agent/init"))
        self.networks = nn.ModuleDict(self.make_networks(features, action_dim)).to(self.device)
        copies = {name: copy.deepcopy(self.networks[name]) for name in self.TARGETS}
        self.targets = nn.ModuleDict(copies).requires_grad_(False)
        self._optimiser = torch.optim.Adam(
            self.networks.parameters(), lr=settings.lr, fused=self.device.type in ("cpu", "cuda")
        )
        followed = [p for name in self.TARGETS for p in self.networks[name].parameters()]
        self._followed = [p.detach() for p in followed]
        self._following = [p.detach() for p in self.targets.parameters()]

    @abstractmethod
    def make_networks(self, features: Features, action_dim: int) -> dict[str, nn.Module]:
        """All networks; `actor` is the one that acts, from pair features (n, ·) to (n, a)."""

    @abstractmethod
    def draw(self, rows: TrainingRows, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Arrays of `count` rows each, as `losses` reads them."""

    @abstractmethod
    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses that are added up, and further metrics, all ()."""

    def update(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of all networks; losses and metrics, each ()."""
        losses, metrics = self.losses(batch)
        self._optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self._optimiser.step()
        if self._following:
            torch._foreach_lerp_(self._following, self._followed, self.config.polyak)
        return {name: value.detach() for name, value in (losses | metrics).items()}

    def set_lr(self, lr: float) -> None:
        """Learning rate from now on."""
        for group in self._optimiser.param_groups:
            group["lr"] = lr

    def export_policy(self) -> dict[str, np.ndarray]:
        """The actor's parameters as arrays that nobody else writes to."""
        state = self.networks["actor"].state_dict()
        return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {
            "actor": self.networks["actor"].state_dict(),
            "networks": self.networks.state_dict(),
            "targets": self.targets.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        load_arrays(self.networks, state["networks"])
        load_arrays(self.targets, state["targets"])
        load_optimiser(self._optimiser, state["optimiser"])


class TrunkRows:
    """A source of rows, as a learner takes them: what the agent itself draws."""

    def __init__(self, agent: TrunkAgent, rows: TrainingRows) -> None:
        """`rows` are those of the data set."""
        self._agent, self._rows = agent, rows

    def inputs(self, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draw `count` rows, as the agent's `update` takes them."""
        return self._agent.draw(self._rows, count, rng)


class TrunkPolicy:
    """An actor as evaluation uses it: observations in, actions out, no gradients."""

    def __init__(self, actor: nn.Module, features: Features) -> None:
        """`actor` maps pair features (n, ·) to mean actions (n, a)."""
        self._actor, self._features = actor.eval(), features

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copy weights from `TrunkAgent.export_policy`."""
        load_arrays(self._actor, weights)

    @torch.inference_mode()
    def act(self, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Mean actions, clipped to [-1, 1]: (n, d), (n, d) → (n, a) float32."""
        pair = torch.from_numpy(self._features.pair(observations, goals))
        return self._actor(pair).clamp(-1, 1).numpy()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Gradients flow through the network to its inputs, but not to its parameters."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _linear(before: int, after: int) -> nn.Linear:
    layer = Linear(before, after)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
