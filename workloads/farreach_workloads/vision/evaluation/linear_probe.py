"""Linear probes: one linear layer, trained on features that stay as they are.

Sources: the protocol of MSN, arXiv:2204.07141, appendix A, and that of VISSL's linear benchmark,
which SEER, arXiv:2103.01988, uses. Both augment the training images, which features that were
computed once cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.console import warn
from farreach.errors import ConfigError, DataError
from farreach.seeding import child_seed
from farreach_workloads.vision.evaluation.checks import check_rows
from farreach_workloads.vision.evaluation.tail import balanced_accuracy, head_medium_tail

# Test rows that are classified at once.
TOGETHER = 8192


@dataclass(frozen=True)
class ProbeRecipe:
    """How a linear probe is trained: by SGD with Nesterov's momentum of 0.9, without warm-up.

    Attributes:
        normalisation: before the linear layer: "layer" is LayerNorm and division by the row's
            length, "batch" is BatchNorm.
        epochs: passes over the training rows.
        batch: rows per step; all rows where there are fewer.
        lr: at the start.
        scale_lr: `lr` is that of 256 rows, and grows in proportion to the rows per step.
        weight_decay: of the linear layer; the normalisation has none.
        schedule: "cosine" falls with every step; "steps" divides by 10 after 2, 4 and 6 sevenths
            of the epochs: 8, 16 and 24 of 28.
        last: share of `lr` that the cosine ends at.
    """

    normalisation: Literal["layer", "batch"]
    epochs: int
    batch: int
    lr: float
    scale_lr: bool
    weight_decay: float
    schedule: Literal["cosine", "steps"]
    last: float = 0.0


MSN = ProbeRecipe("layer", 100, 8192, 6.4, False, 0.0, "cosine")
VISSL = ProbeRecipe("batch", 28, 256, 0.01, True, 5e-4, "steps")


class Head(nn.Module):
    """Normalisation and a linear layer, whose weights start as N(0, 0.01²)."""

    def __init__(self, dim: int, classes: int, recipe: ProbeRecipe, seed: int) -> None:
        """(n, dim) → (n, classes)."""
        super().__init__()
        self.divide = recipe.normalisation == "layer"
        self.norm = nn.LayerNorm(dim, eps=1e-6) if self.divide else nn.BatchNorm1d(dim)
        self.linear = nn.utils.skip_init(nn.Linear, dim, classes)
        generator = torch.Generator().manual_seed(child_seed(seed, "probe/init"))
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(n, dim) → logits, (n, classes)."""
        rows: Tensor = self.norm(features)
        return self.linear(F.normalize(rows, dim=1) if self.divide else rows)


def probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy on test features of a linear layer that is trained on others.

    Args:
        train_x: (n, d).
        train_y: (n,) int64.
        test_x: (m, d).
        test_y: (m,) int64.
        classes: how many there are.
        recipe: how to train.
        seed: of first weights and of the order of rows; equal seeds give equal results.

    Returns:
        "top1", "balanced_accuracy" and the thirds of `head_medium_tail` after the last epoch, and
        "top1_best_epoch", the highest of all epochs: chosen on the test rows, it is too high, but
        it is what MSN's code reports.

    Raises:
        DataError: features and labels do not fit together, there is one training row only, or
            training has diverged.
    """
    rates = probe_rates(train_x, train_y, test_x, test_y, classes, recipe, [recipe.lr], seed)
    return rates[recipe.lr]


def probe_rates(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    recipe: ProbeRecipe,
    lrs: Sequence[float],
    seed: int = 0,
) -> dict[float, dict[str, float]]:
    """`probe` at several learning rates side by side, each as if it were alone.

    Choose a rate on a part of the training rows, not on those that are reported.

    Returns:
        For each of `lrs`, which replace the recipe's, what `probe` returns; those are left out, and
        named in a note, at which training has diverged.

    Raises:
        ConfigError: a rate is given twice, or none.
        DataError: see `probe`; training has diverged at all rates.
    """
    if len(set(lrs)) != len(lrs) or not lrs:
        raise ConfigError(f"lrs: {list(lrs)} must be one or more different rates.")
    check_rows(train_x, train_y, classes, "train")
    check_rows(test_x, test_y, classes, "test")
    if len(train_x) < 2:
        raise DataError("train features: are of one image. A probe needs two or more.")
    heads = [
        Head(train_x.shape[1], classes, recipe, seed).to(train_x.device, torch.float32) for _ in lrs
    ]
    hits = _trained(heads, (train_x.float(), train_y), (test_x.float(), test_y), recipe, lrs, seed)
    counts, results = torch.bincount(train_y, minlength=classes), {}
    for number, lr in enumerate(lrs):
        if not _is_finite(heads[number]):
            warn(f"note      the linear probe has diverged at lr={lr:g}, which is left out")
            continue
        top1 = [float(epoch[number].double().mean()) for epoch in hits]
        results[lr] = {
            "top1": top1[-1],
            "top1_best_epoch": max(top1),
            "balanced_accuracy": balanced_accuracy(hits[-1][number], test_y, classes),
            **head_medium_tail(hits[-1][number], test_y, counts),
        }
    return results


def probe_layers(
    train_x: Mapping[str, Tensor],
    train_y: Tensor,
    test_x: Mapping[str, Tensor],
    test_y: Tensor,
    classes: int,
    recipe: ProbeRecipe,
    seed: int = 0,
) -> tuple[str, dict[str, dict[str, float]]]:
    """`probe` of the features of several layers.

    Args:
        train_x: by the layer's name, (n, d) each; d may differ.
        train_y: (n,) int64.
        test_x: of the same layers, (m, d) each.
        test_y: (m,) int64.
        classes: how many there are.
        recipe: how to train.
        seed: see `probe`.

    Returns:
        The layer with the highest "top1", the first of equals; and what `probe` returns for each.

    Raises:
        DataError: training and test layers are not the same, or see `probe`.
    """
    if set(train_x) != set(test_x) or not train_x:
        raise DataError(
            f"features: are of the layers {sorted(train_x)} to train on and {sorted(test_x)} to "
            "test on. Give the same layers for both, and at least one."
        )
    results = {
        name: probe(rows, train_y, test_x[name], test_y, classes, recipe, seed)
        for name, rows in train_x.items()
    }
    return max(results, key=lambda name: results[name]["top1"]), results


def _trained(
    heads: Sequence[Head],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    recipe: ProbeRecipe,
    lrs: Sequence[float],
    seed: int,
) -> list[list[Tensor]]:
    """Trains the heads; which test rows are right, (m,) bool, by epoch and head.

    Raises:
        DataError: no head's weights are numbers any more.
    """
    x, y = train
    batch = min(recipe.batch, len(x))
    steps = len(x) // batch  # an epoch leaves out what remains: other rows each time
    scale = batch / 256 if recipe.scale_lr else 1.0
    groups = [
        {"params": list(part.parameters()), "lr": lr * scale, "weight_decay": decay}
        for head, lr in zip(heads, lrs, strict=True)
        for part, decay in ((head.linear, recipe.weight_decay), (head.norm, 0.0))
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(step, steps, recipe)
    )
    generator = torch.Generator().manual_seed(child_seed(seed, "probe/order"))
    hits = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for rows in order[: steps * batch].view(steps, batch):
            loss = sum((F.cross_entropy(head(x[rows]), y[rows]) for head in heads), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if not any(_is_finite(head) for head in heads):
            raise DataError(
                f"linear probe: training has diverged, after epoch {epoch + 1} of {recipe.epochs} "
                f"no weights are numbers at lr={', '.join(f'{lr:g}' for lr in lrs)}. Set a lower "
                f"one, such as lr={min(lrs) / 10:g}."
            )
        hits.append([_correct(head, *test) for head in heads])
    return hits


def _is_finite(head: Head) -> bool:
    """Whether its weights and statistics are numbers: otherwise class 0 is said of every row."""
    return all(bool(value.isfinite().all()) for value in head.state_dict().values())


def _factor(step: int, steps: int, recipe: ProbeRecipe) -> float:
    """Of the learning rate, at a step of which an epoch has `steps`."""
    if recipe.schedule == "cosine":
        share = (1 + math.cos(math.pi * step / (steps * recipe.epochs))) / 2
        return recipe.last + (1 - recipe.last) * share
    return 0.1 ** (step // steps * 7 // (2 * recipe.epochs))


@torch.no_grad()
def _correct(head: Head, features: Tensor, labels: Tensor) -> Tensor:
    head.eval()
    predicted = torch.cat([head(rows).argmax(1) for rows in features.split(TOGETHER)])
    head.train()
    return predicted == labels
