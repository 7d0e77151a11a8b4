"""What the loop of data-parallel learners adds to a bare loop, in a Ray Train worker.

One worker trains a network, reporting every two seconds; the same process then takes the same
updates in a bare loop. `train_loop` has one of which 40 updates take a second, still fewer than any
image encoder's; `train_loop_small` one of 200 a second. The ratio is of the CPU seconds per update,
ours over the bare ones: smaller is better. `first_step` is the wall time from the start of a run to
its first update, with and without Ray Train. `start_here` and `start_job` begin with the command:
of `farreach train` without Ray, and of `farreach submit` to a cluster that has run such a job
before (with a worker of Ray Train); the peer is a bare program of PyTorch, from its start to its
first update. `start_retrieval` is from the command to the end of the first update of `farreach
train retrieval/debian`, its text tokenised before, with a worker of Ray Train; the peer is the
same without Ray. `python benchmarks/overhead.py [ROW …]` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import torch
import yaml
from torch import Tensor, nn

from farreach import config as configs
from farreach.actors.chaos import ChaosConfig
from farreach.checkpoint import Checkpoint
from farreach.config import Config as Base
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.learn.task import Batch, Pixels
from farreach.learn.trainer import fit
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach.testing.heads import ray_head

SAMPLES, WIDTH, BATCH = 4096, 256, 256
# Row → width of the network, and updates between two looks at the clock.
SIZES = {"train_loop": (1536, 80), "train_loop_small": (384, 400)}
ROUNDS, STARTS = 4, 3
RATE = "throughput/updates_per_s"
BARE = """
import json, sys, time
import torch
from torch import nn

model = nn.Sequential(nn.Linear(256, 384), nn.ReLU(), nn.Linear(384, 10))
optimizer = torch.optim.AdamW(model.parameters())
x, y = torch.randn(256, 256), torch.randint(0, 10, (256,))
first = time.time()
nn.functional.cross_entropy(model(x), y).backward()
optimizer.step()
open(sys.argv[1], "w").write(json.dumps({"first": first}))
"""


class Config(Base):
    """What the loop wants of a run."""

    name: str = "overhead"
    seed: int = 0
    out: str = ""
    hidden: int = 384
    round: int = 400
    training: LoopConfig = LoopConfig(
        batch=BATCH, evaluate_every_epochs=1000, checkpoint_every_epochs=1000
    )
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()


class Numbers:
    """Samples in memory."""

    def __init__(self) -> None:
        """Made up."""
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn(SAMPLES, WIDTH, generator=generator)
        self._y = torch.randint(0, 10, (SAMPLES,), generator=generator)

    def __len__(self) -> int:
        """How many."""
        return SAMPLES

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Some of them."""
        index = torch.from_numpy(rows)
        return {"x": self._x[index], "y": self._y[index]}


