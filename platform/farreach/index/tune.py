"""How much of an index a search must look at for the recall that is wanted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from farreach.index.hits import NO_ROW, Hits
from farreach.index.kinds import IndexConfig

MOST_RERANKED = 64
# What a search looks at more of to find more.
_EFFORT = {"ivf_flat": "probes", "ivf_pq": "probes", "ivf_fastscan": "probes", "hnsw": "ef"}


def recall(found: Hits, truth: Hits) -> float:
    """Share of the rows of `truth` that were found, over all queries.

    Args:
        found: (n, k).
        truth: (n, m) what exact search finds for the same queries.
    """
    wanted = truth.rows != NO_ROW
    hit = (truth.rows[:, :, None] == found.rows[:, None, :]).any(axis=2)
    return int(np.count_nonzero(hit & wanted)) / max(1, int(np.count_nonzero(wanted)))


def tuned(
    search: Callable[[IndexConfig], Hits],
    truth: Hits,
    config: IndexConfig,
    *,
    least: int,
    most: int,
    target: float,
) -> tuple[IndexConfig, float]:
    """The least effort with which a search reaches a recall.

    Args:
        search: searches with other probes, ef and rerank.
        truth: what exact search finds for the same queries.
        config: of the index.
        least: of probes or ef.
        most: of probes or ef.
        target: recall that is wanted.

    Returns:
        The configuration and the recall with it, which is below `target` if none reaches that.
    """

    def measured(settings: IndexConfig) -> float:
        return recall(search(settings), truth)

    reached = 0.0
    while True:
        if config.kind in _EFFORT:
            config, reached = _least(measured, config, least, most, target)
        else:
            reached = measured(config)
        rerank = 2 * max(1, config.rerank)
        if reached >= target or not config.is_rough or rerank > MOST_RERANKED:
            return config, reached
        config = config.model_copy(update={"rerank": rerank})


def _least(
    measured: Callable[[IndexConfig], float],
    config: IndexConfig,
    least: int,
    most: int,
    target: float,
) -> tuple[IndexConfig, float]:
    """Doubles the effort until it is enough, then halves the gap to the last that was not."""

    def with_effort(effort: int) -> IndexConfig:
        return config.model_copy(update={_EFFORT[config.kind]: effort})

    below, effort = 0, min(least, most)
    reached = measured(with_effort(effort))
    while reached < target and effort < most:
        below, effort = effort, min(2 * effort, most)
        reached = measured(with_effort(effort))
    while reached >= target and effort - below > max(1, below // 8):
        middle = (below + effort) // 2
        there = measured(with_effort(middle))
        if there >= target:
            effort, reached = middle, there
        else:
            below = middle
    return with_effort(effort), reached
