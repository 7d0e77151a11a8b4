"""Timing that shared machines disturb least: CPU seconds, medians, rounds that take turns."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Work = Callable[[], object]
EXTRA_HINT = "pip install -e '.[bench]'"


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of a script's command line; `--help` prints what it is about, as it is written."""
    return argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def rows_asked(about: str | None, known: Sequence[str] = ()) -> list[str]:
    """The rows that the command line names, or all; `--help` prints what a script is about."""
    options = parser(about)
    if known:
        which = f"of {', '.join(known)}; default: all"
        options.add_argument("rows", nargs="*", metavar="ROW", help=which)
    asked: list[str] = getattr(options.parse_args(), "rows", [])
    if unknown := [name for name in asked if name not in known]:
        options.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(known)}")
    return asked or list(known)


def cpu_seconds(work: Work) -> float:
    """CPU seconds of this process, all its threads together, that one call takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def medians(works: Sequence[Work], rounds: int) -> list[float]:
    """Median CPU seconds of each work; a first round, to warm up, does not count.

    The works take turns, so that a slow spell of the machine meets all of them.
    """
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, seconds in zip(works, taken, strict=True):
            spent = cpu_seconds(work)
            if number:
                seconds.append(spent)
    return [statistics.median(seconds) for seconds in taken]


def row(name: str, ours: float, peer: float, unit: str, ratio: float, **extra: Any) -> None:
    """Print one row as a JSON line.

    Args:
        name: of the row.
        ours: what we reach, in `unit`.
        peer: what the peer reaches, in `unit`.
        unit: such as `updates per CPU-second`.
        ratio: how many times better we are; above 1 is in our favour.
        extra: further keys.
    """
    line = {
        "name": name,
        "ours": float(f"{ours:.5g}"),
        "peer": float(f"{peer:.5g}"),
        "ratio": float(f"{ratio:.4g}"),
        "unit": unit,
        "load_average_1min": round(os.getloadavg()[0], 2),
        **extra,
    }
    print(json.dumps(line), flush=True)


def compare_rates(
    name: str, unit: str, ours: tuple[Work, int], peer: tuple[Work, int], rounds: int, **extra: Any
) -> None:
    """Measure two works and print how many of their items each does in a CPU-second."""
    ours_s, peer_s = medians([ours[0], peer[0]], rounds)
    rates = ours[1] / ours_s, peer[1] / peer_s
    row(name, *rates, unit, rates[0] / rates[1], **extra)


def missing(name: str, package: str) -> None:
    """Say that a row is left out because the peer is not installed."""
    print(f"{name}: {package} is not installed; {EXTRA_HINT} brings it", file=sys.stderr)
