"""A workload that counts to `steps`; its `mishap` says what goes wrong at step 2."""

import os
import signal
import sys
import time
from typing import ClassVar

from farreach.checkpoint import CheckpointStore
from farreach.config import Config as Base
from farreach.errors import ClusterError, ConfigError
from farreach.stopping import Stopped, StopRequest

MISHAP_STEP = 2


class Config(Base):
    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"steps", "mishap"})

    name: str = "counting"
    seed: int = 0
    steps: int = 3
    """How far to count."""
    lr: float = 0.5
    mishap: str = ""


def check(config):
    if config.steps < 0:
        raise ConfigError("steps counts up: give 0 or more.")
    return ["lr is not the paper's"] if config.lr != 0.5 else []


def run(config, run, checkpoint):
    store = CheckpointStore(run.checkpoints)
    run.kept.mkdir(exist_ok=True)
    (run.kept / "unit.txt").write_text("apples")
    step = 0 if checkpoint is None else checkpoint.part("state")["step"]
    with StopRequest() as stop:
        while step < config.steps:
            step += 1
            store.save({"state": {"step": step}}, step=step, info={}, score=-float(step))
            if step == MISHAP_STEP:
                _happen(config.mishap, run, stop)
            if stop.signum is not None:
                raise Stopped(stop.signum)
    return {"count/steps": float(step), "count/bad": float("nan")}


def _happen(mishap, run, stop):
    if mishap == "bug":
        raise ZeroDivisionError("one by nothing\nand more")
    if mishap == "cluster":
        raise ClusterError("the cluster went home. Call it back.")
    if mishap == "disk":
        raise OSError(28, "No space left on device")
    if mishap in ("SIGTERM", "SIGINT"):
        os.kill(os.getpid(), signal.Signals[mishap])
    if mishap == "SIGINT twice":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    if mishap == "wait":
        (run.path / "waiting").touch()
        end = time.monotonic() + 60
        while stop.signum is None and time.monotonic() < end:
            time.sleep(0.01)


def evaluate(config, run, checkpoint, *, episodes):
    sys.stdout.write("evaluating\n")
    if config.mishap == "evaluation":
        raise ValueError("no")
    assert (run.kept / "unit.txt").read_text() == "apples"
    return {"eval/step": float(checkpoint.step), "eval/episodes": float(episodes or 10)}


def plot(config, run, checkpoint):
    path = run.figures / f"{checkpoint.step}.png"
    path.write_bytes(b"")
    return [path]
