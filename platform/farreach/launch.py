"""From a configuration to a trained run: load, check, make the run directory, run the workload.

A workload is a module that a configuration names with its key `workload`; see `Workload`.
"""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from farreach import config as configs
from farreach import runtime
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.cluster.demand import Demand
from farreach.config import Config
from farreach.console import say, warn
from farreach.errors import CheckpointError, ConfigError, FarreachError, RunDirectoryError
from farreach.provenance import here, installed_versions
from farreach.registry import near_match
from farreach.rundir import RunDirectory, flat_result
from farreach.stopping import Stopped

Which = Literal["best", "newest"]
Format = Literal["rllib", "timm", "safetensors", "onnx", "hub"]


class Evaluation(NamedTuple):
    """What `farreach evaluate RUN NAME key=value` does; its docstring's first line is its help.

    Attributes:
        run: (config of the run, its directory, checkpoint, settings) → metrics.
        settings: their model, every one with a default.
    """

    run: Callable[[Any, RunDirectory, Checkpoint, Any], dict[str, float]]
    settings: type[Config]


class Workload(Protocol):
    """What a module must have to be named by a configuration.

    Its `Config` has at least the fields `name` and `seed`. Metrics are called `group/name`.

    A workload whose models other software can use also has `export(config, run, checkpoint, out,
    fmt)`: it makes the folder `out`, whole or not at all, and returns its path. One whose runs can
    begin with what others have left also has `check_start(config)`: it raises as `check` does, but
    is not asked when a run that has begun is resumed. One whose models look at images also has
    `plot_images(config, run, checkpoint, images, out)`: pictures of the user's own, in a folder.
    One with other evaluations than that of training has `EVALUATIONS`: name → `Evaluation`.
    """

    Config: type[Config]

    def check(self, config: Any) -> list[str]:
        """Raise ConfigError or EnvironmentFault before any actor starts; notes for the user."""

    def demand(self, config: Any) -> list[Demand]:
        """What the run asks Ray for, which is also what it reserves; nothing without Ray."""

    def run(
        self, config: Any, run: RunDirectory, checkpoint: Checkpoint | None
    ) -> dict[str, float]:
        """Train, from the checkpoint if there is one; the final metrics.

        When asked to stop (see `StopRequest`), write a last checkpoint and raise Stopped.
        """

    def evaluate(
        self, config: Any, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
    ) -> dict[str, float]:
        """Metrics of a checkpoint; `episodes` None stands for what the config says."""

    def plot(self, config: Any, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
        """Draw the figures of a run; the files."""


def train(
    config_name: str,
    overrides: Sequence[str] = (),
    run_dir: Path | str | None = None,
    root: Path | str = Path("runs"),
    *,
    go_on: bool = False,
) -> RunDirectory:
    """Train from the beginning in a new run directory.

    Args:
        config_name: a file, or a shipped configuration such as `goals/walk_maze`.
        overrides: such as `agent.lr=1e-3`.
        run_dir: exactly this directory or URI, instead of a fresh one under `root`.
        root: where runs live, a folder or a URI.
        go_on: if there is a run in `run_dir` already, resume that with this configuration, as
            `resume` does; if it is done, leave it alone.

    Raises:
        FarreachError: before or during the run; its message is for the user.
        Stopped: the run was asked to stop and can be resumed.
        KeyboardInterrupt: the run was aborted.
    """
    loaded = trainable(config_name, overrides)
    if go_on and run_dir is not None and RunDirectory.is_there(run_dir):
        return _go_on(RunDirectory.open(run_dir), loaded)
    config: Any = loaded.config
    workload = _workload(loaded.workload)
    notes = _checked(workload, config)
    text = configs.dump(config, loaded.workload)
    run = RunDirectory.create(root, config.name, text, sys.argv, config.seed, path=run_dir)
    with run.lock():
        run.event("started", **here())
        _announce(run, notes)
        _execute(workload, config, run, None)
    return run


def trainable(config_name: str, overrides: Sequence[str] = ()) -> configs.Loaded:
    """A configuration that `train` takes, without asking whether what it needs is on this machine.

    Raises:
        ConfigError: its mistakes, or it describes a data set.
    """
    loaded = configs.load(configs.find(config_name), overrides)
    if not hasattr(_workload(loaded.workload), "run"):
        raise ConfigError(
            f"{loaded.path}: describes a data set and trains nothing. Record it with `farreach "
            f"data generate {config_name}`."
        )
    return loaded


def resume(path: Path | str, overrides: Sequence[str] = ()) -> RunDirectory:
    """Continue a run from its newest intact checkpoint, or from the beginning if it has none.

    Args:
        path: the run directory, its URI, or `latest`.
        overrides: changes of keys that the workload's `Config.RESUMABLE` allows.

    Raises:
        ConfigError: an override changes another key.
        FarreachError, Stopped, KeyboardInterrupt: as `train` does.
    """
    run = RunDirectory.open(path)
    return _go_on(run, configs.load(run.config_path, overrides))


def _go_on(run: RunDirectory, loaded: configs.Loaded) -> RunDirectory:
    """Continue a run with a configuration that differs from its own in `RESUMABLE` keys alone."""
    before = configs.load(run.config_path)
    if loaded.workload != before.workload:
        raise ConfigError(f"a run keeps its workload, which is {before.workload}.")
    changes = configs.differences(before.config, loaded.config)
    _refuse_fixed_keys(loaded.config, changes)
    workload = _workload(loaded.workload)
    with run.lock():
        if run.result_path.exists() and not changes:
            say(f"{run.place} is done already; give key=value to change it and to train on.")
            return run
        run.check_writable()
        notes = workload.check(loaded.config)
        checkpoint = find_checkpoint(run, "newest")
        if changes:
            run.replace_config(configs.dump(loaded.config, loaded.workload))
            run.result_path.unlink(missing_ok=True)
        step = None if checkpoint is None else checkpoint.step
        run.event("resumed", step=step, changes=changes, **here())
        _announce(run, notes)
        said = "no checkpoint yet, beginning again" if step is None else f"step {step:,}"
        say(f"resume    {said}")
        _execute(workload, loaded.config, run, checkpoint)
    return run


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
    workload = _workload(loaded.workload)
    chosen = None if what is None else evaluation_of(workload, what)
    settings = None if chosen is None else configs.from_words(words, chosen.settings)
    checkpoint = _require_checkpoint(run, which)
    with run.additions():
        begun_s = time.monotonic()
        with _failures_explained(run):
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
            run.write_evaluation(f"{what}-{checkpoint.step}", result | about)
    return result


def evaluation_of(workload: Workload, name: str) -> Evaluation:
    """An evaluation of a workload; raises ConfigError with a near match."""
    known: Mapping[str, Evaluation] = getattr(workload, "EVALUATIONS", {})
    if name not in known:
        raise ConfigError(f"there is no evaluation {name!r} here. {near_match(name, list(known))}")
    return known[name]


def check(config_name: str, overrides: Sequence[str] = ()) -> list[str]:
    """Check a configuration without training; the workload's notes.

    Raises:
        FarreachError: what is wrong with the configuration or the environment.
    """
    loaded = configs.load(configs.find(config_name), overrides)
    return _checked(_workload(loaded.workload), loaded.config)


def _checked(workload: Workload, config: Any) -> list[str]:
    """What a new run must pass; the workload's notes."""
    notes = workload.check(config)
    check_start = getattr(workload, "check_start", None)
    if check_start is not None:
        check_start(config)
    return notes


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
    with run.additions(), _failures_explained(run):
        files = _workload(loaded.workload).plot(loaded.config, run, checkpoint)
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
    drawer = getattr(_workload(loaded.workload), "plot_images", None)
    if drawer is None:
        raise ConfigError(f"{run.place}: its workload {loaded.workload} looks at no images.")
    if not images.exists():
        raise ConfigError(f"--images {images}: there is nothing.")
    out.mkdir(parents=True, exist_ok=True)
    with _failures_explained(run):
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
    with _failures_explained(run):
        exporter = getattr(_workload(loaded.workload), "export", None)
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
            f"{run.place}`."
        )
    return checkpoint


