"""What is made of a run that was trained: evaluations, pictures, exports of a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from farreach import config as configs
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.console import warn
from farreach.errors import CheckpointError, ConfigError, RunDirectoryError
from farreach.provenance import installed_versions
from farreach.registry import near_match
from farreach.rundir import RunDirectory, flat_result
from farreach.unforeseen import explained
from farreach.workload import Format, evaluation_of, workload_named

Which = Literal["best", "newest"]


def evaluate(
    path: Path | str,
    which: Which = "best",
    episodes: int | None = None,
    what: str | None = None,
    words: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run; the same flat object as `result.json`.

    Args:
        path: the run directory, its URI, or `latest`.
        which: the checkpoint of the highest score (the newest if none has one), or the newest.
        episodes: how many, by default what the run's config says.
        what: name of an evaluation; None: the one that training makes.
        words: its settings, as `key=value`.

    Raises:
        ConfigError: the workload has no such evaluation, or it no such settings.
        FarreachError: no such run or checkpoint, or the evaluation failed.
    """
    run = RunDirectory.open(path)
    loaded = configs.load(run.config_path)
    config: Any = loaded.config
    workload = workload_named(loaded.workload)
    chosen = None if what is None else evaluation_of(workload, what)
    settings = None if chosen is None else configs.from_words(words, chosen.settings)
    checkpoint = _require_checkpoint(run, which)
    with run.additions():
        begun_s = time.monotonic()
        with explained(run):
            if chosen is None:
                metrics = workload.evaluate(config, run, checkpoint, episodes=episodes)
            else:
                metrics = chosen.run(config, run, checkpoint, settings)
        wall_time_s = time.monotonic() - begun_s
        result = flat_result(
            metrics, seed=config.seed, wall_time_s=wall_time_s, versions=installed_versions()
        )
        if chosen is not None:
            assert settings is not None
            about = {"updates": checkpoint.step, "settings": settings.model_dump()}
            try:
                run.write_evaluation(f"{what}-{checkpoint.step}", result | about)
            except RunDirectoryError as error:  # what was found is worth more than its file
                warn(f"note      it is not kept: {error}")
    return result


def plot(path: Path | str, figure: str | None = None) -> list[Path]:
    """Draw the figures of a run from its best checkpoint (the newest if none has a score).

    Args:
        path: the run directory, its URI, or `latest`.
        figure: name of the one that is wanted, such as `attention`; None: all.

    Raises:
        ConfigError: the run has no such figure.
        FarreachError: no such run or checkpoint, or drawing failed.
    """
    run = RunDirectory.open(path)
    loaded = configs.load(run.config_path)
    checkpoint = _require_checkpoint(run, "best")
    with run.additions(), explained(run):
        files = workload_named(loaded.workload).plot(loaded.config, run, checkpoint)
    if figure is None:
        return files
    if not any(file.stem == figure for file in files):
        known = sorted({file.stem for file in files})
        raise ConfigError(f"{run.place}: has no figure {figure!r}. {near_match(figure, known)}")
    return [file for file in files if file.stem == figure]


def plot_images(path: Path | str, images: Path, out: Path) -> list[Path]:
    """Draw what the model of a run makes of the user's own images.

    Args:
        path: the run directory, its URI, or `latest`.
        images: a file, or a folder of them.
        out: folder for the pictures.

    Raises:
        ConfigError: the workload looks at no images, or there are none.
        FarreachError: no such run or checkpoint, or drawing failed.
    """
    run = RunDirectory.open(path)
    loaded = configs.load(run.config_path)
    checkpoint = _require_checkpoint(run, "best")
    drawer = getattr(workload_named(loaded.workload), "plot_images", None)
    if drawer is None:
        raise ConfigError(f"{run.place}: its workload {loaded.workload} looks at no images.")
    if not images.exists():
        raise ConfigError(f"--images {images}: there is nothing.")
    out.mkdir(parents=True, exist_ok=True)
    with explained(run):
        files: list[Path] = drawer(loaded.config, run, checkpoint, images, out)
        return files


def export(path: Path | str, out: Path, fmt: Format) -> Path:
    """Export the best checkpoint of a run (the newest if none has a score) to other software.

    Args:
        path: the run directory, its URI, or `latest`.
        out: the folder to make.
        fmt: for what software.

    Returns:
        The folder.

    Raises:
        ConfigError: the run's workload exports nothing.
        FarreachError: no such run or checkpoint, or exporting failed.
    """
    run = RunDirectory.open(path)
    loaded = configs.load(run.config_path)
    checkpoint = _require_checkpoint(run, "best")
    with explained(run):
        exporter = getattr(workload_named(loaded.workload), "export", None)
        if exporter is None:
            raise ConfigError(
                f"{run.place}: its workload {loaded.workload} has no export. Give the workload a "
                "function `export`, or name a run of another workload."
            )
        exported: Path = exporter(loaded.config, run, checkpoint, out, fmt)
        return exported


def find_checkpoint(run: RunDirectory, which: Which) -> Checkpoint | None:
    """A checkpoint of a run, or None if it has none; damaged ones are passed over and reported.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    if run.remote is not None:
        found, skipped = run.remote.fetch(which)
    else:
        store = CheckpointStore(run.checkpoints)
        found = store.best() if which == "best" else None
        if found is None:
            found = store.newest()
        skipped = store.skipped
    for message in skipped:
        warn(f"skipped   {message}")
    if found is None and skipped:
        raise CheckpointError(
            f"no checkpoint of {run.place} is intact, see above. Train again, or delete "
            "these folders to let `farreach resume` begin from the beginning."
        )
    return found


def _require_checkpoint(run: RunDirectory, which: Which) -> Checkpoint:
    checkpoint = find_checkpoint(run, which)
    if checkpoint is None:
        raise CheckpointError(
            f"{run.place} has no checkpoint yet. Continue the run with `farreach resume "
            f"{run.word}`."
        )
    return checkpoint
