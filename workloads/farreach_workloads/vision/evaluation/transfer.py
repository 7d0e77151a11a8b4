"""What frozen features are worth elsewhere: copies, counting and distance, people and homes.

Sources: the evaluations of SEER (arXiv:2202.08360), with the fairness indicators of 2202.07603.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from farreach.checkpoint import Checkpoint
from farreach.config import Config
from farreach.data.fetched import here
from farreach.data.images import ImageSet
from farreach.errors import ConfigError
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation
from farreach_workloads.vision.config import ImagesConfig
from farreach_workloads.vision.evaluation import copies, grouped, linear_probe
from farreach_workloads.vision.evaluation.copy_layouts import CopySet, copydays, disc21
from farreach_workloads.vision.evaluation.edits import EditedImages
from farreach_workloads.vision.evaluation.features import FeaturesConfig, Kind, Source
from farreach_workloads.vision.evaluation.group_layouts import (
    GroupTable,
    casual_conversations,
    table_of,
    utk_face,
)
from farreach_workloads.vision.evaluation.protocols import MakeSource, Metrics
from farreach_workloads.vision.evaluation.rendered import open_rendered, render
from farreach_workloads.vision.evaluation.structured_layouts import clevr, kitti_distance
from farreach_workloads.vision.image_sets import images_of


class CopiesConfig(FeaturesConfig):
    """Of copy detection."""

    layout: Literal["edits", "copydays", "disc21"] = "edits"
    """Copies that are made of the run's own held-out images, or a public set of them."""
    path: str | None = None
    """Of the public set."""
    block: str = "strong"
    """Of Copydays."""
    distractors: str | None = None
    """Folder of images that are searched as well, for Copydays."""
    training: str | None = None
    """Folder of images that the whitening is fitted to, for Copydays."""
    images: int = Field(1000, ge=2)
    """Of the run that are edited, at most."""
    pooling: Literal["rmac", "gem", "features"] = "rmac"
    """Of a map; or the features that training looks at."""
    stage: Literal["last", "earlier"] = "last"
    """Whose map: of the last stage or block, or of the one before it, in which convolutional
    networks find copies better (`earlier whitened=1024` is what SEER reports)."""
    levels: int = Field(3, ge=1)
    """Of R-MAC."""
    whitened: int | None = Field(None, ge=1)
    """Dimensions that whitening leaves; None: there is none."""
    rule: copies.Rule = "steps"
    """How precision is summed up over recall; published numbers of Copydays have trapezoids."""


class StructuredConfig(FeaturesConfig):
    """Of counting and distance."""

    layout: Literal["rendered", "clevr", "kitti"] = "rendered"
    """Scenes that MuJoCo renders, or a public set."""
    path: str | None = None
    """Of the public set."""
    scenes: int = Field(2400, ge=240)
    """That are rendered; they are kept beside the run."""
    mapping: str | None = None
    """KITTI's folder of `train_mapping.txt` and `train_rand.txt`: whole drives are then held out,
    where otherwise every fifth image is, though images of a drive are alike."""
    epochs: int | None = Field(None, ge=1)
    """Of the linear layer; None: 50 for CLEVR's count, 100 along a cosine for its distance, and 28
    for the others, as MSN's table has them."""


class RetrievalConfig(FeaturesConfig):
    """Of whether people are found beside people with the same attribute."""

    queries: str | None = None
    """Table of face crops: path,age,gender,skin_tone as in Casual Conversations, or any others."""
    references: str | None = None
    """Folder of UTKFace, or a table."""
    attribute: str = "gender"
    """Column that a neighbour should share."""
    groups: tuple[str, ...] = ("gender", "skin_tone", "age")
    """Columns of the queries that groups are made of."""
    neighbours: tuple[int, ...] = (1, 5, 10, 50)


