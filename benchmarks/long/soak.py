"""Half an hour of training each way, watched: does memory grow, is anything left behind?

`python benchmarks/long/soak.py` trains the maze with every part in an actor of its own, and then an
image classifier in a Ray Train worker, each for `--minutes`. Every few seconds it looks at the
private memory and the open files of this process and all below it, Ray's own among them, and at
the objects in Ray's store.

`soak_memory` is the growth between minute 5 and the end, by a line through all samples, of those
processes that live through it, in % of what they have together; of both runs the worse. Its peer is
the limit that is set for it. `soak_leaks` counts objects that are in the store once a run is over
and its actors are gone, processes of a run that outlive it, and processes that outlive Ray.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import gc
import re
import select
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import measure
import numpy as np
import processes
import ray
from ray._private.internal_api import memory_summary

from farreach import launch, runtime
from farreach.rundir import RunDirectory

SAMPLE_S = 5.0
FROM_MINUTE = 5.0
LIMIT_PERCENT = 2.0
# How long processes that are told to end may take, and the store to free what nobody refers to.
ENDED_S, FREED_S = 60.0, 5.0
SHOWN = 5
RUNS = {
    # Small rings fill within the first minutes, so that what grows afterwards should not.
    "goals": (
        "goals/walk_maze",
        "runtime.placement=actor",
        "runtime.mode=async",
        "training.env_steps=1000000000",
        "evaluation.stop_success=null",
        "agent.replay_steps=100000",
        "reachability.walk_capacity_steps=100000",
        "memory.capacity=400",
    ),
    "learn": (
        "vision/classify_clipart_debug",
        "runtime.workers=1",
        "training.epochs=1000000",
        "training.evaluate_every_epochs=2",
        "training.checkpoint_every_epochs=2",
    ),
}


@dataclass(frozen=True)
class Sample:
    """What was there at one moment: seconds, and bytes and open files by process."""

    seconds: float
    private: dict[int, int]
    files: dict[int, int]
    objects: int


class Watcher(threading.Thread):
    """Looks at this process and all below it until told to stop.

    Attributes:
        samples: in order.
        names: of the processes that were seen.
    """

    def __init__(self) -> None:
        """Look from `start` on."""
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._begun = time.monotonic()
        self.samples: list[Sample] = []
        self.names: dict[int, str] = {}
        self._handles: dict[int, int] = {}

    def run(self) -> None:
        """Look every few seconds."""
        while not self._over.wait(SAMPLE_S):
            pids = processes.family(os.getpid())
            private = {pid: processes.private_bytes(pid) for pid in pids}
            files = {pid: processes.open_files(pid) for pid in pids}
            for pid in pids:
                self._know(pid)
            seconds = time.monotonic() - self._begun
            self.samples.append(Sample(seconds, private, files, stored_objects()))

    def _know(self, pid: int) -> None:
        # Workers of Ray are called after what they do, once they do it.
        self.names[pid] = processes.name(pid)
        if pid not in self._handles and pid != os.getpid():
            with suppress(ProcessLookupError):
                self._handles[pid] = os.pidfd_open(pid)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()

    def outliving(self, pids: Iterable[int] | None = None) -> list[str]:
        """Which of these still run, or of all that were seen; they have some time to end."""
        asked = self._handles if pids is None else pids
        waited = {self._handles[pid]: pid for pid in asked if pid in self._handles}
        deadline = time.monotonic() + ENDED_S
        while waited and time.monotonic() < deadline:
            # Handles of processes that have ended are ready to be read.
            for handle in select.select(list(waited), [], [], 0.5)[0]:
                del waited[handle]
        return [f"{self.names[pid]} ({pid})" for pid in waited.values()]


def stored_objects() -> int:
    """Objects in the store of this machine."""
    text = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"(\d+) objects", text)
    return int(found.group(1)) if found else 0


@dataclass(frozen=True)
class Growth:
    """What became more between the first minutes and the end.

    Attributes:
        percent: of the memory of all processes that live through it.
        gib: which that is at the beginning of it.
        mb_per_minute: of the processes that grow most, by name.
        files_per_hour: open files of all of these.
        processes: (at the beginning of it, at the end).
        objects: in the store, at most.
    """

    percent: float
    gib: float
    mb_per_minute: dict[str, float]
    files_per_hour: float
    processes: tuple[int, int]
    objects: int

    @classmethod
    def of(cls, watcher: Watcher, minutes: float) -> Growth:
        """Of a run that took so long."""
        begin = 60 * min(FROM_MINUTE, minutes / 2)
        late = [sample for sample in watcher.samples if sample.seconds > begin]
        if len(late) < 10:
            sys.exit("too few samples; give it more --minutes")
        pids = set.intersection(*(set(sample.private) for sample in late))
        seconds = np.array([sample.seconds for sample in late])
        private = np.array([[sample.private[pid] for pid in pids] for sample in late], np.float64)
        files = np.array([[sample.files[pid] for pid in pids] for sample in late], np.float64)
        # A line through all samples: first and last alone would judge by the phase of a checkpoint.
        slope, start = np.polyfit(seconds - seconds[0], private.sum(axis=1), 1)
        slopes = Counter[str]()
        for pid, one in zip(pids, np.polyfit(seconds, private, 1)[0], strict=True):
            slopes[watcher.names[pid]] += 60 * one / 1e6
        return cls(
            100 * slope * (seconds[-1] - seconds[0]) / start,
            start / 2**30,
            {name: round(value, 3) for name, value in slopes.most_common(SHOWN)},
            round(3600 * float(np.polyfit(seconds, files.sum(axis=1), 1)[0]), 2),
            (len(late[0].private), len(late[-1].private)),
            max(sample.objects for sample in late),
        )


def soak(config: str, settings: Iterable[str], minutes: float) -> tuple[Growth, int, list[str]]:
    """Train for so long: what grew, objects left in the store, processes that outlive the run."""
    watcher = Watcher()
    watcher.start()
    with tempfile.TemporaryDirectory(prefix="fr") as folder:
        path = Path(folder) / "run"
        words = [*settings, f"training.max_minutes={minutes}"]
        with redirect_stdout(sys.stderr):  # which is for the rows alone
            launch.train(config, words, run_dir=path, root=Path(folder))
        watcher.stop()
        events = RunDirectory(path).events()
        own = {pid for event in events for pid in event.get("pids", {}).values()}
        own |= {event["pid"] for event in events if event["event"] in ("worker", "evaluator")}
    left = watcher.outliving(own)
    gc.collect()
    time.sleep(FREED_S)
    return Growth.of(watcher, minutes), stored_objects(), left


def main() -> None:
    """Train, watch, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="each run (default: 30)")
    parser.add_argument("--only", choices=RUNS, help="one run alone")
    options = parser.parse_args()
    whole = Watcher()
    grown, objects, left = {}, {}, []
    for name, value in (runtime.ENVIRONMENT | runtime.LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(4, os.cpu_count() or 4),
            object_store_memory=runtime.object_store_bytes(),
            log_to_driver=False,
            runtime_env=runtime.local_runtime_env(),
            _temp_dir=folder,
        )
        whole.start()
        try:
            for name in [options.only] if options.only else RUNS:
                config, *settings = RUNS[name]
                grown[name], objects[name], outlived = soak(config, settings, options.minutes)
                left += outlived
            whole.stop()
        finally:
            ray.shutdown()
    left += whole.outliving()
    worst = max(grown.values(), key=lambda growth: growth.percent)
    details = {name: vars(growth) for name, growth in grown.items()}
    measure.row(
        "soak_memory", worst.percent, LIMIT_PERCENT, "% of private memory",
        worst.percent / LIMIT_PERCENT, minutes=options.minutes, runs=details,
    )  # fmt: skip
    leaks = sum(objects.values()) + len(left)
    measure.row(
        "soak_leaks", leaks, 0, "objects and processes", leaks, objects=objects, processes=left
    )


if __name__ == "__main__":
    main()
