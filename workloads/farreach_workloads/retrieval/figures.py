"""Pictures of dense retrieval: how scores of right and other documents lie, and the vectors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from farreach.figures import new_figure, save
from farreach.learn.place import Place
from farreach.panels import Panel, draw_panels
from farreach.rundir import RunDirectory
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.probe import Probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 80
# How well training goes, and the signs of a stale queue or a collapse.
PANELS = (
    Panel("Loss", ("learner/loss",)),
    Panel("Own key first", ("learner/accuracy",)),
    Panel("Search", ("evaluation/ndcg@10", "evaluation/recall@100")),
    Panel("Queue: updates since keys were encoded", ("learner/queue_age", "learner/queue_filled")),
    Panel(
        "Spread of vectors (0: collapse)", ("learner/query_std", "learner/key_std"), from_zero=True
    ),
    Panel(
        "Directions that vectors use (1: collapse)", ("evaluation/effective_rank",), from_zero=True
    ),
)


def similarities(probe: Probe) -> Figure:
    """Histograms of the scores of the probe's last search, right documents beside all others."""
    right, others = probe.pairs()
    shown = [(others, "other documents"), (right, "right documents")]
    shown = [(scores, name) for scores, name in shown if len(scores)]  # all may be right
    low = float(min(right.min(), *(np.quantile(scores, 0.0005) for scores, _ in shown)))
    high = float(max(scores.max() for scores, _ in shown))
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    figure = new_figure(6, 3.4)
    axes = figure.add_subplot()
    for scores, name in shown:
        label = f"{name} ({len(scores):,})"
        axes.hist(scores, edges.tolist(), density=True, alpha=0.6, label=label)
    axes.set_xlabel("score")
    axes.set_ylabel("density")
    axes.legend(loc="best")
    axes.set_title(f"{len(probe.names)} questions, {probe.documents:,} documents", fontsize=9)
    return figure


def draw(probe: Probe, encoder: TextEncoder, run: RunDirectory) -> list[Path]:
    """Search with an encoder; write how training went and scores lie, and the vectors."""
    with torch.no_grad():
        queries, documents = probe.vectors(encoder, Place())
        probe.measured(queries, documents)
    return [
        *draw_panels(run.metrics_path, PANELS, run.figures / "training.png"),
        save(similarities(probe), run.figures / "scores.png"),
        project(documents, probe.titles, run.tensorboard / "projector"),
    ]


def project(vectors: torch.Tensor, labels: Sequence[str], folder: Path) -> Path:
    """Vectors (n, width) and a line about each, for TensorBoard's projector; the folder."""
    from torch.utils.tensorboard import SummaryWriter

    working = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(working, ignore_errors=True)
    with SummaryWriter(str(working)) as writer:
        writer.add_embedding(vectors, metadata=list(labels), tag="documents")
    shutil.rmtree(folder, ignore_errors=True)
    working.rename(folder)
    return folder
