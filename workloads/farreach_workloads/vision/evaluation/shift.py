"""Accuracy on images unlike those trained on, whose labels are a part or a mix of the classes.

Sets such as ImageNet-A and -R have 200 of 1000 classes, ObjectNet's classes stand for several of
ImageNet's, and ImageNet-ReaL (arXiv:2006.07159) accepts several labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farreach.errors import DataError


@dataclass(frozen=True)
class SetScore:
    """Accuracy on a set.

    Attributes:
        top1: share of images whose highest logit is right.
        top5: share of images with a right one among the five highest, or all where there are fewer.
        count: images.
    """

    top1: float
    top5: float
    count: int


def scored(logits: Tensor, labels: Tensor) -> SetScore:
    """Of (n, classes) and (n,) int64.

    Raises:
        DataError: there are no images, or not as many labels, or a label is no class.
    """
    if (
        not len(logits) == len(labels) > 0
        or not 0 <= labels.min() <= labels.max() < logits.shape[1]
    ):
        raise DataError(
            f"labels: have the shape {tuple(labels.shape)}, the logits {tuple(logits.shape)}. Give "
            "one label per row, each the number of a column."
        )
    right = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    return _score(logits, right)


def masked(logits: Tensor, allowed: Collection[int]) -> Tensor:
    """Logits of the allowed classes, -inf for the others: (n, classes) → (n, classes).

    Raises:
        DataError: one is no class, or none is allowed.
    """
    columns = torch.tensor(sorted(set(allowed)))
    if len(columns) == 0 or columns[0] < 0 or columns[-1] >= logits.shape[1]:
        raise DataError(
            f"allowed: {len(columns)} classes of {logits.shape[1]}, not all from 0 to "
            f"{logits.shape[1] - 1}. Give numbers of the model's classes."
        )
    kept = torch.full_like(logits, -torch.inf)
    kept[:, columns] = logits[:, columns]
    return kept


def masked_top1(logits: Tensor, labels: Tensor, allowed: Collection[int]) -> float:
    """Accuracy where classes outside a set are not considered.

    Args:
        logits: (n, classes).
        labels: the model's classes, (n,) int64.
        allowed: classes that the set has.

    Raises:
        DataError: a label is not allowed, or see `scored` and `masked`.
    """
    strange = set(labels.tolist()) - set(allowed)
    if strange:
        raise DataError(
            f"labels: {min(strange)} and {len(strange) - 1} others are not among the "
            f"{len(set(allowed))} allowed classes. Add them, or map labels to the model's classes."
        )
    return scored(masked(logits, allowed), labels).top1


def merged(logits: Tensor, members: Sequence[Collection[int]]) -> Tensor:
    """Logits of classes that stand for several: the highest of their members.

    The highest merged logit is that of the highest logit of all members, so classes of the model
    that are in none are not considered.

    Args:
        logits: (n, classes).
        members: of each new class, the model's classes that it stands for; at least one.

    Returns:
        (n, new classes).

    Raises:
        DataError: a new class has no members.
    """
    if not all(members) or not members:
        raise DataError("members: a class stands for none of the model's. Leave its images out.")
    return torch.stack([logits[:, sorted(own)].amax(1) for own in members], 1)


def scored_any(logits: Tensor, accepted: Sequence[Collection[int]]) -> SetScore:
    """Where an image may have several right labels, or none: then it is left out.

    Args:
        logits: (n, classes).
        accepted: classes that are right, of each image.

    Raises:
        DataError: no image has a label, or there are not as many images.
    """
    if len(accepted) != len(logits) or not any(accepted):
        raise DataError(
            f"accepted: {len(accepted)} sets for {len(logits)} images, {sum(map(bool, accepted))} "
            "of them not empty. Give one for each image, and some that are not empty."
        )
    right = torch.zeros_like(logits, dtype=torch.bool)
    for row, labels in zip(right, accepted, strict=True):
        row[list(labels)] = True
    known = right.any(1)
    return _score(logits[known], right[known])


def shift_table(scores: Mapping[str, SetScore], base: str) -> dict[str, dict[str, float]]:
    """Rows of a table, by the name of the set.

    Args:
        scores: of each set.
        base: which of them others are compared to; its row is the first.

    Returns:
        "top1", "top5", "n", and "drop", by how much top1 is below the base's.

    Raises:
        DataError: the base has no score.
    """
    if base not in scores:
        raise DataError(f"base: {base} is none of {', '.join(scores)}. Name one of them.")
    names = [base, *(name for name in scores if name != base)]
    return {
        name: {
            "top1": scores[name].top1,
            "top5": scores[name].top5,
            "n": float(scores[name].count),
            "drop": scores[base].top1 - scores[name].top1,
        }
        for name in names
    }


def _score(logits: Tensor, right: Tensor) -> SetScore:
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = right.gather(1, best)
    top1, top5 = hits[:, 0].double().mean(), hits.any(1).double().mean()
    return SetScore(float(top1), float(top5), len(logits))
