"""Pictures of what pretraining has learned: neighbours, prototypes, what the encoder looks at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from farreach.data.images import ImageSet
from farreach.figures import new_figure, save
from farreach.learn.place import Place
from farreach.panels import Panel, draw_panels
from farreach.rundir import RunDirectory
from farreach_workloads.vision import attention, pictures
from farreach_workloads.vision.augment import evaluation_transform
from farreach_workloads.vision.evaluation.tail import thirds
from farreach_workloads.vision.selfsup.assignments import prior_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from farreach_workloads.vision.selfsup.task import PretrainTask

# Images with so many neighbours each, images that are looked at, and prototypes that are shown.
PICTURED, NEAREST, ATTENDED, SHOWN = 8, 7, 6, 8
# Images in the projector, and the side of each in pixels.
PROJECTED, THUMBNAIL = 2000, 32
# Images whose scores with the prototypes are computed.
SCORED, TOGETHER = 2048, 128
# How well training goes, and the signs of a collapse.
PANELS = (
    Panel("Loss", ("learner/loss", "learner/cross_entropy")),
    Panel(
        "Classes, by neighbours and a linear layer",
        ("evaluation/knn_top1", "evaluation/knn_balanced", "evaluation/linear_top1"),
    ),
    Panel("Targets", ("learner/target_confidence", "learner/prior_divergence")),
    Panel("Prototypes in use (1: collapse)", ("learner/prototypes_used",), from_zero=True),
    Panel(
        "Directions that features use (1: collapse)", ("evaluation/effective_rank",), from_zero=True
    ),
    Panel("Speed", ("throughput/samples_per_s",)),
)


def draw(task: PretrainTask, run: RunDirectory) -> list[Path]:
    """Write all of them, and the features for TensorBoard's projector; the files."""
    with torch.no_grad():
        task.evaluate(Place())
        files = draw_panels(run.metrics_path, PANELS, run.figures / "training.png")
        files.append(save(neighbours(task), run.figures / "neighbours.png"))
        for name, of in (("attention", attended), ("prototypes", prototypes)):
            figure = of(task)
            if figure is not None:
                files.append(save(figure, run.figures / f"{name}.png"))
    return [*files, project(task, run.tensorboard / "projector")]


def neighbours(task: PretrainTask) -> Figure:
    """Held-out images with their nearest training images, of the last evaluation."""
    references, known, held_out, asked = task.seen
    rows = spread(len(asked), PICTURED)
    near = (normalize(asked[rows]) @ normalize(known).t()).topk(NEAREST, dim=1).indices
    lines = [
        [_shown(held_out, row), *[_shown(references, n) for n in found]]
        for row, found in zip(rows, near, strict=True)
    ]
    names = [
        [_class(held_out, int(row)), *[_class(references, n) for n in found]]
        for row, found in zip(rows, near.tolist(), strict=True)
    ]
    return pictures.neighbours(lines, names)


def attended(task: PretrainTask) -> Figure | None:
    """What the encoder looks at in some held-out images; None if it cannot say."""
    some = task.held_out.subset(spread(len(task.held_out), ATTENDED))
    images = torch.stack([_transform(task)(_shown(some, row)) for row in range(len(some))])
    return attention.draw(task.encoder.trunk.eval(), images, images[:, :1, 0, 0], ["-"])


def _shown(images: ImageSet, row: int | np.integer[Any] | Tensor) -> Image.Image:
    """An image, or the next that can be read: a picture is no reason to end a training."""
    return images.load_or_next(int(row))[0]


