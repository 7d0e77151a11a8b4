"""Pictures of what an image encoder sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from farreach_workloads.vision.augment import MEAN, STD

Pixels = NDArray[np.float32]
CENTRAL = 6  # patches a side of which ResMLP's rows are shown


def pixels(images: Tensor) -> Pixels:
    """Normalised images (n, 3, height, width) as (n, height, width, 3) in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    shown: Pixels = (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown


def predictions(
    images: Tensor, logits: Tensor, labels: Tensor, classes: Sequence[str], file: Path
) -> Path:
    """A grid of images with the class that is predicted, and the true one where it differs."""
    shown, best = pixels(images), logits.softmax(1).max(1)
    columns = min(8, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows), layout="constrained")
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index >= len(shown):
            continue
        axes.imshow(shown[index])
        found, true = int(best.indices[index]), int(labels[index])
        text = f"{classes[found]} {float(best.values[index]):.2f}"
        wrong = found != true
        text += f"\nis {classes[true]}" if wrong else ""
        axes.set_title(text, fontsize=7, color="firebrick" if wrong else "darkgreen")
    return _saved(figure, file)


def attention(
    images: Tensor, maps: dict[str, Tensor], names: Sequence[Sequence[str]], file: Path
) -> Path:
    """Each image beside its maps, laid over it.

    Args:
        images: (n, 3, height, width).
        maps: name → (n, maps, rows, columns); at most eight of each are shown.
        names: of the maps of each image; empty: they are numbered.
        file: to write.
    """
    shown = pixels(images)
    panels = [(name, index) for name, m in maps.items() for index in range(min(8, m.shape[1]))]
    figure = Figure(figsize=(1.5 * (1 + len(panels)), 1.6 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1 + len(panels), squeeze=False)
    for row, (image, line) in enumerate(zip(shown, grid, strict=True)):
        line[0].imshow(image)
        for axes, (name, index) in zip(line[1:], panels, strict=True):
            raw = maps[name][row, index]
            heat = F.interpolate(raw[None, None], image.shape[:2], mode="bilinear")[0, 0]
            axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=1)
            heat = heat / heat.max().clamp(min=1e-12)
            axes.imshow(heat.numpy(), cmap="inferno", alpha=0.6)
            title = names[row][index] if names else f"{name.replace('_', ' ')}, {index}"
            axes.set_title(title, fontsize=6)
        for axes in line:
            axes.set_axis_off()
    return _saved(figure, file)


def patch_weights(maps: dict[str, Tensor], file: Path) -> Path:
    """ResMLP's rows: what the central patches take from where, a block of pictures per layer.

    Args:
        maps: layer → (n, rows, columns), one map per patch.
        file: to write.
    """
    columns = min(6, len(maps))
    lines = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (name, rows) in zip(panels, maps.items(), strict=False):
        height, width = rows.shape[1:]
        tall, wide = min(CENTRAL, height), min(CENTRAL, width)
        top, left = (height - tall) // 2, (width - wide) // 2
        block = rows.unflatten(0, (height, width))[top : top + tall, left : left + wide]
        block = F.pad(block, (0, 1, 0, 1), value=math.nan)
        picture = block.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        most = float(picture.nan_to_num().abs().max())
        axes.imshow(picture.numpy(), cmap="RdBu", vmin=-most, vmax=most)
        axes.set_title(name.replace("_", " "), fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    return _saved(figure, file)


def _saved(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    working = file.with_name(f".tmp-{file.name}")
    with mpl.rc_context({"savefig.dpi": 110}):
        figure.savefig(working, format="png")
    working.rename(file)
    return file
