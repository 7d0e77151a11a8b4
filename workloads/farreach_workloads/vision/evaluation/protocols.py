"""What frozen features are worth on labelled images: neighbours, a linear layer, a few labels.

Sources: the protocols of MSN (arXiv:2204.07141, appendix A) and of VISSL for SEER (2202.08360).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from farreach.checkpoint import Checkpoint
from farreach.data.fetched import absolute, here
from farreach.errors import DataError
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation
from farreach_workloads.vision.config import SHIPPED_SET, ImagesConfig
from farreach_workloads.vision.evaluation import linear_probe
from farreach_workloads.vision.evaluation.features import FeaturesConfig, Source
from farreach_workloads.vision.evaluation.lowshot import listed, low_shot, of_choices
from farreach_workloads.vision.evaluation.neighbours import knn_labels
from farreach_workloads.vision.evaluation.tail import balanced_accuracy
from farreach_workloads.vision.image_sets import images_of

Metrics = dict[str, float]


class LabelledConfig(FeaturesConfig):
    """Of evaluations on labelled images."""

    data: str | None = None
    """Other images than those of the run; see farreach.data.images."""
    references: int | None = Field(None, ge=1)
    """Training images, at most, spread evenly; None: all."""
    classes: int | None = Field(None, ge=2)
    """The most frequent classes alone, so many of them; None: all."""


class KnnConfig(LabelledConfig):
    """Of nearest neighbours."""

    neighbours: tuple[int, ...] = (1, 5, 10, 20, 100, 200)
    temperature: float = Field(0.07, gt=0)
    """A neighbour counts exp(cosine / temperature)."""


class LinearConfig(LabelledConfig):
    """Of a linear layer on frozen features."""

    recipe: Literal["msn", "vissl"] = "msn"
    """LayerNorm and a length of 1 before it, a cosine; or BatchNorm and three steps."""
    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    """With msn for the whole batch as it is, with vissl for 256 images."""
    layers: bool = False
    """Look at several layers, and name the best."""


class LowShotConfig(LabelledConfig):
    """Of logistic regression on a few images of each class."""

    per_class: tuple[int, ...] = (1, 2, 5)
    splits: int = Field(3, ge=1)
    """Choices of these images."""
    lists: tuple[str, ...] = ()
    """Files of names of images, one a line, each of which is a choice in place of those above."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Share of the patches of these images, not of the held-out ones, that a vision transformer
    does not see."""
    penalty: float = Field(0.0025, gt=0)
    """Of the weights, over the number of images."""


class Labelled:
    """Labelled images and their features."""

    def __init__(self, source: Source, images: ImagesConfig, settings: LabelledConfig) -> None:
        """Open them; raises DataError if there are no labels."""
        path = images.path if settings.data is None else settings.data
        train, held_out = images_of(
            images.model_copy(update={"path": _absolute(path)}), labelled=False
        )
        if len(train.classes) < 2:
            raise DataError(
                f"{train.path}: there are no labels. Set data=PATH to images with some."
            )
        self._names = list(range(len(train.classes)))
        if settings.classes is not None:
            counts = np.bincount(train.labels, minlength=len(train.classes))
            self._names = np.sort(np.argsort(-counts, kind="stable")[: settings.classes]).tolist()
            train, held_out = (
                x.subset(np.flatnonzero(np.isin(x.labels, self._names))) for x in (train, held_out)
            )
        self.classes = len(self._names)
        if settings.references is not None and settings.references < len(train):
            rows = np.linspace(0, len(train) - 1, settings.references).astype(np.int64)
            train = train.subset(rows)
        self.train, self.held_out, self._source = train, held_out, source

    def only(self, rows: NDArray[np.int64]) -> None:
        """Keep these of the training images alone."""
        self.train = self.train.subset(rows)

    def of(
        self, kind: Any, mask: float = 0.0
    ) -> tuple[Mapping[str, Tensor], Tensor, Mapping[str, Tensor], Tensor]:
        """Training features by name, their labels, and the same of the held-out images.

        Args:
            kind: of the features.
            mask: share of the patches of training images that is dropped.
        """
        train = self._source.of(self.train, [kind], mask)
        held_out = self._source.of(self.held_out, [kind])
        labels, asked = (
            torch.from_numpy(np.searchsorted(self._names, x.labels))
            for x in (self.train, self.held_out)
        )
        return train, labels, held_out, asked


def _absolute(path: str) -> str:
    return path if path == SHIPPED_SET else absolute(path)


# (config of the run, its directory, checkpoint, settings) → where features come from.
MakeSource = Callable[[Any, RunDirectory, Checkpoint, FeaturesConfig], Source]


def knn(labelled: Labelled, settings: KnnConfig) -> Metrics:
    """Labels of the nearest training images, for several numbers of neighbours."""
    train, labels, held_out, asked = labelled.of("normal")
    result: Metrics = {}
    for k in settings.neighbours:
        found = knn_labels(
            train["normal"],
            labels,
            held_out["normal"],
            labelled.classes,
            k,
            settings.temperature,
        )
        right = found == asked
        result[f"knn/top1_{k}"] = float(right.float().mean())
        result[f"knn/balanced_{k}"] = balanced_accuracy(right, asked, labelled.classes)
    return result


def linear_layer(labelled: Labelled, settings: LinearConfig, seed: int) -> Metrics:
    """A linear layer on frozen features; also on frequent, medium and rare classes alone."""
    recipe = linear_probe.MSN if settings.recipe == "msn" else linear_probe.VISSL
    chosen = {name: getattr(settings, name) for name in ("epochs", "batch", "lr")}
    recipe = linear_probe.ProbeRecipe(
        **{**vars(recipe), **{k: v for k, v in chosen.items() if v is not None}}
    )
    train, labels, held_out, asked = labelled.of("layers" if settings.layers else "raw")
    best, of_layers = linear_probe.probe_layers(
        train, labels, held_out, asked, labelled.classes, recipe, seed
    )
    result = {f"linear/{name}": value for name, value in of_layers[best].items()}
    if settings.layers:
        for layer, found in of_layers.items():
            result[f"linear/{layer.replace(' ', '_')}/top1"] = found["top1"]
    return result


def few_labels(labelled: Labelled, settings: LowShotConfig, seed: int) -> Metrics:
    """Logistic regression on a few images of each class, mean and spread over choices of them."""
    lists: list[NDArray[np.int64]] = []
    if settings.lists:
        lists = listed([here(path) for path in settings.lists], labelled.train)
        named = np.unique(np.concatenate(lists))
        labelled.only(named)  # the features of the others are not needed
        lists = [np.searchsorted(named, rows) for rows in lists]
    train, labels, held_out, asked = labelled.of("raw", settings.mask)
    features = (train["raw"], labels, held_out["raw"], asked, labelled.classes)
    if lists:
        choices = [torch.from_numpy(rows) for rows in lists]
        found = of_choices(*features, choices, settings.penalty)
        # Published lists of five images have been called lists of three.
        found |= {f"images_{number}": float(len(rows)) for number, rows in enumerate(lists)}
        return {f"lowshot/lists/{name}": value for name, value in found.items()}
    found = low_shot(*features, settings.per_class, settings.splits, settings.penalty, seed)
    return {f"lowshot/{name}": value for name, value in found.items()}


def evaluations(make_source: MakeSource) -> dict[str, Evaluation]:
    """These protocols for runs whose encoders a function knows."""

    def on_labels(protocol: Any, model: Any, *, seeded: bool) -> Evaluation:
        def run(config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: Any) -> Metrics:
            source = make_source(config, run, checkpoint, settings)
            labelled = Labelled(source, config.data, settings)
            arguments = (labelled, settings, config.seed) if seeded else (labelled, settings)
            result: Metrics = protocol(*arguments)
            return result

        run.__doc__ = protocol.__doc__
        return Evaluation(run, model)

    return {
        "knn": on_labels(knn, KnnConfig, seeded=False),
        "linear": on_labels(linear_layer, LinearConfig, seeded=True),
        "lowshot": on_labels(few_labels, LowShotConfig, seeded=True),
    }
