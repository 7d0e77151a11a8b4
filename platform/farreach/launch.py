"""From a configuration to a trained run: load, check, make the run directory, run the workload."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from farreach import config as configs
from farreach.afterwards import find_checkpoint
from farreach.checkpoint import Checkpoint
from farreach.config import Config
from farreach.console import say, warn
from farreach.errors import ConfigError, FarreachError, RunDirectoryError
from farreach.provenance import here, installed_versions
from farreach.run_places import name_fault
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped
from farreach.unforeseen import explained
from farreach.workload import Workload, workload_named


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
    workload = workload_named(loaded.workload)
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
    if not hasattr(workload_named(loaded.workload), "run"):
        raise ConfigError(
            f"{loaded.path}: describes a data set and trains nothing. Record it with `farreach "
            f"data generate {config_name}`."
        )
    _check_name(loaded)
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
    workload = workload_named(loaded.workload)
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


def check(config_name: str, overrides: Sequence[str] = ()) -> list[str]:
    """Check a configuration without training; the workload's notes.

    Raises:
        FarreachError: what is wrong with the configuration or the environment.
    """
    loaded = configs.load(configs.find(config_name), overrides)
    workload = workload_named(loaded.workload)
    if hasattr(workload, "run"):
        _check_name(loaded)
    return _checked(workload, loaded.config)


def _check_name(loaded: configs.Loaded) -> None:
    """Raise ConfigError for a name that no folder of a run can have."""
    config: Any = loaded.config
    if (fault := name_fault(config.name)) is not None:
        raise ConfigError(f"{loaded.path}: name: {fault}")


def _checked(workload: Workload, config: Any) -> list[str]:
    """What a new run must pass; the workload's notes."""
    notes = workload.check(config)
    check_start = getattr(workload, "check_start", None)
    if check_start is not None:
        check_start(config)
    return notes


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
    say(f"watch     tensorboard --logdir {shlex.quote(str(run.tensorboard))}")
    say(f"stop      Ctrl-C; continue with farreach resume {run.word}")


def _execute(
    workload: Workload, config: Any, run: RunDirectory, checkpoint: Checkpoint | None
) -> None:
    """Run the workload, and write down how that ended."""
    later = f"continue with farreach resume {run.word}"
    try:
        with explained(run):
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
