"""Twenty minutes of training, watched: does memory grow, are objects left behind?

`python benchmarks/long/soak.py` trains the maze with every part in its own actor. It reads the
private memory of the driver and all actors, and the objects in Ray's store, every few seconds.
Growth is judged over the second half, when all rings are full; leaked objects are those that are
still in the store once the run is over and its actors are gone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import secrets
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import ray
from ray._private.internal_api import memory_summary

from farreach import launch
from farreach.rundir import RunDirectory
from farreach.runtime import object_store_bytes

SAMPLE_S = 5.0
# Small rings fill within the first half, so that what grows afterwards should not.
SETTINGS = (
    "runtime.placement=actor",
    "runtime.mode=async",
    "training.env_steps=1000000000",
    "evaluation.stop_success=null",
    "agent.replay_steps=100000",
    "reachability.walk_capacity_steps=100000",
    "memory.capacity=400",
)


def private_bytes(pid: int) -> int:
    """Memory that belongs to one process alone, without what it shares through the store."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no RssAnon")


def stored_objects() -> int:
    """Objects in the store of this machine."""
    text = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"(\d+) objects", text)
    return int(found.group(1)) if found else 0


class Watcher(threading.Thread):
    """Samples (seconds, bytes of driver and actors together, objects) until told to stop."""

    def __init__(self, run: Path) -> None:
        """Watch the actors that the run's events name."""
        super().__init__(daemon=True)
        self._run_path, self._done = run, threading.Event()
        self._begin = time.monotonic()
        self.samples: list[tuple[float, int, int]] = []

    def run(self) -> None:
        """Sample while the run lasts."""
        while not self._done.wait(SAMPLE_S):
            if not (self._run_path / "events.jsonl").exists():
                continue
            pids = {os.getpid()}
            for event in RunDirectory(self._run_path).events():
                pids |= set(event.get("pids", {}).values())
            alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
            total = sum(private_bytes(pid) for pid in alive)
            self.samples.append((time.monotonic() - self._begin, total, stored_objects()))

    def stop(self) -> None:
        """Stop sampling."""
        self._done.set()
        self.join()


def row(name: str, ours: float, limit: float, unit: str, **extra: float) -> None:
    """Print one JSON line; the peer is the limit that is set for it."""
    line = {"name": name, "ours": ours, "peer": limit, "ratio": ours / limit if limit else ours}
    print(json.dumps(line | {"unit": unit} | extra), flush=True)


def main() -> None:
    """Train, watch, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="default: 20")
    minutes = parser.parse_args().minutes
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=max(2, os.cpu_count() or 2),
        object_store_memory=object_store_bytes(),
        log_to_driver=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "soak"
        watcher = Watcher(run)
        watcher.start()
        settings = [*SETTINGS, f"training.max_minutes={minutes}"]
        launch.train("goals/walk_maze", settings, run_dir=run, root=Path(folder))
        watcher.stop()
    gc.collect()
    time.sleep(5)  # the store frees what nobody refers to with a small delay
    leaked = stored_objects()
    ray.shutdown()
    late = [s for s in watcher.samples if s[0] > 30 * minutes]
    if len(late) < 10:
        sys.exit("too few samples in the second half; give it more --minutes")
    seconds, size, objects = np.array(late, np.float64).T
    # A line through all samples: first and last alone would judge by the phase of a checkpoint.
    slope, start = np.polyfit(seconds - seconds[0], size, 1)
    growth = 100 * slope * (seconds[-1] - seconds[0]) / start
    row("memory_growth", growth, 2.0, "% of private memory, second half", gib=start / 2**30)
    row("objects_in_store", objects.max(), 100, "objects, at most", mean=objects.mean())
    row("leaked_objects", leaked, 0, "objects after the run")


if __name__ == "__main__":
    main()