class Task:
    """A small classifier that looks at the clock."""

    score = "evaluation/none"

    def __init__(self, out: str, hidden: int, round_length: int) -> None:
        """Write the times to `out`."""
        self._out, self._round = out, round_length
        self.model = nn.Sequential(
            nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 10),
        )  # fmt: skip
        self.data = Numbers()
        self._times: list[float] = []
        self._first: float | None = None

    companions = ()

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy."""
        if self._first is None:
            self._first = time.time()
        if step % self._round == 0:
            self._times.append(time.process_time())
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"]), {}

    def before_update(self, step: int) -> None:
        """All gradients count."""

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """At the end: the same updates without the loop, and write both times down."""
        ours = [
            (b - a) / self._round for a, b in zip(self._times[1:-1], self._times[2:], strict=True)
        ]
        with torch.enable_grad():
            bare = [self._bare() for _ in range(3)]
        content = {"ours": ours, "bare": bare, "first": self._first}
        Path(self._out).write_text(json.dumps(content))
        return {}

    def _bare(self) -> float:
        optimizer = self.optimizer()
        generator = torch.Generator().manual_seed(0)
        begun = time.process_time()
        for _ in range(self._round):
            rows = torch.randint(0, SAMPLES, (BATCH,), generator=generator).numpy()
            batch = self.data.batch(rows, rows)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(self.model(batch["x"]), batch["y"]).backward()
            optimizer.step()
        return (time.process_time() - begun) / self._round

    def pictures(self) -> dict[str, Pixels]:
        """None."""
        return {}

    def remarks(self) -> list[str]:
        """None."""
        return []

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def make_task(config: Config) -> Task:
    """What a worker trains."""
    return Task(config.out, config.hidden, config.round)


def times_of(workers: int, size: tuple[int, int]) -> tuple[dict[str, Any], float]:
    """What a run wrote down, and how long it took to its first update."""
    import overhead  # by the name that workers know it by

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "times.json")
        hidden, length = size
        epochs = ROUNDS * length * BATCH / SAMPLES
        training = overhead.Config().training.model_copy(update={"epochs": epochs})
        config = overhead.Config(
            out=str(out),
            hidden=hidden,
            round=length,
            training=training,
            runtime={"workers": workers},
        )
        text = configs.dump(config, "overhead")
        run = RunDirectory.create(Path(folder), "overhead", text, sys.argv, 0)
        begun = time.time()
        fit(config, run, None, overhead.make_task)
        content = json.loads(out.read_text())
        return content, content["first"] - begun


def check(config: Config) -> list[str]:
    """Nothing differs from a paper."""
    return []


def run(config: Config, run: RunDirectory, checkpoint: Checkpoint | None) -> dict[str, float]:
    """Train it as a workload."""
    return fit(config, run, checkpoint, make_task)


def started(command: Sequence[str], times: Path) -> float:
    """Seconds from the start of a program to its first update, of which it writes down the time."""
    times.unlink(missing_ok=True)
    begun = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads(times.read_text())["first"]) - begun


def starts(here: str) -> None:
    """Rows `start_here` and `start_job`."""
    with tempfile.TemporaryDirectory() as name, ray_head() as address:
        folder = Path(name)
        times, file, bare = folder / "times.json", folder / "overhead.yaml", folder / "bare.py"
        content = {"workload": "overhead", "out": str(times), "hidden": 384, "round": 2}
        content["training"] = {"batch": BATCH, "epochs": 10 * BATCH / SAMPLES}
        file.write_text(yaml.safe_dump(content))
        bare.write_text(BARE)
        farreach = [sys.executable, "-m", "farreach"]
        own = [*farreach, "train", str(file), "--root", name]
        job = [*farreach, "submit", str(file), "--working-dir", here, "--address", address]
        job += ["--root", name, "runtime.workers=1"]
        started(job, times)
        found = [
            statistics.median(started(command, times) for _ in range(STARTS))
            for command in (own, job, [sys.executable, str(bare), str(times)])
        ]
    for row, seconds in zip(("start_here", "start_job"), found[:2], strict=True):
        measure.row(row, seconds, found[2], "wall seconds", seconds / found[2])


def retrieval_start(folder: Path, workers: int) -> float:
    """Seconds from the command to the end of the first update of dense retrieval."""
    run = folder / f"run-{secrets.token_hex(4)}"
    settings = ["training.epochs=0.03", f"data.cache={folder}", f"runtime.workers={workers}"]
    command = [sys.executable, "-m", "farreach", "train", "retrieval/debian", *settings]
    begun = time.time()
    subprocess.run([*command, "--run-dir", str(run)], check=True, stdout=subprocess.DEVNULL)
    first = next(line for line in read_metrics(RunDirectory(run).metrics_path) if RATE in line)
    return float(first["time"] - (first["step"] - 1) / first[RATE] - begun)


def retrieval_starts() -> None:
    """Row `start_retrieval`."""
    with tempfile.TemporaryDirectory() as name:
        retrieval_start(Path(name), 0)  # tokenises
        ours, alone = (
            statistics.median(retrieval_start(Path(name), workers) for _ in range(STARTS))
            for workers in (1, 0)
        )
    measure.row("start_retrieval", ours, alone, "wall seconds", ours / alone)


def main() -> None:
    """Print the rows that are asked for, or all."""
    known = [*SIZES, "first_step", "start_here", "start_job", "start_retrieval"]
    asked = measure.rows_asked(__doc__, known)
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    for name in [name for name in SIZES if name in asked]:
        content, _ = times_of(1, SIZES[name])
        ours, bare = (statistics.median(content[key]) for key in ("ours", "bare"))
        measure.row(name, ours, bare, "CPU seconds per update", ours / bare)
    if "first_step" in asked:
        with_ray_s, alone_s = (times_of(workers, (384, 40))[1] for workers in (1, 0))
        measure.row("first_step", with_ray_s, alone_s, "wall seconds", with_ray_s / alone_s)
    if {"start_here", "start_job"} & set(asked):
        starts(here)
    if "start_retrieval" in asked:
        retrieval_starts()


if __name__ == "__main__":
    main()
