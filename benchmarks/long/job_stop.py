"""How soon after `ray job stop` is the last checkpoint of a training on disk?

One cluster of this machine, one run of the maze with every part in its own actor, overlapped. It is
submitted, stopped at a random moment, and submitted again to go on from there, `--trials` times;
`--config` stops another training, such as `vision/classify_clipart_debug runtime.workers=1
training.epochs=1000000`. The clock starts with the request that `ray job stop` makes and ends when
the checkpoint has its final name, by which all of it is synced. The peer is the 10 s that the
design allows, and the ratio is the peer over the slowest trial; above 1 is in our favour. A trial
without a checkpoint, or whose checkpoint the next job does not go on from, ends the measurement.
`python benchmarks/long/job_stop.py` takes about half a minute per trial.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported

from farreach import launch
from farreach.cluster import jobs
from farreach.cluster.dashboard import Dashboard
from farreach.cluster.shipping import runtime_env
from farreach.rundir import RunDirectory
from farreach.testing.heads import ray_head
from farreach.yaml_source import to_text

FLOOR_S = 10.0
STARTED_S, STOPPED_S = 180.0, 130.0
# Stopped up to so long after training has begun.
LATEST_S = 3.0
MAZE = (
    "goals/walk_maze_debug",
    "runtime.placement=actor",
    "runtime.mode=async",
    "training.env_steps=1000000000",
    "training.checkpoint_every_s=100000",
    "evaluation.every_steps=100000000",
)


def saved(run: RunDirectory) -> dict[str, int]:
    """Checkpoints that are complete, with the time of each in ns."""
    folders = run.checkpoints.glob("step_" + "[0-9]" * 12)
    return {folder.name: folder.stat().st_mtime_ns for folder in folders}


def step_of(checkpoints: Iterable[str]) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    return max((int(name.removeprefix("step_")) for name in checkpoints), default=0)


def trains(run: RunDirectory) -> bool:
    """Whether two steps were logged that are later than that of the newest checkpoint."""
    if not run.metrics_path.exists():
        return False
    lines = run.metrics_path.read_bytes().split(b"\n")[:-1]
    newest = step_of(saved(run))
    return len({step for line in lines if (step := json.loads(line)["step"]) > newest}) > 1


def wait_until(condition: Callable[[], Any], every_s: float, timeout_s: float, what: str) -> None:
    """Look now and then; leave with a message if it never holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(every_s)


def trial(dashboard: Dashboard, order: jobs.Order, pause_s: float) -> tuple[float, float]:
    """Begin the run or go on with it, stop it; s until the checkpoint, s until the job's end."""
    assert order.run_dir is not None
    run = RunDirectory(Path(order.run_dir))
    last = step_of(saved(run))
    job = jobs.submit(dashboard, order)

    def status() -> str:
        return str(dashboard.job(job.submission_id)["status"])

    def begun() -> bool:
        if status() in jobs.ENDED:
            sys.exit(dashboard.job(job.submission_id)["message"])
        return trains(run)

    wait_until(begun, 0.2, STARTED_S, "the beginning of training")
    resumed = [event["step"] for event in run.events() if event["event"] == "resumed"]
    if last and resumed[-1] != last:
        sys.exit(f"{job.submission_id} did not go on from step {last}")
    time.sleep(pause_s)
    before = saved(run)
    begin = time.monotonic()
    dashboard.stop(job.submission_id)
    wait_until(lambda: saved(run).items() - before.items(), 0.005, STOPPED_S, "a checkpoint")
    written_s = time.monotonic() - begin
    wait_until(lambda: status() == "STOPPED", 0.05, STOPPED_S, "the end of the job")
    ended_s = time.monotonic() - begin
    if run.events()[-1]["event"] != "stopped":
        sys.exit(f"{job.submission_id} ended otherwise: {run.events()[-1]}")
    return written_s, ended_s


def main() -> None:
    """Stop and continue, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=100, help="default: 100")
    parser.add_argument("--config", nargs="+", default=list(MAZE), metavar="WORD")
    options = parser.parse_args()
    loaded = launch.trainable(options.config[0], options.config[1:])
    moments = random.Random(0)
    written, ended = [], []
    with tempfile.TemporaryDirectory(prefix="fr") as folder, ray_head() as address:
        path = Path(folder) / "run"
        order = jobs.Order("job-stop", runtime_env(to_text(loaded.raw)), run_dir=str(path))
        for number in range(options.trials):
            written_s, ended_s = trial(Dashboard(address), order, moments.uniform(0, LATEST_S))
            written.append(written_s)
            ended.append(ended_s)
            step = step_of(saved(RunDirectory(path)))
            print(f"{number}: {written_s:.2f} s, {ended_s:.2f} s, {step:,}", file=sys.stderr)
    line = {
        "name": "job_stop",
        "ours": round(max(written), 3),
        "peer": FLOOR_S,
        "ratio": round(FLOOR_S / max(written), 2),
        "unit": "s from stop to checkpoint, slowest trial",
        "median": round(statistics.median(written), 3),
        "median_to_end": round(statistics.median(ended), 3),
        "trials": options.trials,
        "within": sum(seconds <= FLOOR_S for seconds in written),
        "config": loaded.path.stem,
        "load_average_1min": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
