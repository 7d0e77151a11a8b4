"""The reachability network: can the second state be reached from the first within τ random steps?

`ReachabilityNetwork` is what trains; everybody else uses what `fold` makes of it.

Source: arXiv:2301.02099 and arXiv:2206.11733; sampling and, but for the metric comparator,
architecture of the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach_workloads.goals.environments.base import Floats, Ints
from farreach_workloads.goals.folded import FoldedMetric, FoldedNetwork, FoldedReachability

if TYPE_CHECKING:
    from farreach_workloads.goals.config import NetworkConfig

# A state reaches itself: the first logit of two equal embeddings.
FIRST_OFFSET = 3.0


class MetricComparator(nn.Module):
    """A learned offset minus the L1 distance of the embeddings; positive = reachable.

    Directed: the second half of the dims counts only where it grows from start to end, which makes
    the distance a quasimetric (the two parts of arXiv:2208.08133, with sums for norms).

    Two regions can look alike only if the encoder folds one onto the other. The paper's comparator
    is a network of both embeddings; between pairs of regions that it has hardly ever seen together
    its answer is arbitrary, and a few such answers are shortcuts across the map.
    """

    def __init__(self, embedding: int, directed: bool) -> None:
        """For embeddings (n, embedding)."""
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(FIRST_OFFSET))
        self.two_way = (embedding + 1) // 2 if directed else embedding

    def forward(self, embeddings: Tensor) -> Tensor:
        """Both embeddings side by side (n, 2 × embedding) → (n, 1)."""
        start, end = embeddings.chunk(2, dim=1)
        gap = end - start
        two_way, one_way = gap[:, : self.two_way], gap[:, self.two_way :]
        distance = two_way.abs().sum(dim=1) + F.relu(one_way).sum(dim=1)
        return (self.offset - distance)[:, None]


def _network_comparator(embedding: int, layers: int) -> nn.Sequential:
    """The paper's: (n, 2 × embedding) → (n, 1)."""
    blocks: list[nn.Module] = []
    for index in range(layers - 1):
        before = embedding * (2 if index == 0 else 1)
        blocks += [nn.Linear(before, embedding), nn.BatchNorm1d(embedding), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Linear(embedding, 1))


class ReachabilityNetwork(nn.Module):
    """Encoder φ of each state and a comparator of two embeddings; a logit, positive = reachable."""

    def __init__(self, width: int, config: NetworkConfig) -> None:
        """For inputs of `width` features."""
        super().__init__()
        layers: list[nn.Module] = []
        sizes = [width] + [config.hidden] * (config.encoder_layers - 1)
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.Tanh()]
        self.encoder = nn.Sequential(*layers, nn.Linear(sizes[-1], config.embedding))
        self.comparator: MetricComparator | nn.Sequential
        if config.comparator == "metric":
            self.comparator = MetricComparator(config.embedding, config.directed)
        else:
            self.comparator = _network_comparator(config.embedding, config.comparator_layers)

    def forward(self, start: Tensor, end: Tensor) -> Tensor:
        """Logits of start → end: (n, width), (n, width) → (n,).

        The encoder runs once per side, so that in training each side is normalised by its own
        batch, as in the released code.
        """
        embeddings = torch.cat([self.encoder(start), self.encoder(end)], dim=1)
        return self.comparator(embeddings).squeeze(1)


def fold(network: ReachabilityNetwork) -> FoldedReachability:
    """The network in evaluation mode as plain arrays; it need not be in that mode itself."""
    comparator = network.comparator
    if isinstance(comparator, MetricComparator):
        metric = FoldedMetric(float(comparator.offset.detach()), comparator.two_way)
        return FoldedReachability(_folded_layers(network.encoder), metric)
    return FoldedReachability(
        _folded_layers(network.encoder), FoldedNetwork(_folded_layers(comparator))
    )


def _folded_layers(modules: nn.Sequential) -> list[tuple[Floats, Floats]]:
    """(weight (in, out), bias (out,)) per linear layer, with the BatchNorm behind it folded in."""
    layers = []
    children = list(modules)
    for index, module in enumerate(children):
        if not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight.detach().double(), module.bias.detach().double()
        after = children[index + 1] if index + 1 < len(children) else None
        if isinstance(after, nn.BatchNorm1d):
            assert after.running_var is not None
            assert after.running_mean is not None
            gain = after.weight.detach().double() / torch.sqrt(after.running_var + after.eps)
            weight = weight * gain[:, None]
            bias = (bias - after.running_mean) * gain + after.bias.detach().double()
        layers.append((weight.T.float().contiguous().numpy(), bias.float().numpy()))
    return layers


@dataclass(frozen=True)
class PairSampler:
    """Draws pairs of states with their label from trajectories.

    Positive: the second state lies within `window` steps of the first, in the same walk (a state
    with itself counts). Negative: elsewhere in the same walk with probability
    `in_trajectory_frac`, else anywhere in any walk; the latter may by chance be close, and that
    label noise is part of the method.

    Directed: only later states are positives, so every earlier state of the walk is a negative.
    """

    window: int
    directed: bool
    negative_frac: float
    in_trajectory_frac: float

    def draw(
        self, rng: np.random.Generator, trajectories: Ints, steps: int | Ints, count: int
    ) -> tuple[Ints, Ints, Ints, Ints, np.ndarray]:
        """Draw `count` pairs.

        Args:
            rng: source of randomness.
            trajectories: ids to draw from, (k,).
            steps: index of the last state, of all trajectories or of each by its id.
            count: number of pairs.

        Returns:
            trajectory and index of the first state, of the second state, and whether the pair is
            positive; each (count,).
        """
        positive = rng.random(count) >= self.negative_frac
        first = rng.choice(trajectories, count)
        second = first.copy()
        last = steps if isinstance(steps, int) else steps[first]
        i = rng.integers(0, last + 1, count)
        low = i if self.directed else np.maximum(i - self.window, 0)
        size = np.minimum(i + self.window, last) - low + 1
        outside = last + 1 - size
        within = ~positive & (rng.random(count) < self.in_trajectory_frac) & (outside > 0)
        j = low + _below(rng, size)  # a uniform state of the window ...
        elsewhere = _below(rng, np.maximum(outside, 1))
        elsewhere += np.where(elsewhere >= low, size, 0)  # ... or of its complement
        j = np.where(within, elsewhere, j)
        anywhere = ~positive & ~within
        second[anywhere] = rng.choice(trajectories, int(anywhere.sum()))
        last = steps if isinstance(steps, int) else steps[second[anywhere]]
        j[anywhere] = rng.integers(0, last + 1, int(anywhere.sum()))
        if not self.directed:
            swap = rng.random(count) < 0.5
            first, second = np.where(swap, second, first), np.where(swap, first, second)
            i, j = np.where(swap, j, i), np.where(swap, i, j)
        return first, i, second, j, positive


def _below(rng: np.random.Generator, bound: Ints) -> Ints:
    """A uniform integer in [0, bound) for each bound."""
    return np.minimum((rng.random(len(bound)) * bound).astype(np.int64), bound - 1)


def loss_and_accuracy(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy in nats and the share of right answers: (n,), (n,) → (), ()."""
    loss = F.binary_cross_entropy_with_logits(logits, positive)
    accuracy = ((logits > 0) == (positive > 0.5)).float().mean()
    return loss, accuracy
