"""The reachability network as everybody but its trainer uses it.

The same function in evaluation mode, with BatchNorm folded into the linear layers, in NumPy: cheap
to send, and cheap to apply to all pairs of states and memory nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from farreach_workloads.goals.environments.base import Floats, Ints

# Rows of an all-pairs comparison that are worked on together: keeps the block in the cache.
BLOCK_VALUES = 1 << 16
# States that are encoded together, likewise.
ENCODED_TOGETHER = 1024
# (weight (in, out), bias (out,)) per linear layer.
Layers = list[tuple[Floats, Floats]]


@dataclass(frozen=True)
class FoldedMetric:
    """An offset minus the L1 distance of two embeddings; see `MetricComparator`.

    Attributes:
        offset: logit of two equal embeddings.
        two_way: how many dims count both ways; the others only where they grow.
    """

    offset: float
    two_way: int

    def logits(self, start: Floats, end: Floats) -> Floats:
        """Row by row: embeddings (n, e), (n, e) → (n,)."""
        gap = end - start
        np.abs(gap[:, : self.two_way], out=gap[:, : self.two_way])
        np.maximum(gap[:, self.two_way :], 0.0, out=gap[:, self.two_way :])
        return np.float32(self.offset) - gap.sum(axis=1)

    def all_pairs(self, start: Floats, end: Floats) -> Floats:
        """Every start with every end: (n, e), (m, e) → (n, m) float32."""
        both = slice(0, self.two_way)
        distance = cdist(start[:, both], end[:, both], "cityblock")
        if self.two_way < start.shape[1]:
            # max(x, 0) = (|x| + x) / 2
            rest = slice(self.two_way, None)
            grown = end[:, rest].sum(axis=1)[None, :] - start[:, rest].sum(axis=1)[:, None]
            distance += 0.5 * (cdist(start[:, rest], end[:, rest], "cityblock") + grown)
        return np.subtract(self.offset, distance, dtype=np.float32, casting="same_kind")

    def arrays(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"offset": self.offset, "two_way": self.two_way}


@dataclass(frozen=True)
class FoldedNetwork:
    """The paper's comparator: linear layers on both embeddings, ReLU between them.

    Attributes:
        layers: the first weight is (2 × embedding, out).
    """

    layers: Layers

    def _first_halves(self, start: Floats, end: Floats) -> tuple[Floats, Floats]:
        """The first layer is linear, so its two halves are computed per state."""
        weight, bias = self.layers[0]
        half = start.shape[1]
        return start @ weight[:half] + bias, end @ weight[half:]

    def logits(self, start: Floats, end: Floats) -> Floats:
        """Row by row: embeddings (n, e), (n, e) → (n,)."""
        left, right = self._first_halves(start, end)
        return self._finish(left + right)

    def _finish(self, values: Floats) -> Floats:
        for weight, bias in self.layers[1:]:
            np.maximum(values, 0.0, out=values)
            values = values @ weight
            values += bias
        return values[..., 0]

    def all_pairs(self, start: Floats, end: Floats) -> Floats:
        """Every start with every end: (n, e), (m, e) → (n, m)."""
        left, right = self._first_halves(start, end)
        if len(self.layers) > 2:
            return self._finish(left[:, None, :] + right[None, :, :])
        weight, bias = self.layers[1]
        total = np.full((len(left), len(right)), bias[0], np.float32)
        work = np.empty_like(total)
        left, right = np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
        for unit in range(len(weight)):
            np.add(left[unit][:, None], right[unit][None, :], out=work)
            np.maximum(work, 0.0, out=work)
            work *= weight[unit, 0]
            total += work
        return total

    def arrays(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"layers": [list(layer) for layer in self.layers]}


@dataclass(frozen=True)
class FoldedReachability:
    """Encoder and comparator in evaluation mode, as plain arrays.

    Attributes:
        encoder: linear layers, tanh between them.
        comparator: of two embeddings.
    """

    encoder: Layers
    comparator: FoldedMetric | FoldedNetwork

    @property
    def embedding(self) -> int:
        """Length of an embedding."""
        return self.encoder[-1][1].shape[0]

    def embed(self, inputs: Floats) -> Floats:
        """φ: (n, width) → (n, embedding)."""
        result = np.empty((len(inputs), self.embedding), np.float32)
        size = min(len(inputs), ENCODED_TOGETHER)
        hidden = [np.empty((size, len(bias)), np.float32) for _, bias in self.encoder[:-1]]
        for begin in range(0, len(inputs), ENCODED_TOGETHER):
            values = inputs[begin : begin + ENCODED_TOGETHER]
            outputs = [*(work[: len(values)] for work in hidden), result[begin : begin + size]]
            for (weight, bias), output in zip(self.encoder, outputs, strict=True):
                np.matmul(values, weight, out=output)
                output += bias
                if output is not outputs[-1]:
                    np.tanh(output, out=output)
                values = output
        return result

    def logits(self, start: Floats, end: Floats) -> Floats:
        """Row by row: embeddings (n, e), (n, e) → (n,)."""
        return self.comparator.logits(start, end)

    def all_pairs(self, start: Floats, end: Floats) -> Floats:
        """Every start with every end: (n, e), (m, e) → (n, m)."""
        result = np.empty((len(start), len(end)), np.float32)
        for rows in _row_blocks(len(start), len(end)):
            result[rows] = self.comparator.all_pairs(start[rows], end)
        return result

    def nearest(
        self, start: Floats, nodes: Floats, *, incoming: bool = False
    ) -> tuple[Ints, Floats]:
        """The node that each state reaches best, or (`incoming`) that reaches the state best.

        Args:
            start: (n, e).
            nodes: (m, e), m ≥ 1.
            incoming: look at node → state instead of state → node.

        Returns:
            Index (n,) int64 and logit (n,) float32.
        """
        index = np.empty(len(start), np.int64)
        best = np.empty(len(start), np.float32)
        for rows in _row_blocks(len(start), len(nodes)):
            if incoming:
                block = self.comparator.all_pairs(nodes, start[rows]).T
            else:
                block = self.comparator.all_pairs(start[rows], nodes)
            index[rows] = block.argmax(axis=1)
            best[rows] = np.take_along_axis(block, index[rows, None], axis=1)[:, 0]
        return index, best

    def arrays(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "encoder": [list(layer) for layer in self.encoder],
            "comparator": self.comparator.arrays(),
        }

    @classmethod
    def from_arrays(cls, content: Mapping[str, Any]) -> FoldedReachability:
        """The inverse of `arrays`."""
        encoder, comparator = _layers(content["encoder"]), content["comparator"]
        if "layers" in comparator:
            return cls(encoder, FoldedNetwork(_layers(comparator["layers"])))
        return cls(encoder, FoldedMetric(**comparator))


def _layers(content: list[list[Floats]]) -> Layers:
    return [(weight, bias) for weight, bias in content]


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, BLOCK_VALUES // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, start + size)
