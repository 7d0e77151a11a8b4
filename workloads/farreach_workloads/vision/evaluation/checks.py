"""What must hold of features and labels before they are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from farreach.errors import DataError


def check_rows(features: Tensor, labels: Tensor, classes: int, part: str) -> None:
    """Raises DataError if rows and labels do not belong together or are no numbers.

    Args:
        features: (n, d).
        labels: (n,) int64.
        classes: labels are below it.
        part: what is checked, such as "train".
    """
    if features.ndim != 2 or len(features) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{part} features: have the shape {tuple(features.shape)}, the labels "
            f"{tuple(labels.shape)}. One row per label is needed, and at least one."
        )
    if not bool(torch.isfinite(features).all()):
        rows = int((~torch.isfinite(features).all(1)).sum())
        raise DataError(
            f"{part} features: {rows} of {len(features)} rows hold NaN or infinity. "
            "Look whether the network that made them has diverged."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{part} labels: run from {low} to {high}, but there are {classes} classes. "
            f"Give labels from 0 to {classes - 1}, or more classes."
        )
