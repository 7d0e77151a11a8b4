"""What a classifier says elsewhere: under shift, of homes around the world, and of people.

Sources: SEER, arXiv:2202.08360; the fairness indicators of 2202.07603.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from farreach.checkpoint import Checkpoint
from farreach.data.fetched import here
from farreach.errors import ConfigError, DataError
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation
from farreach_workloads.vision.evaluation import grouped, shift, shift_layouts
from farreach_workloads.vision.evaluation.features import FeaturesConfig, Source
from farreach_workloads.vision.evaluation.group_layouts import (
    GroupTable,
    casual_conversations,
    dollar_street,
    miap,
    table_of,
)
from farreach_workloads.vision.evaluation.protocols import MakeSource, Metrics
from farreach_workloads.vision.evaluation.transfer import of_share
from farreach_workloads.vision.image_sets import images_of

BASE = "base"
LAYOUTS = {
    "v2": shift_layouts.imagenet_v2,
    "real": shift_layouts.imagenet_real,
    "objectnet": shift_layouts.objectnet,
}


class ShiftConfig(FeaturesConfig):
    """Of other images of the same classes."""

    sets: dict[str, str] = Field(default_factory=dict)
    """Name → folder. v2, real and objectnet have layouts of their own; all others have a folder
    per class, such as those of ImageNet-A, -R and -Sketch."""


class FairnessConfig(FeaturesConfig):
    """Of groups of images."""

    layout: Literal["dollar_street", "casual_conversations", "miap", "table"] = "dollar_street"
    path: str | None = None
    """Folder of Dollar Street, or a table."""
    images: str | None = None
    """Folder of the images of MIAP."""
    groups: tuple[str, ...] = ()
    """Columns that groups are made of; of Dollar Street income and region are looked at anyway."""
    categories: str | None = None
    """JSON file of class name → category, such as human, non-human or crime: shares of images to
    which a label of each is given, in place of accuracy."""
    top: int = Field(5, ge=1)
    confidence: float = Field(0.1, ge=0, le=1)


def shifted(source: Source, images: Any, settings: ShiftConfig) -> Metrics:
    """Accuracy on other images of the same classes, and by how much it is lower."""
    train, held_out = images_of(images)
    if not settings.sets:
        raise ConfigError("sets: name some, such as sets={sketch: /data/imagenet-sketch}.")
    base = shift_layouts.ShiftSet(held_out)
    sets = {BASE: base} | {
        name: LAYOUTS.get(name, shift_layouts.class_folders)(here(path), train.classes)
        for name, path in settings.sets.items()
    }
    scores = {
        name: one.score(source.of(one.images, ["logits"])["logits"]) for name, one in sets.items()
    }
    table = shift.shift_table(scores, BASE)
    return {f"shift/{name}/{key}": v for name, row in table.items() for key, v in row.items()}


def fairness(source: Source, images: Any, settings: FairnessConfig, seed: int) -> Metrics:
    """Accuracy, or labels of some categories, by groups of people or of homes, with intervals."""
    train, _ = images_of(images)
    table = _table(settings, train.classes)
    logits = source.of(table.images, ["logits"])["logits"]
    probabilities = logits.softmax(1).double().numpy()
    missing = [name for name in settings.groups if name not in table.columns]
    if missing:
        known = ", ".join(table.columns)
        raise ConfigError(f"groups: there is no column {missing[0]!r}; there are {known}.")
    columns = [_named(name, table.columns[name]) for name in settings.groups]
    groups = grouped.crossed(*columns) if columns else np.full(len(logits), "all")
    result: Metrics = {}
    if settings.categories is not None:
        categories = _categories(here(settings.categories), train.classes)
        found = grouped.label_association(
            probabilities, categories, groups, settings.top, settings.confidence
        )
        for group, shares in found.items():
            for category, share in shares.items():
                _put(result, f"association/{category}/{group}", share)
        return result
    if table.accepted is None:
        raise ConfigError("categories: these images have no right classes. Name a file of them.")
    hit = grouped.hits_at_k(probabilities, table.accepted, settings.top)
    for group, share in grouped.grouped_accuracy(hit, groups).items():
        _put(result, f"accuracy/{group}", share)
    if settings.layout == "dollar_street":
        homes = table.columns["household"]
        for name, of in (
            ("income", grouped.income_buckets(table.columns["income"])),
            ("region", table.columns["region"]),
        ):
            for group, share in grouped.household_mean(hit, homes, of, seed=seed).items():
                _put(result, f"households/{name}/{group}", share)
    return result


def _put(result: Metrics, name: str, share: grouped.Share) -> None:
    for key, value in of_share(share).items():
        result[f"fairness/{name.replace(' ', '_')}/{key}"] = value


def _table(settings: FairnessConfig, classes: list[str]) -> GroupTable:
    if settings.path is None:
        raise ConfigError(f"path: where is it? Add path=PATH, of {settings.layout}.")
    path = here(settings.path)
    if settings.layout == "dollar_street":
        return dollar_street(path, classes)
    if settings.layout == "casual_conversations":
        return casual_conversations(path)
    if settings.layout == "table":
        return table_of(path)
    if settings.images is None:
        raise ConfigError("images: where are those of MIAP? Add images=PATH.")
    return miap(path, here(settings.images))


def _named(name: str, values: Any) -> Any:
    if values.dtype.kind != "f":
        return values
    named = {"age": grouped.age_buckets, "skin_tone": grouped.skin_tones}
    return named[name](values) if name in named else values.astype(np.str_)


def _categories(file: Path, classes: list[str]) -> dict[int, str]:
    """Number of a class → its category, for the classes that the file names."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no JSON file that can be read: {error}.") from error
    unknown = sorted(set(content) - set(classes))
    if unknown:
        raise DataError(
            f"{file}: {unknown[0]!r} and {len(unknown) - 1} others are no classes of this run. "
            "Name classes as the training images do."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return {numbers[name]: str(category) for name, category in content.items()}


def evaluations(make_source: MakeSource) -> dict[str, Evaluation]:
    """These evaluations for runs whose classifiers a function knows."""

    def shift_(config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: Any) -> Metrics:
        return shifted(make_source(config, run, checkpoint, settings), config.data, settings)

    def fairness_(config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: Any) -> Metrics:
        source = make_source(config, run, checkpoint, settings)
        return fairness(source, config.data, settings, config.seed)

    shift_.__doc__, fairness_.__doc__ = shifted.__doc__, fairness.__doc__
    return {
        "shift": Evaluation(shift_, ShiftConfig),
        "fairness": Evaluation(fairness_, FairnessConfig),
    }
