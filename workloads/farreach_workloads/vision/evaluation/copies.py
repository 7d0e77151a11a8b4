"""Copy detection: descriptors of images, and how well they find the original of a copy.

Sources: R-MAC, arXiv:1511.05879; GeM, arXiv:1711.02512; Copydays as VISSL evaluates it; the image
similarity challenge's DISC21, arXiv:2106.09672.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from farreach.errors import DataError

# Share of a square that its neighbour along the longer side should cover.
OVERLAP = Fraction(2, 5)
# Steps along the longer side at the first level, of a map that is not square.
STEPS = range(1, 7)
# Of the largest variance: smaller ones are raised to it before they are divided by.
FLOOR = 1e-5

Rule = Literal["steps", "trapezoids"]


def rmac_regions(height: int, width: int, levels: int = 3) -> list[tuple[int, int, int]]:
    """The squares of R-MAC (arXiv:1511.05879, on regional maximum activations).

    With s = min(height, width), squares of level l = 1 … L have the side 2 s / (l + 1), rounded
    down. Along the shorter side there are l of them, along the longer one l + m - 1, first and last
    at the borders and the others evenly between, rounded down. m is 1 for a square map; else it is
    that of 2 … 7 for which 1 - (longer - s) / ((m - 1) s), the share by which neighbours of level 1
    overlap, is nearest to 0.4, the larger of two equally near. Levels whose side is 0 are left out.

    Returns:
        (top, left, side) each, level by level and row by row.
    """
    short, long = sorted((height, width))
    more = 0
    if long > short:
        misses = {
            steps: abs(1 - Fraction(long - short, steps * short) - OVERLAP) for steps in STEPS
        }
        more = min(STEPS, key=lambda steps: (misses[steps], -steps))
    regions = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side == 0:
            continue
        tops = _starts(height, side, level + (more if height > width else 0))
        lefts = _starts(width, side, level + (more if width > height else 0))
        regions += [(top, left, side) for top in tops for left in lefts]
    return regions


def _starts(length: int, side: int, count: int) -> list[int]:
    if count == 1:
        return [0]
    return [number * (length - side) // (count - 1) for number in range(count)]


def rmac_vectors(maps: Tensor, levels: int = 3) -> Tensor:
    """Maxima of each region, of length 1: (b, d, h, w) → (b, regions, d) float32.

    They are what `Whitening` is fitted on, flattened to (b × regions, d).
    """
    regions = rmac_regions(maps.shape[2], maps.shape[3], levels)
    found = [
        maps[:, :, top : top + side, left : left + side].amax((2, 3)) for top, left, side in regions
    ]
    return F.normalize(torch.stack(found, 1).float(), dim=2)


@dataclass(frozen=True)
class Whitening:
    """Projection to the directions of most variance, each then of variance 1.

    Attributes:
        mean: (d,) float64.
        matrix: (d, dims) float64.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, features: Tensor, dims: int) -> Whitening:
        """Fits to (n, d).

        Variances below 1e-5 of the largest are divided by as if they were that, as in VISSL.

        Raises:
            DataError: n vectors of d numbers do not span `dims` directions, or all are equal.
        """
        count, width = features.shape
        most = min(count - 1, width)
        if not 1 <= dims <= most:
            raise DataError(
                f"whitening: {dims} dimensions are asked of {count} vectors of {width} numbers, "
                f"which span {most} at most. Ask for fewer, or fit to more vectors."
            )
        rows = features.double()
        mean = rows.mean(0)
        centred = rows - mean
        values, vectors = torch.linalg.eigh(centred.t() @ centred / (count - 1))
        if not float(values[-1]) > 0:
            raise DataError(
                f"whitening: all {count} vectors are equal or not finite. Look whether the network "
                "that made them has collapsed."
            )
        values = values.flip(0).clamp(min=FLOOR * float(values[-1]))
        return cls(mean, vectors.flip(1)[:, :dims] / values[:dims].sqrt())

    def apply(self, features: Tensor) -> Tensor:
        """(…, d) → (…, dims) float32."""
        return ((features.double() - self.mean) @ self.matrix).float()


