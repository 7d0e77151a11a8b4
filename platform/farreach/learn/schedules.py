"""Learning rates as pure functions of how much of training is done."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup(done: float, rise: float, start: float) -> float:
    """Factor of a learning rate that first rises: linear from `start` to 1.

    Args:
        done: share of training that is done, in [0, 1].
        rise: share of training that the rise takes.
        start: the first value, in [0, 1].
    """
    return 1.0 if done >= rise else start + (1.0 - start) * done / rise


def polynomial(done: float, power: float = 1.0) -> float:
    """From 1 down to 0; a straight line with `power` 1."""
    return (1.0 - min(1.0, done)) ** power


def steps(done: float, drops: Sequence[float], factor: float = 0.1) -> float:
    """1, times `factor` from each of the `drops` on, which are shares of training."""
    return factor ** sum(done >= drop for drop in drops)


def cosine(done: float, first: float, last: float) -> float:
    """Half a cosine from `first` to `last`; `done` is the share of it, in [0, 1]."""
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * min(1.0, done)))


def warmup_cosine(
    done: float, warmup: float, peak: float, start: float = 0.0, floor: float = 0.0
) -> float:
    """Linear from `start` to `peak`, then half a cosine down to `floor`.

    Args:
        done: share of training that is done, in [0, 1].
        warmup: share of training that the rise takes, in [0, 1).
        peak: the highest value.
        start: the first value.
        floor: the last value.
    """
    if done < warmup:
        return start + (peak - start) * done / warmup
    return cosine((done - warmup) / (1.0 - warmup), peak, floor)