def prototypes(task: PretrainTask) -> Figure | None:
    """How often prototypes are named, and the images nearest to some; None if there are none.

    Beside it the prior, if the method has one, and whether it is frequent, medium or rare classes
    that name them.
    """
    _, _, held_out, _ = task.seen
    some = held_out.subset(spread(len(held_out), SCORED))
    transform, parts = _transform(task), []
    for begin in range(0, len(some), TOGETHER):
        rows = range(begin, min(begin + TOGETHER, len(some)))
        scores = task.method.scores(torch.stack([transform(_shown(some, row)) for row in rows]))
        if scores is None:
            return None
        parts.append(scores)
    scores = torch.cat(parts)  # (n, k)
    named = torch.bincount(scores.argmax(1), minlength=scores.shape[1])
    used = int((named > 0).sum())
    # The most frequent, the least frequent, and evenly between them.
    ranked = named.argsort(descending=True)[spread(used, SHOWN)]
    figure = new_figure(1.2 * (NEAREST + 1), 1.45 * len(ranked) + 2)
    grid = figure.add_gridspec(len(ranked) + 2, NEAREST + 1)
    axes = figure.add_subplot(grid[:2, :])
    _draw_use(axes, task, scores.argmax(1), some, len(named))
    axes.set_title(f"{used} of {len(named)} prototypes are the nearest one of an image", fontsize=8)
    axes.set_xlabel("prototype, by frequency", fontsize=7)
    axes.set_ylabel("share of images", fontsize=7)
    axes.tick_params(labelsize=6)
    for line, prototype in enumerate(ranked.tolist(), 2):
        best = scores[:, prototype].topk(min(NEAREST + 1, len(some))).indices.tolist()
        for column, row in enumerate(best):
            cell = figure.add_subplot(grid[line, column])
            cell.imshow(_shown(some, row))
            cell.set_axis_off()
            cell.set_title(_class(some, row), fontsize=6, parse_math=False)
    return figure


def _draw_use(
    axes: Axes, task: PretrainTask, nearest: Tensor, images: ImageSet, count: int
) -> None:
    """Share of the images that are nearest to each prototype, the most frequent one first.

    Args:
        axes: to draw on.
        task: whose classes and prior are shown.
        nearest: prototype of each image, (n,) int64.
        images: n.
        count: of the prototypes.
    """
    order = torch.bincount(nearest, minlength=count).argsort(descending=True)
    labels, below = torch.from_numpy(images.labels), np.zeros(count)
    counts = task.class_counts()
    are_equal = bool((counts == counts[0]).all())
    parts = {"all": torch.arange(len(counts))} if are_equal else thirds(counts)
    for part, classes in parts.items():
        of_part = nearest[torch.isin(labels, classes)]
        above = below + torch.bincount(of_part, minlength=count)[order].numpy() / len(images)
        # Not a bar each, of which there may be tens of thousands.
        axes.stairs(above, baseline=below, fill=True, label=f"{part} classes")
        below = above
    prior = getattr(task.config.method, "prior", None)
    if prior is not None:
        expected = prior_of(prior, count).sort(descending=True).values.numpy()
        axes.stairs(expected, color="black", label="prior")
    axes.legend(loc="upper right", fontsize=6)


def project(task: PretrainTask, folder: Path) -> Path:
    """Features, classes and small pictures of held-out images, for TensorBoard's projector."""
    from torch.utils.tensorboard import SummaryWriter

    _, _, held_out, asked = task.seen
    rows = spread(len(asked), PROJECTED)
    small = [np.asarray(_shown(held_out, row).resize((THUMBNAIL, THUMBNAIL))) for row in rows]
    working = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(working, ignore_errors=True)
    with SummaryWriter(str(working)) as writer:
        writer.add_embedding(
            asked[rows],
            metadata=[_class(held_out, int(row)) for row in rows],
            label_img=torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255,
            tag="features",
        )
    shutil.rmtree(folder, ignore_errors=True)
    working.rename(folder)
    return folder


def spread(count: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """At most so many rows of `count`, evenly over all of them."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _class(images: ImageSet, row: int) -> str:
    return images.classes[int(images.labels[row])]


def _transform(task: PretrainTask) -> Callable[..., Tensor]:
    return evaluation_transform(task.config.data.size, task.config.data.crop_ratio)
