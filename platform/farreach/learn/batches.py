"""A worker's share of each batch, in parts; it may be made in another process."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from farreach.errors import FarreachError
from farreach.learn.order import Order, Rows, share
from farreach.learn.task import Batch, Data, PartedData

if TYPE_CHECKING:
    from farreach.learn.settings import LoopConfig


class Steps(Dataset[list[Batch] | FarreachError]):
    """The parts of a worker's share, by the number of the update.

    They are as many for all workers: in a pass these exchange statistics and split parameters, and
    one whose share is a sample larger must not be alone in it.
    """

    def __init__(self, data: Data, order: Order, config: LoopConfig, rank: int, world: int) -> None:
        """Of `data` in an order, for one of so many workers."""
        self._data, self._order, self._batch = data, order, config.batch
        self._share = share(config.batch, rank, world)
        self._part = config.part or config.batch
        self._passes = passes(config.batch, world, self._part)
        self._even = even_part(config.batch, world, self._part)

    def __getitem__(self, step: int) -> list[Batch] | FarreachError:
        """An error is given back: raised in a loader's process it would come with a trace."""
        positions = np.arange(step * self._batch, (step + 1) * self._batch)[self._share]
        rows = self._order.rows(int(positions[0]), len(positions))
        try:
            return self._parts(rows, positions)
        except FarreachError as error:
            return error

    def _parts(self, rows: Rows, positions: Rows) -> list[Batch]:
        if isinstance(self._data, PartedData) and self._even < len(rows):
            return self._data.parts(rows, positions, self._even)
        cuts = list(range(self._part, len(rows), self._part))
        if len(cuts) + 1 != self._passes:
            cuts = [len(rows) * number // self._passes for number in range(1, self._passes)]
        pairs = zip(np.split(rows, cuts), np.split(positions, cuts), strict=True)
        return [self._data.batch(*pair) for pair in pairs]


def passes(batch: int, world: int, part: int) -> int:
    """In how many parts of at most `part` samples every worker takes its share of a batch.

    Where `part` is 1 and shares differ, the larger ones have a part of 2.
    """
    least, most = batch // world, -(-batch // world)
    return min(-(-most // part), least)


def even_part(batch: int, world: int, part: int) -> int:
    """The size of parts next to `part` of which ⌈n / size⌉ make up every worker's share of n."""
    least = batch // world
    if batch % world == 0:
        return part
    # A sample more makes a part more where the size divides the lesser share.
    sizes = itertools.chain(range(part, 1, -1), itertools.count(part + 1))
    return next(size for size in sizes if least % size)
