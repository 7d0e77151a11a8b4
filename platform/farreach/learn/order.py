"""In which order samples are seen: a pure function of the position, of which nothing is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from farreach import seeding

Rows = NDArray[np.int64]


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
        self._epoch, self._rows = -1, np.zeros(0, np.int64)

    def rows(self, first: int, count: int) -> Rows:
        """The samples at `count` positions from `first` on, counted over all epochs, (count,)."""
        parts = []
        while count > 0:
            epoch, offset = divmod(first, self._samples)
            part = self._of_epoch(epoch)[offset : offset + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _of_epoch(self, epoch: int) -> Rows:
        if epoch != self._epoch:
            rng = seeding.generator(self._seed, "order", epoch)
            shown = rng.permutation(self._samples)
            self._rows = np.repeat(shown, self._repeats)[: self._samples]
            self._epoch = epoch
        return self._rows


def share(count: int, rank: int, world: int) -> slice:
    """Which of `count` rows of a global batch are a worker's; sizes differ by one at most."""
    return slice(count * rank // world, count * (rank + 1) // world)