def find_copies(source: Source, images: ImagesConfig, settings: CopiesConfig, seed: int) -> Metrics:
    """Copies of images: how far up their originals come."""
    chosen = _copy_set(images, settings, seed)
    maps: dict[str, Kind] = {"last": "map", "earlier": "earlier map"}
    kind: Kind = "normal" if settings.pooling == "features" else maps[settings.stage]

    def pooled(of: ImageSet, whitening: copies.Whitening | None) -> Tensor:
        found = source.of(of, [kind])[kind]
        if settings.pooling == "rmac":
            return copies.rmac(found, settings.levels, whitening)
        vectors = copies.gem(found) if settings.pooling == "gem" else found
        return normalize(vectors if whitening is None else whitening.apply(vectors), dim=1)

    whitening = None
    if settings.whitened is not None:
        fitted_to = chosen.training or chosen.references
        found = source.of(fitted_to, [kind])[kind]
        if settings.pooling == "rmac":
            vectors = copies.rmac_vectors(found, settings.levels).flatten(0, 1)
        else:
            vectors = copies.gem(found) if settings.pooling == "gem" else found
        whitening = copies.Whitening.fit(vectors, settings.whitened)
    queries, references = (pooled(x, whitening) for x in (chosen.queries, chosen.references))
    similarities = copies.similarity(queries, references)
    relevant = torch.from_numpy(chosen.relevant)
    with_original = relevant.any(1)
    return {
        "copies/map": copies.mean_average_precision(
            similarities[with_original], relevant[with_original], settings.rule
        ),
        "copies/micro_ap": copies.micro_average_precision(
            similarities.flatten(), relevant.flatten(), int(relevant.sum())
        ),
        "copies/recall_at_1": copies.recall_at_1(
            similarities[with_original], relevant[with_original]
        ),
        "copies/queries": float(len(queries)),
        "copies/references": float(len(references)),
    }


def _copy_set(images: ImagesConfig, settings: CopiesConfig, seed: int) -> CopySet:
    if settings.layout == "edits":
        _, held_out = images_of(images, labelled=False)
        count = min(settings.images, len(held_out))
        rows = np.linspace(0, len(held_out) - 1, count).astype(np.int64)
        some = held_out.subset(rows)
        return CopySet(some, EditedImages(some, seed), np.stack([np.arange(count)] * 2, 1), None)
    path = _needed(settings.path, settings.layout)
    if settings.layout == "disc21":
        return disc21(path)
    others = [None if x is None else here(x) for x in (settings.distractors, settings.training)]
    return copydays(path, settings.block, *others)


def structured(source: Source, settings: StructuredConfig, seed: int, folder: Path) -> Metrics:
    """How many objects there are and how far the nearest one is, by a linear layer."""
    result: Metrics = {}
    for name, (train, held_out) in _structured_sets(source, settings, seed, folder).items():
        features = [source.of(x, ["normal"])["normal"] for x in (train, held_out)]
        labels = [torch.from_numpy(x.labels) for x in (train, held_out)]
        classes = len(train.classes)
        recipe = _recipe(settings, name)
        found = linear_probe.probe(
            features[0], labels[0], features[1], labels[1], classes, recipe, seed
        )
        result[f"{name}/top1"] = found["top1"]
        result[f"{name}/classes"] = float(classes)
        result[f"{name}/images"] = float(len(held_out))
    return result


def _recipe(settings: StructuredConfig, name: str) -> linear_probe.ProbeRecipe:
    """How MSN trains the linear layer on a task, arXiv:2204.07141, with the epochs that are set."""
    recipe = linear_probe.VISSL
    if settings.layout == "clevr":
        changes: dict[str, Any] = {"count": {"epochs": 50}}.get(
            name, {"epochs": 100, "schedule": "cosine", "last": 0.01}
        )
        recipe = replace(recipe, **changes)
    return recipe if settings.epochs is None else replace(recipe, epochs=settings.epochs)