def rmac(maps: Tensor, levels: int = 3, whitening: Whitening | None = None) -> Tensor:
    """R-MAC: the sum of all regions' vectors, (b, d, h, w) → (b, d or dims), of length 1.

    Args:
        maps: activations after ReLU, (b, d, h, w).
        levels: L.
        whitening: of the regions' vectors, which are then brought to length 1 again.
    """
    vectors = rmac_vectors(maps, levels)
    if whitening is not None:
        vectors = F.normalize(whitening.apply(vectors), dim=2)
    return F.normalize(vectors.sum(1), dim=1)


def gem(maps: Tensor, power: float = 3.0) -> Tensor:
    """Generalised mean (mean x^p)^(1/p) of each channel: (b, d, h, w) → (b, d), of length 1.

    Values below 1e-6 are raised to it. With p = 1 it is the mean, with large p the maximum.
    """
    raised = maps.float().clamp(min=1e-6) ** power
    return F.normalize(raised.mean((2, 3)) ** (1 / power), dim=1)


def similarity(queries: Tensor, database: Tensor) -> Tensor:
    """Cosines, (q, d) and (n, d) → (q, n) float32."""
    return F.normalize(queries.float(), dim=1) @ F.normalize(database.float(), dim=1).t()


def average_precision(
    scores: NDArray[np.floating], right: NDArray[np.bool_], positives: int, rule: Rule = "steps"
) -> float:
    """Area under precision over recall of one ranking; of equal scores the wrong ones come first.

    Args:
        scores: (n,), high is first.
        right: (n,).
        positives: how many there are to be found, also beyond those ranked.
        rule: "steps" adds the precision at each right one; "trapezoids" its mean with the precision
            just before (1 at the start), as the evaluation of Holidays and Copydays does: an
            original that comes second has 1/4 instead of 1/2.
    """
    sorted_right = right[np.lexsort((right, -scores))]
    ranks = np.flatnonzero(sorted_right) + 1
    found = np.arange(1, len(ranks) + 1)
    precision = found / ranks
    if rule == "trapezoids":
        before = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + before) / 2
    return float(precision.sum() / positives)


def mean_average_precision(similarities: Tensor, relevant: Tensor, rule: Rule = "steps") -> float:
    """Mean over queries of `average_precision` of the whole database.

    Published results on Copydays are with the rule "trapezoids".

    Args:
        similarities: (q, n).
        relevant: which entries are originals of the query, (q, n) bool. Queries without one are
            left out.
        rule: see `average_precision`.

    Raises:
        DataError: no query has an original.
    """
    pairs = _with_original(similarities, relevant)
    return float(np.mean([average_precision(s, r, int(r.sum()), rule) for s, r in pairs]))


def micro_average_precision(scores: Tensor, is_copy: Tensor, positives: int) -> float:
    """`average_precision` of pairs of all queries in one ranking, as in DISC21.

    Args:
        scores: of pairs of a query and a reference, of any shape.
        is_copy: bool, of the same shape.
        positives: true pairs, also of those that have no score.

    Raises:
        DataError: more pairs are copies than there are said to be.
    """
    copies = int(is_copy.sum())
    if not max(copies, 1) <= positives:
        raise DataError(
            f"positives: is {positives}, but {copies} of the pairs are copies. Give the number of "
            "all true pairs, at least 1."
        )
    return average_precision(scores.flatten().numpy(), is_copy.flatten().numpy(), positives)


def recall_at_1(similarities: Tensor, relevant: Tensor) -> float:
    """Share of queries, of those with an original, for which one is nearest; a tie is a miss.

    Args:
        similarities: (q, n).
        relevant: (q, n) bool.

    Raises:
        DataError: no query has an original.
    """
    pairs = _with_original(similarities, relevant)
    return float(np.mean([s[r].max() > s[~r].max(initial=-np.inf) for s, r in pairs]))


def _with_original(
    similarities: Tensor, relevant: Tensor
) -> list[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    if similarities.shape != relevant.shape or not bool(relevant.any()):
        raise DataError(
            f"relevant: has the shape {tuple(relevant.shape)} and {int(relevant.sum())} originals, "
            f"the similarities {tuple(similarities.shape)}. Give an original to some query."
        )
    rows = zip(similarities.numpy(), relevant.numpy(), strict=True)
    return [(scores, originals) for scores, originals in rows if originals.any()]
