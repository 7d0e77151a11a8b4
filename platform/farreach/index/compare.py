"""Kinds of index side by side: what each finds of the truly best, how fast, in how much space."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from farreach.figures import new_figure
from farreach.index.kinds import CODES, LEAST_PER_CENTRE, IndexConfig, Kind
from farreach.index.store import Index
from farreach.index.tune import recall
from farreach.index.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[Kind, ...] = ("flat", "ivf_flat", "ivf_pq", "ivf_fastscan", "hnsw", "sq8")
# Steps of what a search looks at, from little to much.
PROBES, CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128), (16, 32, 64, 128, 256, 512)
# Vectors that train a kind, at least.
LEAST: dict[Kind, int] = {kind: LEAST_PER_CENTRE * codes for kind, codes in CODES.items()}
LEAST["ivf_flat"] = LEAST_PER_CENTRE
# Searches of which the fastest counts.
ROUNDS = 3


@dataclass(frozen=True)
class Point:
    """A kind of index, searched in one way.

    Attributes:
        kind: of the index.
        effort: what a search looks at, such as `probes 8`; "" where there is no choice.
        recall: share of the truly best that it finds.
        rate: queries per second, all of them at once.
        megabytes: of its files, the vectors not counted.
    """

    kind: Kind
    effort: str
    recall: float
    rate: float
    megabytes: float


def compare(
    vectors: Path, queries: NDArray[Any], k: int = 10, kinds: Sequence[Kind] = KINDS
) -> Iterator[Point]:
    """Build each kind in a folder that goes away, and search it with more and more effort.

    Args:
        vectors: a folder of embedded documents.
        queries: (n, d).
        k: hits of each that count.
        kinds: which; those are left out that so few vectors cannot train.

    Raises:
        DataError: there are no vectors, or the queries do not fit.
    """
    truth, count = None, Vectors.open(vectors).points
    own = {part.name for part in vectors.iterdir()}
    with tempfile.TemporaryDirectory(dir=vectors.parent, prefix=".compare-") as folder:
        for kind in kinds:
            if count < LEAST.get(kind, 0):
                continue
            index = Index.build(vectors, Path(folder) / kind, IndexConfig(kind=kind))
            truth = index.search_exactly(queries, k) if truth is None else truth
            files = [file for file in index.path.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files if file.name not in own) / 1e6
            for effort, config in _efforts(index.config, count):
                taken = math.inf
                for _ in range(ROUNDS):
                    begun = time.perf_counter()
                    found = index.search(queries, k, config=config)
                    taken = min(taken, time.perf_counter() - begun)
                yield Point(kind, effort, recall(found, truth), len(queries) / taken, size)


def _efforts(config: IndexConfig, count: int) -> Iterator[tuple[str, IndexConfig]]:
    if config.has_lists:
        for probes in PROBES:
            yield f"probes {probes}", config.model_copy(update={"probes": probes})
    elif config.kind == "hnsw":
        for ef in CANDIDATES:
            if ef <= max(count, CANDIDATES[0]):
                yield f"ef {ef}", config.model_copy(update={"ef": ef})
    else:
        yield "", config


def drawn(points: Sequence[Point], title: str) -> Figure:
    """Recall over speed, a line for each kind."""
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    for kind in dict.fromkeys(point.kind for point in points):
        own = [point for point in points if point.kind == kind]
        label = f"{kind} ({own[0].megabytes:,.0f} MB)"
        axes.plot([p.rate for p in own], [p.recall for p in own], marker="o", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("queries per second")
    axes.set_ylabel("share of the truly best ten that is found")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure
