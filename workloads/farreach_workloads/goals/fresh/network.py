"""First stage: the reachability network, trained on pairs of states of the data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from farreach import seeding
from farreach.data.episodes import OBSERVATION, EpisodeStore
from farreach_workloads.goals.environments.base import Floats, GoalEnvironmentSpec, Ints
from farreach_workloads.goals.features import Features, spread_and_unit
from farreach_workloads.goals.reachability import PairSampler, fold
from farreach_workloads.goals.reachability_trainer import PairFit, ReachabilityWeights

if TYPE_CHECKING:
    from farreach_workloads.goals.fresh.config import FreshRunConfig

# The last episodes are held out, by the order of the files, as in the released code.
VALIDATION_FRAC = 0.05
MEASURED_ROWS = 200_000


class StorePairs:
    """Draws pairs of network inputs from the episodes of a data set."""

    def __init__(
        self,
        store: EpisodeStore,
        features: Features,
        sampler: PairSampler,
        rng: np.random.Generator,
    ) -> None:
        """Pairs of `sampler` from all of `store`."""
        self._store, self._features, self._sampler, self._rng = store, features, sampler, rng
        self._last = store.lengths - 1

    def draw(self, episodes: Ints, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of `count` pairs from some of the episodes; see `DrawPairs`."""
        first, i, second, j, positive = self._sampler.draw(self._rng, episodes, self._last, count)
        observations, starts = self._store[OBSERVATION], self._store.starts
        start = self._features.reachability(observations[starts[first] + i])
        end = self._features.reachability(observations[starts[second] + j])
        label = torch.from_numpy(positive.astype(np.float32))
        return torch.from_numpy(start), torch.from_numpy(end), label


def measured(store: EpisodeStore, window: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Scale and unit of the inputs, from a sample of states and of changes over `window` steps."""
    observations = store[OBSERVATION]
    rows = np.sort(rng.integers(0, store.rows, min(MEASURED_ROWS, store.rows)))
    episode = np.searchsorted(store.starts, rows, side="right") - 1
    later = np.minimum(rows + window, store.starts[episode + 1] - 1)
    states = observations[rows]
    return spread_and_unit(states, observations[later] - states)


def fit_network(
    store: EpisodeStore,
    config: FreshRunConfig,
    spec: GoalEnvironmentSpec,
    report: Callable[[int, dict[str, float]], None],
) -> ReachabilityWeights:
    """Train on fresh pairs for the configured epochs.

    Args:
        store: the data set.
        config: of the run.
        spec: of its environment.
        report: told (epoch, metrics) after each epoch.
    """
    torch.set_num_threads(config.runtime.torch_threads)
    settings = config.reachability
    rng = seeding.generator(config.seed, "reachability")
    scale, unit = measured(store, settings.window, rng)
    features = Features(spec, config.features, settings, scale, unit)
    sampler = PairSampler(
        settings.window, settings.directed, settings.negative_frac, settings.in_trajectory_frac
    )
    pairs = StorePairs(store, features, sampler, rng)
    episodes = np.arange(len(store))
    held_out = max(1, round(VALIDATION_FRAC * len(store))) if len(store) > 1 else 0
    training, validation = episodes[: len(store) - held_out], episodes[len(store) - held_out :]
    if not len(validation):
        validation = training
    fit = PairFit(features.reachability_width, settings, config.seed)
    batches = max(1, settings.epoch_pairs // settings.batch)
    for epoch in range(1, settings.epochs + 1):
        loss = fit.train(lambda count: pairs.draw(training, count), batches)
        held_out_loss, accuracy = fit.validate(
            lambda count: pairs.draw(validation, count), settings.validation_pairs
        )
        metrics = {
            "reachability/loss": loss,
            "reachability/validation_loss": held_out_loss,
            "reachability/validation_accuracy": accuracy,
        }
        report(epoch, metrics)
    return ReachabilityWeights(1, fold(fit.network), scale, unit)
