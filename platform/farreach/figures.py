"""Figures of matplotlib as files and as arrays for TensorBoard; no window is ever opened.

Matplotlib takes half a second to import and is wanted by nobody until the first picture, so modules
that draw import it in the functions that do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from farreach.disk import atomic_write

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

SHOWN_DPI, SAVED_DPI = 90, 110


def new_figure(width: float, height: float, dpi: float | None = None) -> Figure:
    """An empty figure of so many inches that gives what is drawn the room that it needs."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """A figure as (height, width, 3); it is used up."""
    with _canvas(figure, SHOWN_DPI) as canvas:
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure, dpi: float | None = None) -> bytes:
    """A figure as a PNG file of its own resolution, or of another; it is used up."""
    with _canvas(figure, dpi) as canvas:
        file = io.BytesIO()
        canvas.print_png(file)
        return file.getvalue()


def save(figure: Figure, file: Path) -> Path:
    """Write a figure to a PNG file, whole or not at all; it is used up."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, png(figure, SAVED_DPI))
    return file


@contextmanager
def _canvas(figure: Figure, dpi: float | None) -> Iterator[FigureCanvasAgg]:
    """A canvas for a figure, whose pixels go when this ends.

    Figures and what draws them refer to one another, and to megabytes of pixels that nobody needs
    any more but Python may find out about much later.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if dpi is not None:
        figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    try:
        yield canvas
    finally:
        vars(canvas.get_renderer()).clear()
        figure.clear()
