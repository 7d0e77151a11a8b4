"""Trains the reachability network on a ring of random walks, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach import messages, seeding
from farreach.data.replay import Ring
from farreach_workloads.goals.environments.base import Floats, GoalEnvironmentSpec, Ints
from farreach_workloads.goals.features import Features, measure
from farreach_workloads.goals.folded import FoldedReachability
from farreach_workloads.goals.reachability import (
    PairSampler,
    ReachabilityNetwork,
    fold,
    loss_and_accuracy,
)

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig, NetworkConfig

# Every n-th walk is held out to measure the accuracy on.
VALIDATION_EVERY = 20
VALIDATION_PAIRS = 10_000
# Minibatches that are drawn and transformed together.
DRAWN_TOGETHER = 40


@dataclass(frozen=True)
class ReachabilityWeights:
    """What the trainer publishes: the folded network and the measure of the inputs.

    Attributes:
        version: number of refreshes behind it.
        network: the folded network.
        scale: (d,), see `Features`.
        unit: (d,), see `Features`.
    """

    version: int
    network: FoldedReachability
    scale: Floats
    unit: Floats


# count → inputs of the first and of the second states (count, width), labels (count,); float32.
DrawPairs = Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class PairFit:
    """The network and its optimiser, trained on whatever draws pairs."""

    def __init__(self, width: int, settings: NetworkConfig, seed: int) -> None:
        """An untrained network for inputs of `width` features."""
        torch.manual_seed(seeding.child_seed(seed, "reachability/init"))
        self._settings = settings
        self.network = ReachabilityNetwork(width, settings)
        # Coupled L2 decay (Adam, not AdamW), as in the released code.
        self._optimiser = torch.optim.Adam(
            self.network.parameters(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def train(self, draw: DrawPairs, batches: int) -> float:
        """Mean training loss over `batches` minibatches; leaves evaluation mode on."""
        self.network.train()
        total, size = 0.0, self._settings.batch
        for begin in range(0, batches, DRAWN_TOGETHER):
            count = min(DRAWN_TOGETHER, batches - begin)
            start, end, label = draw(count * size)
            for first in range(0, count * size, size):
                rows = slice(first, first + size)
                loss, _ = loss_and_accuracy(self.network(start[rows], end[rows]), label[rows])
                self._optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self._optimiser.step()
                total += float(loss.detach())
        self.network.eval()
        return total / batches

    @torch.no_grad()
    def validate(self, draw: DrawPairs, pairs: int) -> tuple[float, float]:
        """Loss and accuracy on `pairs` pairs, in evaluation mode."""
        assert not self.network.training
        start, end, label = draw(pairs)
        loss, accuracy = loss_and_accuracy(self.network(start, end), label)
        return float(loss), float(accuracy)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, BatchNorm's buffers and the optimiser included."""
        return {"network": self.network.state_dict(), "optimiser": self._optimiser.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`; the network is left in evaluation mode."""
        load_arrays(self.network, state["network"])
        load_optimiser(self._optimiser, state["optimiser"])
        self.network.eval()


class ReachabilityTrainer:
    """The network, its optimiser and the walks it learns from.

    ```
    trainer.add(walks)                      # random walks only, never policy steps
    weights, metrics = trainer.refresh()    # trains on fresh pairs, warm start
    ```
    Only random walks may come in: ten steps of a policy reach further than ten random ones, so
    policy data would change what the label means as the policy improves.
    """

    def __init__(self, config: GoalsRunConfig, spec: GoalEnvironmentSpec) -> None:
        """An untrained network; it is built at the first `refresh`, which measures the inputs."""
        torch.set_num_threads(config.runtime.torch_threads)
        self._config, self._spec = config, spec
        self._settings = config.reachability
        self._walks = Ring(
            max(1, config.reachability.walk_capacity_steps // config.phases.random_steps)
        )
        self._sampler = PairSampler(
            self._settings.window,
            self._settings.directed,
            self._settings.negative_frac,
            self._settings.in_trajectory_frac,
        )
        self._rng = seeding.generator(config.seed, "reachability")
        self._features: Features | None = None
        self._fresh: list[Ints] = []  # rows of the ring that came in since the last refresh
        self._version = 0

    def add(self, walks: Mapping[str, Any]) -> None:
        """Store random walks; `walks["observations"]` is (n, steps + 1, d)."""
        self._fresh.append(self._walks.append({"observations": walks["observations"]}))

    def begin_with(self, scale: Floats, unit: Floats) -> None:
        """Measure the inputs as another run did, (d,) both, instead of by the first walks."""
        self._build(scale, unit)

    def refresh(self) -> tuple[ReachabilityWeights, dict[str, float]]:
        """Train on `first_pairs` (at first) or `refresh_pairs` fresh pairs and publish."""
        if self._features is None:
            self._build(*measure(self._walks["observations"], self._settings.window))
        settings = self._settings
        pairs = settings.refresh_pairs if self._version else settings.first_pairs
        ids = np.arange(len(self._walks))
        held_out = ids % VALIDATION_EVERY == VALIDATION_EVERY - 1
        training = self._emphasised(ids[~held_out])
        batches = max(1, pairs // settings.batch)
        loss = self._fit.train(lambda count: self._pairs(training, count), batches)
        self._fresh.clear()
        validation = ids[held_out] if held_out.any() else ids
        validation_loss, accuracy = self._fit.validate(
            lambda count: self._pairs(validation, count), VALIDATION_PAIRS
        )
        self._version += 1
        assert self._features is not None
        weights = ReachabilityWeights(
            self._version,
            fold(self._fit.network),
            self._features.scale,
            self._features.unit,
        )
        metrics = {
            "reachability/loss": loss,
            "reachability/validation_loss": validation_loss,
            "reachability/validation_accuracy": accuracy,
            "reachability/walks": float(len(self._walks)),
        }
        return weights, metrics

    def _emphasised(self, ids: Ints) -> Ints:
        """Walks to draw from, the fresh ones repeated until they make up `recent_frac`."""
        fresh = np.intersect1d(ids, np.concatenate(self._fresh)) if self._fresh else ids[:0]
        frac = self._settings.recent_frac
        missing = round((len(ids) - len(fresh)) * frac / (1 - frac)) - len(fresh)
        return (
            np.concatenate([ids, np.resize(fresh, missing)]) if len(fresh) and missing > 0 else ids
        )

    def _build(self, scale: Floats, unit: Floats) -> None:
        self._features = Features(self._spec, self._config.features, self._settings, scale, unit)
        self._fit = PairFit(self._features.reachability_width, self._settings, self._config.seed)

    def _pairs(self, ids: Ints, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        observations = self._walks["observations"]
        steps = observations.shape[1] - 1
        first, i, second, j, positive = self._sampler.draw(self._rng, ids, steps, count)
        assert self._features is not None
        start = self._features.reachability(observations[first, i])
        end = self._features.reachability(observations[second, j])
        label = torch.from_numpy(positive.astype(np.float32))
        return torch.from_numpy(start), torch.from_numpy(end), label

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, BatchNorm's buffers and the optimiser included."""
        state: dict[str, Any] = {
            "version": self._version,
            "walks": self._walks.state(),
            "fresh": list(self._fresh),
            "rng": messages.generator_state(self._rng),
            "network": None,
        }
        if self._features is not None:
            state |= self._fit.state() | {
                "scale": self._features.scale,
                "unit": self._features.unit,
            }
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`; the network is left in evaluation mode."""
        self._version = state["version"]
        self._walks.restore(state["walks"])
        self._fresh = [np.array(rows) for rows in state["fresh"]]
        messages.restore_generator(self._rng, state["rng"])
        if state["network"] is not None:
            self._build(state["scale"], state["unit"])
            self._fit.restore(state)


def load_arrays(module: torch.nn.Module, arrays: Mapping[str, Any]) -> None:
    """Copy a state dict of arrays into a module."""
    module.load_state_dict({name: torch.as_tensor(value) for name, value in arrays.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimiser from a state dict whose tensors have become arrays."""
    moments = {
        index: {name: torch.as_tensor(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
