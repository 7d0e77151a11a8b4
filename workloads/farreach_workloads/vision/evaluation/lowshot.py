"""Low-shot classification: logistic regression on the features of a few images of each class.

Source: the protocol of MSN, arXiv:2204.07141, appendix A, with the settings of its code. That code
solves the same objective by cyanure, whose tolerance is a relative duality gap of 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from farreach import seeding
from farreach.data.images import ImageSet
from farreach.errors import DataError
from farreach_workloads.vision.evaluation.checks import check_rows

# The largest entry of the gradient, relative to that at W = 0: where the solver stops, and what it
# must have reached. An absolute bound would not do: with one image of each of 1000 classes the
# gradient at W = 0 is below 1e-3 already.
TOLERANCE, ENOUGH = 1e-6, 1e-2
ITERATIONS = 2000


def normalised(features: Tensor) -> Tensor:
    """Each row less its own mean, then divided by its length: (n, d) → (n, d) float64."""
    rows = features.double()
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def fit_logistic(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """The weights that minimise mean cross-entropy + (λ / 2) ‖W‖², without intercept.

    This is cyanure's objective with `lambda_1` = λ, and that of scikit-learn's LogisticRegression
    (multinomial, `fit_intercept=False`) with C = 1 / (n λ).

    Args:
        features: (n, d).
        labels: (n,) int64.
        classes: how many there are; not all need occur.
        penalty: λ > 0.

    Returns:
        W, (classes, d) float64; the scores of a row x are W x.

    Raises:
        DataError: rows and labels do not belong together, or the solver gave up.
    """
    check_rows(features, labels, classes, "train")
    x, target = features.double(), F.one_hot(labels, classes).double()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = torch.from_numpy(flat).view(classes, -1)
        log_p = (x @ w.t()).log_softmax(1)
        value = -(target * log_p).sum() / len(x) + penalty / 2 * (w * w).sum()
        gradient = (log_p.exp() - target).t() @ x / len(x) + penalty * w
        return float(value), gradient.flatten().numpy()

    start = np.zeros(classes * x.shape[1])
    first = float(np.abs(objective(start)[1]).max())
    limits = {
        "maxiter": ITERATIONS,
        "maxfun": 2 * ITERATIONS,
        "ftol": 0.0,
        "gtol": TOLERANCE * first,
    }
    found: Any = minimize(objective, start, jac=True, method="L-BFGS-B", options=limits)
    reached = float(np.abs(found.jac).max())
    if reached > ENOUGH * first:
        raise DataError(
            f"logistic regression: after {found.nit} iterations the gradient is {reached:.1e}, at "
            f"the start it was {first:.1e} ({found.message}). Raise the penalty, now {penalty:g}."
        )
    return torch.from_numpy(found.x).view(classes, -1)


def accuracy(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    """Share of rows whose highest score is that of their label: (classes, d), (n, d), (n,)."""
    predicted = (features.double() @ weights.t()).argmax(1)
    return float((predicted == labels).double().mean())


def few_of_each(labels: Tensor, per_class: int, split: int, seed: int) -> Tensor:
    """Rows of some images of each class, the same for whatever features they have.

    The classes are those from 0 to the highest label. Of one split, the choice of fewer images is
    part of the choice of more; choices of two splits are independent and may share images.

    Args:
        labels: (n,) int64.
        per_class: images of each class.
        split: which of several choices.
        seed: of all of them.

    Returns:
        (classes × per_class,) int64, class by class.

    Raises:
        DataError: a class has too few images.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels.numpy() == label)
        if len(rows) < per_class:
            raise DataError(
                f"class {label}: has {len(rows)} images, {per_class} are to be chosen. "
                "Ask for fewer images per class, or leave the class out."
            )
        rng = seeding.generator(seed, f"few of class {label}", split)
        chosen.append(rng.permutation(rows)[:per_class])
    return torch.from_numpy(np.concatenate(chosen))


