"""In which order samples are seen: a pure function of the position, of which nothing is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from farreach import seeding

Rows = NDArray[np.int64]

ROUNDS = 6


class Order:
    """An endless sequence of epochs, each a permutation of all samples.

    ```
    order = Order(len(images), seed=0)
    order.rows(first=global_batch * step, count=global_batch)
    ```
    With `repeats` each sample comes several times in a row, and an epoch shows as many fewer of
    them (repeated augmentation, arXiv:1902.05509): an epoch stays as long as the set is large.
    """

    def __init__(self, samples: int, seed: int, repeats: int = 1) -> None:
        """Of `samples` ≥ 1 samples."""
        self._samples, self._seed, self._repeats = samples, seed, repeats

    def rows(self, first: int, count: int) -> Rows:
        """The samples at `count` positions from `first` on, counted over all epochs, (count,)."""
        epochs, offsets = np.divmod(np.arange(first, first + count), self._samples)
        rows = np.zeros(count, np.int64)
        for epoch in np.unique(epochs).tolist():
            within = epochs == epoch
            key = seeding.child_seed(self._seed, "order", epoch)
            rows[within] = permuted(offsets[within] // self._repeats, self._samples, key)
        return rows


def permuted(positions: Rows, count: int, key: int) -> Rows:
    """Where a permutation of `count` things puts some positions, without writing it down.

    A Feistel network permutes the power of 4 above `count`; what it puts outside is put on until
    it lies inside (cycle walking: Black and Rogaway, 2002). Time and memory do not depend on
    `count`.

    Args:
        positions: in [0, count), (n,).
        count: ≥ 1.
        key: which permutation.

    Returns:
        In [0, count), (n,).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    with np.errstate(over="ignore"):
        keys = seeding.mixed(np.arange(ROUNDS, dtype=np.uint64) + np.uint64(key))
        x = positions.astype(np.uint64)
        outside = np.ones(len(x), np.bool_)
        while outside.any():
            left, right = x[outside] >> half, x[outside] & low
            for round_key in keys:
                left, right = right, left ^ (seeding.mixed(right ^ round_key) & low)
            x[outside] = (left << half) | right
            outside = x >= count
    return x.astype(np.int64)


def share(count: int, rank: int, world: int) -> slice:
    """Which of `count` rows of a global batch are a worker's; sizes differ by one at most."""
    return slice(count * rank // world, count * (rank + 1) // world)
