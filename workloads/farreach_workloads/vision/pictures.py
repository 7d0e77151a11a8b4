"""Pictures of what an image encoder sees.

Names of classes are drawn as they are: what is between two `$` in them is no formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as Picture
from torch import Tensor
from torch.nn import functional as F

from farreach.figures import new_figure
from farreach_workloads.vision.augment import MEAN, STD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = NDArray[np.float32]
CENTRAL = 6  # patches a side of which ResMLP's rows are shown
MOST_NAMED = 24  # classes in a legend
SIDE_BY_SIDE = 2  # images in a row with what is found in them


@dataclass(frozen=True)
class Found:
    """Objects of an image.

    Attributes:
        boxes: (n, 4) left, top, right and bottom edge in pixels.
        labels: (n,) int64.
        scores: (n,) in [0, 1]; 1 for true ones.
        masks: (n, height, width) bool.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]


def pixels(images: Tensor) -> Pixels:
    """Normalised images (n, 3, height, width) as (n, height, width, 3) in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    shown: Pixels = (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown


def predictions(images: Tensor, logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """A grid of images with the class that is predicted, and the true one where it differs."""
    shown, best = pixels(images), logits.softmax(1).max(1)
    columns = min(8, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(1.7 * columns, 2.0 * rows)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index >= len(shown):
            continue
        axes.imshow(shown[index])
        found, true = int(best.indices[index]), int(labels[index])
        text = f"{classes[found]} {float(best.values[index]):.2f}"
        wrong = found != true
        text += f"\nis {classes[true]}" if wrong else ""
        color = "firebrick" if wrong else "darkgreen"
        axes.set_title(text, fontsize=7, color=color, parse_math=False)
    return figure


def attention(
    images: Tensor,
    maps: dict[str, Tensor],
    names: Sequence[Sequence[str]],
    titles: Sequence[str] = (),
) -> Figure:
    """Each image beside its maps, laid over it.

    Args:
        images: (n, 3, height, width).
        maps: name → (n, maps, rows, columns); at most eight of each are shown.
        names: of the maps of each image; empty: they are numbered.
        titles: of the images.
    """
    shown = pixels(images)
    panels = [(name, index) for name, m in maps.items() for index in range(min(8, m.shape[1]))]
    figure = new_figure(1.5 * (1 + len(panels)), 1.6 * len(shown))
    grid = figure.subplots(len(shown), 1 + len(panels), squeeze=False)
    for row, (image, line) in enumerate(zip(shown, grid, strict=True)):
        line[0].imshow(image)
        title = titles[row].replace(", ", "\n") if titles else ""
        line[0].set_title(title, fontsize=6, parse_math=False)
        for axes, (name, index) in zip(line[1:], panels, strict=True):
            raw = maps[name][row, index]
            heat = F.interpolate(raw[None, None], image.shape[:2], mode="bilinear")[0, 0]
            axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=1)
            heat = heat / heat.max().clamp(min=1e-12)
            axes.imshow(heat.numpy(), cmap="inferno", alpha=0.6)
            title = names[row][index] if names else f"{name.replace('_', ' ')}, {index}"
            axes.set_title(title, fontsize=6, parse_math=False)
        for axes in line:
            axes.set_axis_off()
    return figure


def patch_weights(maps: dict[str, Tensor]) -> Figure:
    """ResMLP's rows: what the central patches take from where, a block of pictures per layer.

    Args:
        maps: layer → (n, rows, columns), one map per patch.
    """
    columns = min(6, len(maps))
    lines = math.ceil(len(maps) / columns)
    figure = new_figure(2.4 * columns, 2.6 * lines)
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
    return figure


def label_maps(
    shown: Sequence[tuple[Picture, NDArray[Any], NDArray[Any]]], classes: Sequence[str]
) -> Figure:
    """Images, the true classes of their pixels, and those that are found.

    Args:
        shown: images, and twice (height, width) classes; IGNORED is grey.
        classes: names, of which those that occur are in the legend.
    """
    from matplotlib.patches import Patch

    rows = math.ceil(len(shown) / SIDE_BY_SIDE)
    figure = new_figure(4.8 * SIDE_BY_SIDE, 1.7 * rows + 0.6)
    grid = figure.subplots(rows, 3 * SIDE_BY_SIDE, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    seen: set[int] = set()
    for line, (image, true, found) in zip(grid.reshape(-1, 3), shown, strict=False):
        line[0].imshow(image)
        for axes, numbers in zip(line[1:], (true, found), strict=True):
            axes.imshow(class_colors(len(classes))[np.minimum(numbers, len(classes))])
            seen |= set(np.unique(numbers).tolist())
    for axes, title in zip(grid[0], ("image", "true", "found") * SIDE_BY_SIDE, strict=True):
        axes.set_title(title, fontsize=8)
    listed = sorted(number for number in seen if number < len(classes))[:MOST_NAMED]
    colors = class_colors(len(classes))
    handles = [Patch(color=colors[n] / 255, label=classes[n]) for n in listed]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def detections(
    shown: Sequence[tuple[Picture, Found, Found]], classes: Sequence[str], least: float
) -> Figure:
    """Images with their objects, and with those that are found.

    Args:
        shown: images, and twice what is in them: true and found.
        classes: names.
        least: score below which nothing is drawn.
    """
    from matplotlib.patches import Rectangle

    rows = math.ceil(len(shown) / SIDE_BY_SIDE)
    figure = new_figure(4.6 * SIDE_BY_SIDE, 2.4 * rows)
    grid = figure.subplots(rows, 2 * SIDE_BY_SIDE, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    colors = class_colors(len(classes)) / 255
    for line, (image, *both) in zip(grid.reshape(-1, 2), shown, strict=False):
        for axes, objects in zip(line, both, strict=True):
            axes.imshow(image)
            for box, label, score, mask in zip(
                objects.boxes, objects.labels, objects.scores, objects.masks, strict=True
            ):
                if score < least:
                    continue
                color = colors[label]
                left, top, right, bottom = (float(edge) for edge in box)
                size = (right - left, bottom - top)
                axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=color))
                axes.imshow(np.dstack([np.tile(color, (*mask.shape, 1)), 0.45 * mask]))
                text = f"{classes[label]} {score:.2f}" if score < 1 else classes[label]
                tag = {"facecolor": color, "edgecolor": "none", "pad": 1}
                style = {"fontsize": 6, "color": "white", "parse_math": False}
                axes.text(left, top, text, bbox=tag, **style)
    titles = ("true", f"found, score {least:g} or more") * SIDE_BY_SIDE
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    return figure


def neighbours(lines: Sequence[Sequence[Picture]], names: Sequence[Sequence[str]]) -> Figure:
    """In each row an image and, after it, those that are nearest to it.

    Args:
        lines: images, the asked one first.
        names: classes of the same; a neighbour's is green where it is that of the first.
    """
    columns = len(lines[0])
    figure = new_figure(1.2 * columns, 1.45 * len(lines))
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes_row, images, classes in zip(grid, lines, names, strict=True):
        for number, (axes, image, name) in enumerate(zip(axes_row, images, classes, strict=True)):
            axes.imshow(image)
            axes.set_axis_off()
            color = "darkgreen" if name == classes[0] else "firebrick"
            color = color if number else "black"
            axes.set_title(name, fontsize=6, color=color, parse_math=False)
    return figure


def class_colors(count: int) -> NDArray[np.uint8]:
    """A colour for each class and grey for what has none, (count + 1, 3) uint8."""
    from matplotlib.colors import hsv_to_rgb

    hues = np.arange(count) * 0.618034 % 1.0  # neighbours far apart
    values = np.where(np.arange(count) % 2 == 0, 0.95, 0.7)
    hsv = np.stack([hues, np.full(count, 0.75), values], 1)
    colors = np.vstack([hsv_to_rgb(hsv.reshape(-1, 3)), [[0.6, 0.6, 0.6]]])
    return (255 * colors).round().astype(np.uint8)
