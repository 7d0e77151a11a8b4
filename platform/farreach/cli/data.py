"""The command line's part about data sets: `farreach data generate | import | check | show`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from farreach.cli.arguments import add_config
from farreach.console import say, warn
from farreach.errors import DataError
from farreach.imports import imported

RECORDINGS_MODULE = "farreach_workloads.goals.data.recordings"
BEIR_MODULE = "farreach_workloads.retrieval.evaluation.beir"


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data generate`."""
    add_config(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the data set (default: data/NAME)"
    )


def generate(options: argparse.Namespace) -> None:
    """Record a data set."""
    from farreach import datasets

    store = datasets.generate(options.config, options.overrides, options.out)
    _say_facts(store.path)


def import_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data import`."""
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder in another layout")
    parser.add_argument("out", type=Path, metavar="DIR", help="folder to make")
    _add_environment(parser)


def import_(options: argparse.Namespace) -> None:
    """Copy recorded episodes of another layout into a data set."""
    recordings = imported(RECORDINGS_MODULE)
    for finding in recordings.import_recording(options.path, options.out, options.environment):
        warn(f"warning: {finding}")
    _say_facts(options.out)


def images_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data images`."""
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="makes the Ray Dataset")
    parser.add_argument("out", type=Path, metavar="DIR", help="folder to make")


def images(options: argparse.Namespace) -> None:
    """Write a Ray Dataset of images, labelled or not, where trainings find it."""
    from farreach.data.images import UNLABELLED, open_images
    from farreach.data.ray_images import write_images

    train, held_out = open_images(write_images(options.function, options.out), labelled=False)
    count = f"{len(train):,} images to train on, {len(held_out):,} held out"
    is_labelled = train.classes != [UNLABELLED]
    say(
        f"{options.out}: {count}, {f'{len(train.classes)} classes' if is_labelled else 'no labels'}"
    )
    say(f"train with data.path={options.out}")


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data check`."""
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder, in any layout")
    _add_environment(parser)


def check(options: argparse.Namespace) -> None:
    """Look at every episode, image, or document and question; name what is wrong with it."""
    from farreach.data.image_check import looks_like_images

    if options.path.exists() and looks_like_images(options.path):
        _check_images(options.path)
        return
    if (options.path / "corpus.jsonl").is_file():
        _check_questions(options.path)
        return
    recordings = imported(RECORDINGS_MODULE)
    report = recordings.check_recording(options.path, options.environment)
    for warning in report.warnings:
        say(f"warning: {warning}")
    for fault in report.faults:
        say(f"fault: {fault}")
    say(f"{options.path}: {report.layout}, {report.episodes:,} episodes, {report.rows:,} rows")
    if report.faults:
        raise DataError(f"{options.path}: {len(report.faults)} faults, see above.")
    say(f"{options.path} is fine")


def _check_questions(path: Path) -> None:
    faults: list[str] = imported(BEIR_MODULE).problems_in(path)
    for fault in faults:
        say(f"fault: {fault}")
    if faults:
        raise DataError(f"{path}: {len(faults)} kinds of faults, see above.")
    say(f"{path} is fine")


def _check_images(path: Path) -> None:
    import numpy as np

    from farreach.data.image_check import faults_of
    from farreach.data.images import open_images
    from farreach.progress import Progress

    train, held_out = open_images(path, labelled=False)
    faults = 0
    with Progress("check", len(train) + len(held_out), "images") as progress:
        done = 0
        for part in (train, held_out):
            for _, fault in faults_of(part):
                done += 1
                progress.update(done, {"faults": float(faults)})
                if fault is not None:
                    faults += 1
                    say(f"fault: {fault}")
    counts = np.bincount(train.labels, minlength=len(train.classes))
    say(f"{path}: {len(train):,} images to train on, {len(held_out):,} held out")
    say(
        f"{len(train.classes)} classes of {counts.min():,} to {counts.max():,} images: "
        f"{', '.join(train.classes[:10])}{', …' if len(train.classes) > 10 else ''}"
    )
    if faults:
        raise DataError(f"{path}: {faults} images cannot be read, see above.")
    say(f"{path} is fine")


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data show`."""
    parser.add_argument("path", type=Path, metavar="DIR", help="folder of a data set")


def show(options: argparse.Namespace) -> None:
    """Say what a data set holds."""
    _say_facts(options.path)


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--environment",
        metavar="NAME[:OPTION=VALUE,…]",
        help="the environment it was recorded in, which tells what shapes to expect: maze, or "
        "gymnasium:id=PointMaze_UMaze-v3",
    )


def _say_facts(path: Path) -> None:
    from farreach.data.episodes import EpisodeStore

    store = EpisodeStore.open(path)
    info, lengths = store.info, store.lengths - 1
    one = lengths.min() == lengths.max()
    say(f"data set     {path}")
    say(f"name         {info['name']}")
    say(f"source       {json.dumps(info['source'])}")
    say(f"episodes     {len(store):,}")
    say(f"transitions  {info['transitions']:,}")
    say(f"per episode  {lengths.min():,}" + ("" if one else f" to {lengths.max():,}"))
    say(f"content      {info['content'][:16]} (SHA-256)")
    for name, moments in info["statistics"].items():
        say(f"{name}:")
        for dim, row in enumerate(
            zip(moments["low"], moments["mean"], moments["std"], moments["high"], strict=True)
        ):
            say(f"  {dim:>3}  {_in_words(row)}")


def _in_words(row: Iterable[float]) -> str:
    low, mean, std, high = row
    return f"low {low:>10.4g}  mean {mean:>10.4g}  std {std:>10.4g}  high {high:>10.4g}"
