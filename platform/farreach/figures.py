"""Figures of matplotlib as files and as arrays for TensorBoard; no window is ever opened."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

SHOWN_DPI, SAVED_DPI = 90, 110


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """A figure as (height, width, 3)."""
    figure.set_dpi(SHOWN_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, file: Path) -> Path:
    """Write a figure to a PNG file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    working = file.with_name(f".tmp-{file.name}")
    with mpl.rc_context({"savefig.dpi": SAVED_DPI}):
        figure.savefig(working, format="png")
    working.rename(file)
    return file
