"""`farreach bench`: how fast backbones are on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from farreach.console import say
from farreach.imports import imported

# Imports of torch and of everything that needs it wait until a command does.

BENCH_MODULE = "farreach_workloads.vision.bench"
COLUMNS = ("backbone", "step", "M param", "GMAC", "MB/image", "ours", "timm", "ratio")
WIDTHS = (24, 6, 8, 8, 9, 9, 9, 6)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Of `farreach bench`."""
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="backbone=…, size=…, batch=…: see below"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="draw published accuracy over measured speed"
    )


def bench(options: argparse.Namespace) -> None:
    """Time them and say it line by line."""
    from farreach import config as configs

    module = imported(BENCH_MODULE)
    config = configs.from_words(options.settings, module.BenchConfig)
    unit = module.unit(config)
    rows: list[Any] = []
    if not options.json:
        say(_line(COLUMNS))
    for timing in module.timings(config):
        rows.append(timing)
        row = timing.as_row(unit)
        if options.json:
            say(json.dumps(row))
        else:
            say(_line(_cells(timing.name, timing.kind, row)))
    if not options.json:
        say(f"ours and timm in {unit}; ratio above 1: ours is faster")
    if options.out is not None:
        say(str(module.draw(rows, config, options.out)))


def _cells(name: str, kind: str, row: dict[str, Any]) -> tuple[str, ...]:
    numbers = [row[key] for key in ("million_parameters", "gmacs", "megabytes_per_image")]
    rates = [row[key] for key in ("ours", "peer", "ratio")]
    return (
        name,
        kind,
        *(f"{n:.2f}" for n in numbers),
        *("–" if r is None else f"{r:.2f}" for r in rates),
    )


def _line(cells: tuple[str, ...]) -> str:
    first, *others = zip(cells, WIDTHS, strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f" {text:>{width}}" for text, width in others)
