"""The sequential novelty filter, vectorised: who is nearest to whom while nodes are being added."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from farreach_workloads.goals.environments.base import Floats, Ints

# (candidate rows, node slots) → (rows, slots): how well each candidate is covered by each node.
Cover = Callable[[Ints, Ints], Floats]
ROWS_TOGETHER = 4096


class BestNode:
    """For each candidate the node that covers it best, kept up to date as nodes come in.

    Candidates are judged in order: a node added at position p counts for the candidates from p on,
    exactly as if they had been looked at one by one.

    Attributes:
        best: (c,) cover by the best node.
        slot: (c,) that node.
    """

    def __init__(self, cover: Cover, candidates: int, nodes: int) -> None:
        """Judge `candidates` candidates against the nodes 0 … `nodes` - 1."""
        self._cover = cover
        self.best = np.empty(candidates, np.float32)
        self.slot = np.empty(candidates, np.int64)
        self._judge(np.arange(candidates), np.arange(nodes))

    def _judge(self, rows: Ints, slots: Ints) -> None:
        for start in range(0, len(rows), ROWS_TOGETHER):
            part = rows[start : start + ROWS_TOGETHER]
            cover = self._cover(part, slots)
            first = cover.argmax(axis=1)
            self.slot[part] = slots[first]
            self.best[part] = cover[np.arange(len(part)), first]

    def placed(self, slot: int, position: int, nodes: int) -> None:
        """A node was placed into `slot` at `position`; there are `nodes` nodes now."""
        rows = np.arange(position, len(self.best))
        lost = rows[self.slot[rows] == slot]
        if len(lost):
            self._judge(lost, np.arange(nodes))
        cover = self._cover(rows, np.array([slot]))[:, 0]
        better = cover > self.best[rows]
        self.best[rows[better]] = cover[better]
        self.slot[rows[better]] = slot

    def next_below(self, threshold: float, position: int) -> int:
        """First candidate after `position` that is covered less than `threshold`, or -1."""
        novel = self.best[position + 1 :] < threshold
        return position + 1 + int(novel.argmax()) if novel.any() else -1
