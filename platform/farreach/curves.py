"""Learning curves of several runs in one picture: a line per configuration, a band over seeds."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from farreach.config import flat
from farreach.disk import atomic_write
from farreach.errors import ConfigError, RunDirectoryError
from farreach.figures import new_figure
from farreach.metrics import read_metrics
from farreach.registry import near_match
from farreach.rundir import RunDirectory
from farreach.yaml_source import read

if TYPE_CHECKING:
    pass

Floats = NDArray[np.floating[Any]]
Axis = Literal["step", "minutes"]

POINTS = 200
DPI = 110


@dataclass(frozen=True)
class Series:
    """One metric of one run.

    Attributes:
        name: what seeds of a configuration share; see `distinct_names`.
        x: (n,) steps, or minutes since the first point that was logged.
        y: (n,).
    """

    name: str
    x: Floats
    y: Floats


def read_series(run: RunDirectory, metric: str, axis: Axis = "step") -> Series:
    """The points of a metric, without those that a resumed run has logged again.

    Minutes are those of the clock, pauses of a stopped run included.

    Raises:
        RunDirectoryError: the run has not logged the metric, or its metrics are damaged.
    """
    lines = read_metrics(run.metrics_path)
    points = [
        (line["step"], line["time"], line[metric])
        for line in lines
        if not math.isnan(line.get(metric, math.nan))
    ]
    if not points:
        known = sorted({name for line in lines for name in line if "/" in name})
        raise RunDirectoryError(f"{run.path} has logged no {metric!r}. {near_match(metric, known)}")
    step, at, value = np.array(sorted(points), np.float64).T
    name = str(read(run.config_path, str(run.config_path))[0]["name"])
    return Series(name, step if axis == "step" else (at - lines[0]["time"]) / 60, value)


def distinct_names(runs: Sequence[RunDirectory]) -> list[str]:
    """What to call each run: its configuration's name, and what runs of that name differ in.

    Seeds, and where a run has its data and does its work, make no difference.
    """
    trees = [flat(read(run.config_path, str(run.config_path))[0]) for run in runs]
    names = []
    for tree in trees:
        same = [other for other in trees if other["name"] == tree["name"]]
        keys = sorted({key for other in same for key in other})
        differing = [
            key.rpartition(".")[2] + f"={tree.get(key)}"
            for key in keys
            if not _is_elsewhere(key) and len({str(other.get(key)) for other in same}) > 1
        ]
        names.append(" ".join([str(tree["name"]), *differing]))
    return names


def _is_elsewhere(key: str) -> bool:
    return key in ("seed", "data.path", "data.cache") or key.startswith("runtime.")


@dataclass(frozen=True)
class Band:
    """The seeds of a configuration together, on a common axis: (k,) each."""

    name: str
    seeds: int
    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def bands(series: Sequence[Series]) -> list[Band]:
    """Mean, and mean ± standard deviation, over the runs of each name, sorted by it.

    Runs are interpolated linearly over the stretch of the axis that all of them cover.
    """
    groups: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        groups[one.name].append(one)
    found = []
    for name, group in sorted(groups.items()):
        first = max(one.x[0] for one in group)
        last = max(first, min(one.x[-1] for one in group))
        x = np.linspace(first, last, POINTS)
        y = np.stack([np.interp(x, one.x, one.y) for one in group])
        mean, spread = y.mean(axis=0), y.std(axis=0)
        found.append(Band(name, len(group), x, mean, mean - spread, mean + spread))
    return found


def draw(paths: Sequence[Path | str], metric: str, axis: Axis, out: Path) -> list[Band]:
    """Draw the curves of some runs into a file whose ending says its kind.

    Raises:
        ConfigError: a kind of file that cannot be drawn.
        RunDirectoryError: no run there, or it has not logged the metric.
    """
    figure = new_figure(7, 4.5, DPI)
    kinds = figure.canvas.get_supported_filetypes()
    kind = out.suffix.removeprefix(".")
    if kind not in kinds:
        raise ConfigError(
            f"--out {out}: cannot draw a {out.suffix or 'file without an ending'}. "
            f"Known: {', '.join(sorted(kinds))}."
        )
    runs = [RunDirectory.open(path) for path in paths]
    series = [read_series(run, metric, axis) for run in runs]
    named = zip(series, distinct_names(runs), strict=True)
    found = bands([replace(one, name=name) for one, name in named])
    axes = figure.subplots()
    for index, band in enumerate(found):
        colour = f"C{index % 10}"
        seeds = f"{band.seeds} seeds" if band.seeds > 1 else "1 seed"
        axes.plot(band.x, band.mean, color=colour, label=f"{band.name} ({seeds})")
        if band.seeds > 1:
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("steps" if axis == "step" else "minutes")
    axes.set_ylabel(metric, parse_math=False)
    axes.grid(alpha=0.3)
    legend = axes.legend(loc="best", fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # values of settings, such as paths, may hold two `$`
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, picture.getvalue())
    return found
