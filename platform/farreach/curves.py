"""Several runs in one picture: curves with a band over seeds, or bars of how they ended."""

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
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

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


def smoothed(series: Series, count: int) -> Series:
    """Each point as the mean of itself and of the `count` - 1 before it, if there are so many."""
    sums = np.cumsum(np.concatenate([[0.0], series.y]))
    stops = np.arange(1, len(series.y) + 1)
    begins = np.maximum(0, stops - count)
    return replace(series, y=(sums[stops] - sums[begins]) / (stops - begins))


def draw(
    paths: Sequence[Path | str], metric: str, axis: Axis, out: Path, smooth: int = 1
) -> list[Band]:
    """Draw the curves of some runs into a file whose ending says its kind.

    Args:
        paths: of the runs.
        metric: that they have logged.
        axis: what it is drawn over.
        out: the file.
        smooth: points that are averaged, see `smoothed`.

    Raises:
        ConfigError: a kind of file that cannot be drawn.
        RunDirectoryError: no run there, or it has not logged the metric.
    """
    figure, kind = _figure(out)
    runs = [RunDirectory.open(path) for path in paths]
    series = [smoothed(read_series(run, metric, axis), smooth) for run in runs]
    named = zip(series, distinct_names(runs), strict=True)
    found = bands([replace(one, name=name) for one, name in named])
    axes = figure.subplots()
    for index, band in enumerate(found):
        colour = f"C{index % 10}"
        label = _label(band.name, band.seeds)
        axes.plot(band.x, band.mean, color=colour, label=label)
        if band.seeds > 1:
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("steps" if axis == "step" else "minutes")
    axes.set_ylabel(metric, parse_math=False)
    axes.grid(alpha=0.3)
    _save(figure, axes.legend(loc="best", fontsize=8), out, kind)
    return found


@dataclass(frozen=True)
class Ends:
    """How the seeds of a configuration ended.

    Attributes:
        name: of the configuration, see `distinct_names`.
        seeds: how many there are.
        means: category → mean over seeds; `all` is the metric itself.
        spreads: category → standard deviation over seeds.
    """

    name: str
    seeds: int
    means: dict[str, float]
    spreads: dict[str, float]


def ends(paths: Sequence[Path | str], metric: str, last: int) -> list[Ends]:
    """The mean of the last points of a metric, and of each METRIC_CATEGORY beside it.

    Args:
        paths: of the runs.
        metric: that they have logged.
        last: points that are averaged, or all if there are fewer.

    Raises:
        RunDirectoryError: no run there, or it has not logged the metric.
    """
    runs = [RunDirectory.open(path) for path in paths]
    groups: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run, name in zip(runs, distinct_names(runs), strict=True):
        logged = {
            key
            for line in read_metrics(run.metrics_path)
            for key, value in line.items()
            if key.startswith(f"{metric}_") and not math.isnan(value)
        }
        own = {"all": metric} | {key.removeprefix(f"{metric}_"): key for key in sorted(logged)}
        series = {category: read_series(run, key) for category, key in own.items()}
        groups[name].append({key: float(s.y[-last:].mean()) for key, s in series.items()})
    found = []
    for name, group in sorted(groups.items()):
        categories = [key for key in group[0] if all(key in one for one in group)]
        values = {key: np.array([one[key] for one in group]) for key in categories}
        means = {key: float(v.mean()) for key, v in values.items()}
        found.append(Ends(name, len(group), means, {k: float(v.std()) for k, v in values.items()}))
    return found


def draw_ends(paths: Sequence[Path | str], metric: str, last: int, out: Path) -> list[Ends]:
    """Draw how some runs ended, as bars by category with the spread over seeds; see `ends`.

    Raises:
        ConfigError: a kind of file that cannot be drawn.
        RunDirectoryError: no run there, or it has not logged the metric.
    """
    figure, kind = _figure(out)
    found = ends(paths, metric, last)
    categories = list(dict.fromkeys(key for one in found for key in one.means))
    axes, width = figure.subplots(), 0.8 / len(found)
    for index, one in enumerate(found):
        own = [place for place, key in enumerate(categories) if key in one.means]
        keys = [categories[place] for place in own]
        axes.bar(
            [place + (index + 0.5) * width - 0.4 for place in own],
            [one.means[key] for key in keys],
            width,
            yerr=[one.spreads[key] for key in keys] if one.seeds > 1 else None,
            capsize=3,
            label=_label(one.name, one.seeds),
        )
    axes.set_xticks(range(len(categories)), categories)
    axes.set_ylabel(f"{metric}, mean of the last {last}", parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    _save(figure, figure.legend(loc="outside upper center", ncols=2, fontsize=8), out, kind)
    return found


def _label(name: str, seeds: int) -> str:
    return f"{name} ({seeds} seeds)" if seeds > 1 else f"{name} (1 seed)"


def _figure(out: Path) -> tuple[Figure, str]:
    """An empty figure, and the kind of the file; raises ConfigError if that cannot be drawn."""
    figure = new_figure(7, 4.5, DPI)
    kinds = figure.canvas.get_supported_filetypes()
    kind = out.suffix.removeprefix(".")
    if kind not in kinds:
        raise ConfigError(
            f"--out {out}: cannot draw a {out.suffix or 'file without an ending'}. "
            f"Known: {', '.join(sorted(kinds))}."
        )
    return figure, kind


def _save(figure: Figure, legend: Legend, out: Path, kind: str) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)  # values of settings, such as paths, may hold two `$`
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, picture.getvalue())
