"""Accuracy where classes are not equally frequent."""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = ("head", "medium", "tail")


def per_class_accuracy(correct: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Share of correct rows of each class.

    Args:
        correct: (n,) bool.
        labels: (n,) int64.
        classes: how many there are.

    Returns:
        (classes,) float64; NaN for a class without rows.
    """
    rows = torch.bincount(labels, minlength=classes).double()
    return torch.bincount(labels, weights=correct.double(), minlength=classes) / rows


def balanced_accuracy(correct: Tensor, labels: Tensor, classes: int) -> float:
    """Mean of `per_class_accuracy` over the classes that have rows."""
    return float(per_class_accuracy(correct, labels, classes).nanmean())


def thirds(train_counts: Tensor) -> dict[str, Tensor]:
    """Numbers of the frequent, the medium and the rare third of the classes.

    Of classes with equally many training images the one with the lower number counts as the more
    frequent; where thirds are not whole, the first of them are larger by one.

    Args:
        train_counts: training images of each class, (classes,).

    Returns:
        "head", "medium" and "tail", (n,) int64 each.
    """
    order = train_counts.argsort(descending=True, stable=True)
    return dict(zip(PARTS, torch.tensor_split(order, len(PARTS)), strict=True))


def head_medium_tail(correct: Tensor, labels: Tensor, train_counts: Tensor) -> dict[str, float]:
    """Balanced accuracy of the frequent, the medium and the rare third of the classes.

    Args:
        correct: of the test images, (n,) bool.
        labels: of the test images, (n,) int64.
        train_counts: training images of each class, (classes,).

    Returns:
        "head", "medium" and "tail"; NaN for a third without test images.
    """
    by_class = per_class_accuracy(correct, labels, len(train_counts))
    return {part: float(by_class[third].nanmean()) for part, third in thirds(train_counts).items()}
