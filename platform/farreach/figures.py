"""Figures of matplotlib as files and as arrays for TensorBoard; no window is ever opened.

Matplotlib takes half a second to import and is wanted by nobody until the first picture, so modules
that draw import it in the functions that do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_DPI, SAVED_DPI = 90, 110


def new_figure(width: float, height: float, dpi: float | None = None) -> Figure:
    """An empty figure of so many inches that gives what is drawn the room that it needs."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """A figure as (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(SHOWN_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, file: Path) -> Path:
    """Write a figure to a PNG file, whole or not at all."""
    import matplotlib as mpl

    file.parent.mkdir(parents=True, exist_ok=True)
    working = file.with_name(f".tmp-{file.name}")
    with mpl.rc_context({"savefig.dpi": SAVED_DPI}):
        figure.savefig(working, format="png")
    working.rename(file)
    return file