def listed(files: Sequence[Path], images: ImageSet) -> list[NDArray[np.int64]]:
    """Rows of the images that lists name, as the published lists of ImageNet do.

    A list has the name of a file a line, such as `n01440764_10026.JPEG`, alone or below the name of
    its folder. Endings do not count, as samples of tar files have none.

    Args:
        files: the lists.
        images: in a folder or in tar files, n.

    Returns:
        (m,) for each list, in its order.

    Raises:
        DataError: a list cannot be read or is empty, or a name is that of no image or of several.
    """
    lists = [_lines(file) for file in files]
    rows: dict[str, list[int]] = {_short(name): [] for names in lists for name in names}
    for row in range(len(images)):
        name = images.name(row).rpartition(", sample ")[2]
        for known in (_short(name), _stem(name)):
            if known in rows and row not in rows[known][-1:]:
                rows[known].append(row)
    for file, names in zip(files, lists, strict=True):
        missing = [name for name in names if not rows[_short(name)]]
        if missing:
            raise DataError(
                f"{file}: {len(missing):,} of {len(names):,} names are of no training image, such "
                f"as {', '.join(missing[:3])}. Correct lists, or set data=PATH to a folder or tar "
                "files of the images that are meant."
            )
        several = [name for name in names if len(rows[_short(name)]) > 1]
        if several:
            raise DataError(
                f"{file}: {len(several):,} of {len(names):,} names are of several training images, "
                f"such as {', '.join(several[:3])}. Write them below their folders: CLASS/NAME."
            )
    return [np.array([rows[_short(name)][0] for name in names], np.int64) for names in lists]


def _lines(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no list that can be read: {error}. Correct lists.") from error
    if not names:
        raise DataError(f"{file}: names no image. Give one name a line.")
    return names


def _short(name: str) -> str:
    """A name of a file without its ending and all folders but the last."""
    folder, _, _ = name.rpartition("/")
    return f"{folder.rpartition('/')[2]}/{_stem(name)}" if folder else _stem(name)


def _stem(name: str) -> str:
    last = name.rpartition("/")[2]
    return last.rpartition(".")[0] or last


def low_shot(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    per_class: Sequence[int] = (1, 2, 5),
    splits: int = 3,
    lambd: float = 0.0025,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy on the test images after fitting to a few images of each class, on the CPU.

    Args:
        train_features: of the last block's class token before the final LayerNorm, (n, d).
        train_labels: (n,) int64; each class occurs.
        test_features: (m, d).
        test_labels: (m,) int64.
        classes: how many there are.
        per_class: how many images of each, one fit for each number and split.
        splits: choices of images, see `few_of_each`.
        lambd: λ times the number of images that are fitted; 0.0025 is the example of MSN's
            documentation, 0.00025 its code's default. scikit-learn's C is 1 / lambd.
        seed: of the choices.

    Returns:
        For every number of images "N/mean", "N/sd" (of a sample: divided by splits - 1; NaN with
        one split), and "N/split_0", … to compare two kinds of features pairwise.

    Raises:
        DataError: features or labels do not fit together, or a class has too few images.
    """
    check_rows(train_features, train_labels, classes, "train")
    check_rows(test_features, test_labels, classes, "test")
    if int(train_labels.max()) + 1 < classes:
        raise DataError(
            f"train labels: class {classes - 1} has no image. Every class needs "
            f"{max(per_class)}; add images, or count fewer classes."
        )
    results: dict[str, float] = {}
    for count in per_class:
        choices = [few_of_each(train_labels, count, split, seed) for split in range(splits)]
        found = of_choices(
            train_features, train_labels, test_features, test_labels, classes, choices, lambd
        )
        results |= {f"{count}/{name}": value for name, value in found.items()}
    return results


def of_choices(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    choices: Sequence[Tensor],
    lambd: float,
) -> dict[str, float]:
    """Accuracy on the test images after fitting to each of several choices of images.

    Args:
        train_features: see `low_shot`.
        train_labels: (n,) int64.
        test_features: (m, d).
        test_labels: (m,) int64.
        classes: how many there are; not all need occur.
        choices: rows of the training images, one fit each.
        lambd: see `low_shot`.

    Returns:
        "mean", "sd", and "split_0", … as `low_shot`.

    Raises:
        DataError: features or labels do not fit together.
    """
    check_rows(test_features, test_labels, classes, "test")
    test, scores = normalised(test_features), []
    for rows in choices:
        chosen, labels = normalised(train_features[rows]), train_labels[rows]
        fitted = fit_logistic(chosen, labels, classes, lambd / len(rows))
        scores.append(accuracy(fitted, test, test_labels))
    return {
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan"),
        **{f"split_{split}": score for split, score in enumerate(scores)},
    }
