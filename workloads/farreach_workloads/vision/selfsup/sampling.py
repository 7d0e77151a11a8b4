"""Which images come next, where classes are to come in another way than they are in the data.

Each is a pure function of the position in the run, for any number of workers. Source: the samplers
for batches of a few classes and for power laws that VISSL has for PMSN (arXiv:2210.07277).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from farreach import seeding
from farreach.data.images import Labels
from farreach.errors import ConfigError
from farreach.learn.order import Rows, permuted
from farreach.learn.task import Batch, Data
from farreach_workloads.vision.selfsup.config import SamplerConfig


class Sampler(Protocol):
    """Chooses the image of every position."""

    def rows(self, positions: Rows) -> Rows:
        """Rows of the data, (n,)."""


class Sampled:
    """Data of which a sampler chooses; see `farreach.learn.task.Data`."""

    def __init__(self, data: Data, sampler: Sampler) -> None:
        """An epoch stays as long as the data."""
        self._data, self._sampler = data, sampler

    def __len__(self) -> int:
        """How many samples an epoch has."""
        return len(self._data)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """What the sampler has at these positions; `rows` are those of an even order."""
        return self._data.batch(self._sampler.rows(positions), positions)


class Stratified:
    """Batches of a few classes each, all of which come as often as one another.

    A round shows every class once: batches take the next classes of a permutation, anew for every
    round. The images of a class come in permutations of their own.
    """

    def __init__(self, labels: Labels, classes: int, batch: int, seed: int) -> None:
        """Of `classes` classes per batch.

        Raises:
            ConfigError: the classes do not divide evenly into batches, or a batch into classes.
        """
        self._of_class = _rows_of_classes(labels)
        count = len(self._of_class)
        for whole, name in ((count, "classes there are"), (batch, "training.batch")):
            if whole % classes:
                fitting = [n for n in range(1, count + 1) if count % n == 0 and batch % n == 0]
                raise ConfigError(
                    f"sampler.classes: {classes} does not divide the {whole} {name}. Take one of "
                    f"{', '.join(map(str, fitting))}."
                )
        self._classes, self._batch, self._seed = classes, batch, seed

    def rows(self, positions: Rows) -> Rows:
        """See `Sampler`."""
        count, each = len(self._of_class), self._batch // self._classes
        batches, places = np.divmod(positions, self._batch)
        rounds, turns = np.divmod(batches, count // self._classes)
        result = np.zeros(len(positions), np.int64)
        for i, (number, turn, place) in enumerate(
            zip(rounds.tolist(), turns.tolist(), places.tolist(), strict=True)
        ):
            key = seeding.child_seed(self._seed, "classes", number)
            slot = np.array([turn * self._classes + place % self._classes])
            label = int(permuted(slot, count, key)[0])
            shown = number * each + place // self._classes
            result[i] = self._image(label, shown)
        return result

    def _image(self, label: int, shown: int) -> int:
        """The image of a class before which it has shown so many."""
        rows = self._of_class[label]
        epoch, place = divmod(shown, len(rows))
        key = seeding.child_seed(self._seed, f"images/{label}", epoch)
        return int(rows[permuted(np.array([place]), len(rows), key)[0]])


class Weighted:
    """Classes with given probabilities, and any image of the class that has come up."""

    def __init__(self, labels: Labels, shares: NDArray[np.float64], seed: int) -> None:
        """Of `shares` of the classes that have images, (c,), in proportion."""
        self._of_class = _rows_of_classes(labels)
        self._until = np.cumsum(shares / shares.sum())
        self._seed = seed

    def rows(self, positions: Rows) -> Rows:
        """See `Sampler`."""
        chosen = np.searchsorted(
            self._until[:-1], seeding.uniform(self._seed, "class", positions), side="right"
        )
        within = seeding.uniform(self._seed, "image", positions)
        return np.array(
            [
                self._of_class[label][int(part * len(self._of_class[label]))]
                for label, part in zip(chosen.tolist(), within.tolist(), strict=True)
            ],
            np.int64,
        )


def power_law_shares(classes: int, exponent: float, seed: int) -> NDArray[np.float64]:
    """∝ (1 + i)^-exponent, i the place of a class in a permutation: (classes,), sums to 1."""
    places = permuted(np.arange(classes), classes, seeding.child_seed(seed, "tail"))
    shares = (1.0 + places) ** -exponent
    return np.asarray(shares / shares.sum())


def sampled(data: Data, labels: Labels, config: SamplerConfig, batch: int, seed: int) -> Data:
    """The data as the configuration wants them; raises ConfigError as `Stratified` does."""
    if config.kind == "shuffled":
        return data
    if config.kind == "stratified":
        return Sampled(data, Stratified(labels, config.classes, batch, seed))
    counts = np.array([len(rows) for rows in _rows_of_classes(labels)], np.float64)
    if config.kind == "square_root":
        return Sampled(data, Weighted(labels, np.sqrt(counts), seed))
    shares = power_law_shares(len(counts), config.exponent, seed)
    return Sampled(data, Weighted(labels, shares, seed))


def _rows_of_classes(labels: Labels) -> list[Rows]:
    """The rows of each class that has any."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]