def _workload(name: str) -> Workload:
    return cast(Workload, importlib.import_module(name))


def _refuse_fixed_keys(config: Config, changes: Sequence[str]) -> None:
    """Raise ConfigError for changes outside of the model's `RESUMABLE` keys and sections."""
    allowed: frozenset[str] = getattr(config, "RESUMABLE", frozenset())

    def may_change(change: str) -> bool:
        key = change.partition(":")[0]
        return any(key == entry or key.startswith(f"{entry}.") for entry in allowed)

    fixed = [change for change in changes if not may_change(change)]
    if fixed:
        raise ConfigError(
            "a resumed run keeps these values:\n  "
            + "\n  ".join(fixed)
            + f"\nWhat may change: {', '.join(sorted(allowed)) or 'nothing'}. "
            "Start a new run with `farreach train` for the others."
        )


def _announce(run: RunDirectory, notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note      {note}")
    say(f"run       {run.place}")
    if run.remote is not None:
        say(f"copy      {run.path}")
    say(f"watch     tensorboard --logdir {run.tensorboard}")
    say(f"stop      Ctrl-C; continue with farreach resume {run.place}")


def _execute(
    workload: Workload, config: Any, run: RunDirectory, checkpoint: Checkpoint | None
) -> None:
    """Run the workload, and write down how that ended."""
    later = f"continue with farreach resume {run.place}"
    try:
        with _failures_explained(run):
            metrics = workload.run(config, run, checkpoint)
        run.event("finished")
        wall_time_s = training_time_s(run.events())
        versions = installed_versions()
        run.write_result(metrics, seed=config.seed, wall_time_s=wall_time_s, versions=versions)
    except Stopped as stop:
        run.event("stopped", signal=signal.Signals(stop.signum).name)
        warn(f"stopped with a checkpoint; {later}")
        raise
    except KeyboardInterrupt:
        run.event("aborted")
        warn(f"aborted without a new checkpoint; {later}")
        raise
    except FarreachError as error:
        with suppress(RunDirectoryError):  # a full disk is the failure, or comes on top of it
            run.event("failed", error=str(error))
        warn(f"the run failed, see below; once that is mended, {later}")
        raise
    _show_result(run, metrics, wall_time_s)


def training_time_s(events: Sequence[Mapping[str, Any]]) -> float:
    """Wall time of a run in s without its pauses; a killed part counts to its last event."""
    total_s = begun_s = last_s = 0.0
    for event in events:
        if event["event"] in ("started", "resumed"):
            total_s += last_s - begun_s
            begun_s = event["time"]
        last_s = event["time"]
    return total_s + last_s - begun_s


def _show_result(run: RunDirectory, metrics: Mapping[str, float], wall_time_s: float) -> None:
    width = max((len(name) for name in metrics), default=0)
    for name in sorted(metrics):
        say(f"  {name:<{width}}  {metrics[name]:.6g}")
    say(f"done in {wall_time_s:,.0f} s; result in {run.place}/{run.result_path.name}")


@contextmanager
def _failures_explained(run: RunDirectory) -> Iterator[None]:
    """Turn whatever goes wrong into one message, with its trace in the run's `error.log`."""
    try:
        yield
    except Stopped:
        raise
    except FarreachError as error:
        # Ray wraps what a remote call raised, and the wrapper's text is the remote trace.
        cause = getattr(error, "cause", None)
        raise (cause if isinstance(cause, FarreachError) else error) from error.__cause__
    except Exception as error:
        raise _unforeseen(run, error) from error
    finally:
        runtime.disconnect()


def _unforeseen(run: RunDirectory, error: Exception) -> FarreachError:
    """The message for an exception that nobody foresaw."""
    summary = traceback.format_exception_only(type(error), error)[-1].strip().splitlines()[0]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunDirectoryError(f"the disk is full ({summary}). Free some space.")
    trace = "".join(traceback.format_exception(error))
    try:
        with open(run.error_path, "a") as file:
            file.write(trace + "\n")
    except OSError:
        return FarreachError(f"unforeseen failure:\n{trace}")
    return FarreachError(f"unforeseen failure: {summary}. The trace is in {run.error_path}")
