"""What features are worth: labels of the nearest neighbours, and the directions that are used."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Queries whose cosines with all references are held at once.
TOGETHER = 1024


def knn_labels(
    references: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """The class with most weight among the nearest references, each exp(cosine / temperature).

    Args:
        references: features, (n, d).
        labels: of the references, (n,) int64.
        queries: features, (m, d).
        classes: how many there are.
        neighbours: k; at most n count.
        temperature: of the weights.

    Returns:
        (m,) int64.
    """
    own = F.normalize(references.float(), dim=1)
    k = min(neighbours, len(own))
    found = []
    for begin in range(0, len(queries), TOGETHER):
        part = F.normalize(queries[begin : begin + TOGETHER].float(), dim=1)
        cosines, rows = (part @ own.t()).topk(k, dim=1)
        votes = torch.zeros(len(part), classes)
        # Relative to the nearest one's: exp(1 / temperature) itself may be infinite in float32.
        votes.scatter_add_(1, labels[rows], ((cosines - cosines[:, :1]) / temperature).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)
