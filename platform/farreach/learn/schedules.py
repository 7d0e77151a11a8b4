"""Learning rates as pure functions of how much of training is done."""

from __future__ import annotations

import math


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
    fallen = min(1.0, (done - warmup) / (1.0 - warmup))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * fallen))
