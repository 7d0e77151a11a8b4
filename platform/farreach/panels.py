"""Panels: small plots side by side of what a run has logged, such as the signs of its health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach.figures import new_figure, save
from farreach.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3
WIDTH, HEIGHT = 3.4, 2.5  # of a panel, in inches
# The smaller of two lines has a scale of its own where it would be seen as flat.
FLAT = 10.0
# Highest number of a scale from zero, over the highest that is shown.
ROOM = 1.08


@dataclass(frozen=True)
class Panel:
    """A plot over the updates.

    Attributes:
        title: above it.
        metrics: whose lines it shows; those that were never logged are left out.
        from_zero: whether its scale begins at 0, so that a fall to 0 is seen as what it is.
    """

    title: str
    metrics: tuple[str, ...]
    from_zero: bool = False


def draw_panels(run_metrics: Path, wanted: Sequence[Panel], file: Path) -> list[Path]:
    """Draw the panels of a run into a PNG file.

    Args:
        run_metrics: its `metrics.jsonl`.
        wanted: the panels.
        file: to write.

    Returns:
        The file; none if the run has logged none of the metrics yet.

    Raises:
        RunDirectoryError: the metrics are missing or damaged.
    """
    figure = panels(read_metrics(run_metrics), wanted)
    return [] if figure is None else [save(figure, file)]


def panels(records: Sequence[Mapping[str, Any]], wanted: Sequence[Panel]) -> Figure | None:
    """Those panels side by side of which something was logged; None if there is none.

    Args:
        records: lines as of `read_metrics`.
        wanted: the panels.
    """
    found = [
        (panel, lines)
        for panel in wanted
        if (lines := {m: line for m in panel.metrics if (line := _line(records, m))[0].size})
    ]
    if not found:
        return None
    across = min(ACROSS, len(found))
    down = -(-len(found) // across)
    figure = new_figure(WIDTH * across, HEIGHT * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (panel, lines) in zip(grid, found, strict=False):
        _draw(axes, panel, lines)
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    return figure


def _line(records: Sequence[Mapping[str, Any]], name: str) -> tuple[Any, Any]:
    points = [
        (record.get("training/updates", record["step"]), record[name])
        for record in records
        if name in record and np.isfinite(record[name])
    ]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _draw(axes: Axes, panel: Panel, lines: Mapping[str, tuple[Any, Any]]) -> None:
    sizes = {name: float(np.abs(y).max()) for name, (_, y) in lines.items()}
    largest = max(sizes.values())
    other = None
    drawn = []
    for number, (name, (x, y)) in enumerate(lines.items()):
        on = axes
        if sizes[name] * FLAT < largest:
            other = axes.twinx() if other is None else other
            on = other
        side = " (right)" if on is other else ""
        marker = "o" if len(x) < ACROSS else None  # a line of one point would not be seen
        label = name.partition("/")[2].replace("_", " ") + side
        drawn += on.plot(x, y, label=label, color=f"C{number}", marker=marker, linewidth=1.2)
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    axes.set_xlabel("updates", fontsize=8)
    for part in (axes, other):
        if part is not None:
            part.tick_params(labelsize=7)
            if panel.from_zero:
                # With the margin of what is shown, as lines that hardly vary have next to none.
                tops = [float(np.max(line.get_ydata())) for line in part.get_lines()]
                part.set_ylim(0, ROOM * max(tops) if max(tops) > 0 else None)
    legend = axes.legend(handles=drawn, loc="best", fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)