def _structured_sets(
    source: Source, settings: StructuredConfig, seed: int, folder: Path
) -> dict[str, tuple[ImageSet, ImageSet]]:
    if settings.layout == "kitti":
        mapping = None if settings.mapping is None else here(settings.mapping)
        return {"distance": kitti_distance(_needed(settings.path, settings.layout), mapping)}
    if settings.layout == "clevr":
        path = _needed(settings.path, settings.layout)
        return {"count": clevr(path, "count"), "distance": clevr(path, "distance")}
    file = folder / f"scenes-{settings.scenes}-{source.size}-{seed}.parquet"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        render(file, settings.scenes, source.size, seed)
    return {"count": open_rendered(file, "count"), "distance": open_rendered(file, "distance")}


def same_attribute(source: Source, settings: RetrievalConfig) -> Metrics:
    """Share of the nearest faces that have the query's attribute, by groups of people."""
    asked = _people(_needed(settings.queries, "queries", "queries"))
    known = _people(_needed(settings.references, "references", "references"))
    for table, name in ((asked, "queries"), (known, "references")):
        if settings.attribute not in table.columns:
            raise ConfigError(
                f"{name}: has no column {settings.attribute!r}; it has {', '.join(table.columns)}. "
                "Set attribute to one that both tables have."
            )
    queries, references = (
        source.of(table.images, ["normal"])["normal"].numpy() for table in (asked, known)
    )
    found = grouped.precision_at_k(
        queries,
        asked.columns[settings.attribute],
        references,
        known.columns[settings.attribute],
        grouped.crossed(*[_buckets(asked, name) for name in settings.groups]),
        settings.neighbours,
    )
    return {
        f"retrieval/at_{k}/{group.replace(' ', '_')}/{key}": value
        for k, shares in found.items()
        for group, share in shares.items()
        for key, value in of_share(share).items()
    }


def _people(path: Path) -> GroupTable:
    if path.is_dir():
        return utk_face(path)
    header = path.read_text().partition("\n")[0] if path.is_file() else ""
    return casual_conversations(path) if "skin_tone" in header else table_of(path)


def _buckets(table: GroupTable, column: str) -> Any:
    if column not in table.columns:
        known = ", ".join(table.columns)
        raise ConfigError(f"groups: there is no column {column!r}; there are {known}.")
    values = table.columns[column]
    if column == "age" and values.dtype.kind == "f":
        return grouped.age_buckets(values)
    if column == "skin_tone" and values.dtype.kind == "f":
        return grouped.skin_tones(values)
    return values.astype(np.str_)


def of_share(share: grouped.Share) -> Mapping[str, float]:
    """A share as metrics: its value, its interval, and how many it rests on."""
    return {
        "share": share.value,
        "low": share.low,
        "high": share.high,
        "count": float(share.count),
    }


def _needed(path: str | None, layout: str, setting: str = "path") -> Path:
    if path is None:
        raise ConfigError(f"{setting}: where is it? Add {setting}=PATH, of {layout}.")
    return here(path)


def evaluations(make_source: MakeSource) -> dict[str, Evaluation]:
    """These evaluations for runs whose encoders a function knows."""

    def copies_(config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: Any) -> Metrics:
        source = make_source(config, run, checkpoint, settings)
        return find_copies(source, config.data, settings, config.seed)

    def structured_(
        config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: Any
    ) -> Metrics:
        source = make_source(config, run, checkpoint, settings)
        return structured(source, settings, config.seed, run.path / "evaluations")

    def retrieval_(
        config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: Any
    ) -> Metrics:
        return same_attribute(make_source(config, run, checkpoint, settings), settings)

    models: dict[str, tuple[Any, Any, type[Config]]] = {
        "copies": (copies_, find_copies, CopiesConfig),
        "structured": (structured_, structured, StructuredConfig),
        "retrieval": (retrieval_, same_attribute, RetrievalConfig),
    }
    found = {}
    for name, (run, documented, settings) in models.items():
        run.__doc__ = documented.__doc__
        found[name] = Evaluation(run, settings)
    return found
