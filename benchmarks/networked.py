"""The online goals run on machines of their own, and what crosses the network between them.

One machine has driver, learner, reachability, memory and evaluator, each of the others rollouts.
The machines are network namespaces of this one, with addresses, cables and Ray nodes of their own,
so that all bytes are counted by the kernel, with the headers that each packet has on a wire. It
takes root.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import processes
from numpy.typing import NDArray

from farreach import config as configs
from farreach.checkpoint import CheckpointStore
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach.testing import networks
from farreach.testing.machines import Cluster, machines
from farreach_workloads.goals import parts
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.rollout import guide_for_rollouts

CENTRAL = ("learner", "reachability", "memory", "evaluator")
SETTINGS = (
    "runtime.mode=async",
    "runtime.placement=actor",
    "runtime.resources={rollout: {rollout: 1}, "
    + ", ".join(f"{role}: {{learner: 1}}" for role in CENTRAL)
    + "}",
    "training.env_steps=1000000000",
    "training.max_minutes=null",
    "training.checkpoint_every_s=1000000",
    "evaluation.every_steps=1000000000",
    "evaluation.stop_success=null",
)
STARTED_S, STOPPED_S = 300.0, 120.0
LOOK_EVERY_S = 0.05
MEASURED_S = 45.0


class NetworkedRun:
    """A training on a cluster, watched.

    Attributes:
        cluster: its machines.
        run: its folder.
    """

    def __init__(self, cluster: Cluster, run: RunDirectory, driver: subprocess.Popen[Any]) -> None:
        """A training that has begun."""
        self.cluster, self.run, self._driver = cluster, run, driver

    def wait_until_it_trains(self) -> None:
        """Until the learner has taken its first updates."""
        deadline = time.monotonic() + STARTED_S
        while not any("training/updates" in record for record in self._records()):
            if self._driver.poll() is not None or time.monotonic() > deadline:
                sys.exit("the training does not begin; what it said is above")
            time.sleep(0.2)

    def watch(self, seconds: float) -> Series:
        """Look at every line of metrics that is written in so many seconds."""
        deadline = time.monotonic() + seconds
        pids, rows = self._pids(), []
        known, size = len(self._records()), self._size()
        while time.monotonic() < deadline:
            if self._driver.poll() is not None:
                sys.exit("the training has ended before its time; what it said is above")
            if (now := self._size()) != size:
                size, records = now, self._records()
                if any("training/updates" in record for record in records[known:]):
                    rows.append(self._row(records, pids))
                known = len(records)
            time.sleep(LOOK_EVERY_S)
        return Series(rows)

    def stop(self) -> None:
        """Let it write its last checkpoint and end."""
        self._driver.send_signal(signal.SIGTERM)
        self._driver.wait(STOPPED_S)

    def checkpoint(self) -> Mapping[str, Any]:
        """What the newest checkpoint holds, by part."""
        newest = CheckpointStore(self.run.checkpoints).newest()
        assert newest is not None
        return newest.parts()

    def _records(self) -> list[dict[str, Any]]:
        return read_metrics(self.run.metrics_path) if self.run.metrics_path.exists() else []

    def _size(self) -> int:
        path = self.run.metrics_path
        return path.stat().st_size if path.exists() else 0

    def _pids(self) -> dict[str, list[int]]:
        """Role → processes; the rollouts together."""
        found: dict[str, list[int]] = {"driver": [self._driver.pid]}
        for event in self.run.events():
            for role, pid in event.get("pids", {}).items():
                name = role.partition("-")[0]
                found[name] = [*found.get(name, []), pid] if name == "rollout" else [pid]
        return found

    def _row(self, records: Sequence[dict[str, Any]], pids: Mapping[str, list[int]]) -> Any:
        passed = [host.traffic() for host in self.cluster.hosts[1:]]
        newest: dict[str, Any] = {}
        for record in records:
            newest |= record
        return newest | {
            "seconds": time.monotonic(),
            "updates": newest["training/updates"],
            "sent": sum(each.sent for each in passed),
            "received": sum(each.received for each in passed),
            "refreshes": sum("memory/nodes" in record for record in records),
            **{f"cpu/{role}": processes.total_cpu_s(those) for role, those in pids.items()},
        }


class Series:
    """What was seen, line by line: counters since the beginning, and means since the line before.

    `sent` and `received` are bytes of all rollout machines together.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """At least three lines."""
        if len(rows) < 3:
            sys.exit("too few metrics were written; watch for longer")
        self._rows = rows

    def column(self, name: str) -> NDArray[np.float64]:
        """One quantity, line by line."""
        return np.array([row.get(name, np.nan) for row in self._rows], np.float64)

    def per(self, counted: str, unit: str) -> float:
        """How much of one counter comes with one of another, fitted to all lines.

        First and last alone would judge by when fragments happen to arrive.
        """
        x, y = self.column(unit), self.column(counted)
        x, y = x - x.mean(), y - y.mean()
        return float((x * y).sum() / max((x * x).sum(), 1e-12))

    def rises(self, name: str) -> NDArray[np.float64]:
        """By how much a counter has grown from line to line."""
        return np.diff(self.column(name))

    def mean(self, name: str) -> float:
        """Mean of a quantity, NaN if it was not there."""
        values = self.column(name)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


@contextmanager
def networked_run(
    folder: Path, rollout_machines: int, settings: Sequence[str], *, whole_frames: bool = False
) -> Iterator[NetworkedRun]:
    """Start machines and a training on them, and end both afterwards.

    Args:
        folder: of the run.
        rollout_machines: with one rollout each.
        settings: of the configuration, besides those of this file.
        whole_frames: see `networks.network`.
    """
    resources = [{"learner": 10.0}, *rollout_machines * [{"rollout": 1.0}]]
    what = ["train", "goals/walk_maze", f"--run-dir={folder}"]
    words = [*SETTINGS, f"runtime.rollout_actors={rollout_machines}", *settings]
    # On SIGTERM too the machines are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with machines(resources, whole_frames=whole_frames) as cluster:
        # Standard output is for the rows alone.
        driver = cluster.start([sys.executable, "-m", "farreach", *what, *words], stdout=sys.stderr)
        try:
            yield NetworkedRun(cluster, RunDirectory(folder), driver)
        finally:
            driver.kill()
            driver.wait()


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is handed over, as Ray stores it, and steps of the environment.

    Attributes:
        policy: weights of the policy.
        guide: what a rollout reads of network, memory and graph.
        routes: bytes of that for the ways between nodes.
        nodes: of that memory.
        fragment: episodes and walks of one call.
        fragment_steps: of that.
        bare_per_step: observations and, where the policy chose them, actions, as float32, per step.
    """

    policy: int
    guide: int
    routes: int
    nodes: int
    fragment: int
    fragment_steps: int
    bare_per_step: float

    def guide_of(self, nodes: float) -> float:
        """Bytes of a guide to another number of nodes: ways between n², rows of n."""
        share = nodes / self.nodes
        return share**2 * self.routes + share * (self.guide - self.routes)

    @classmethod
    def of(cls, run: NetworkedRun) -> Sizes:
        """As the newest checkpoint of a run has them."""
        config: Any = configs.load(run.run.config_path).config
        learner = parts.make_learner(config)
        state = run.checkpoint()["learner"]
        learner.restore(state)
        policy = learner.policy()
        guide = guide_for_rollouts(Bundle.from_arrays(state["bundle"]), config)
        episodes, walks, info = parts.make_rollout(config, 0, 0).collect(policy, guide, 0)
        steps = info["policy_steps"] + info["walk_steps"]
        spec = make_environment(config.environment, 1).spec
        floats = steps * spec.observation_dim + info["policy_steps"] * spec.action_dim
        return cls(
            stored_bytes(policy),
            stored_bytes(guide),
            len(guide.routes),
            len(guide),
            stored_bytes(episodes) + stored_bytes(walks),
            steps,
            4 * floats / steps,
        )


def stored_bytes(value: Any) -> int:
    """Bytes of a value in Ray's object store: its pickle, and its arrays beside that."""
    arrays: list[pickle.PickleBuffer] = []
    frame = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    return len(frame) + sum(array.raw().nbytes for array in arrays)


def bytes_per_step() -> None:
    """Row `bytes_per_step`: bytes over the network per environment step, over the bare arrays."""
    if reason := networks.obstacle():
        print(f"bytes_per_step: {reason}", file=sys.stderr)
        return
    with (
        tempfile.TemporaryDirectory(prefix="fr") as folder,
        networked_run(Path(folder, "run"), 1, ["reachability.first_pairs=100000"]) as run,
    ):
        run.wait_until_it_trains()
        seen = run.watch(MEASURED_S)
        run.stop()
        sizes = Sizes.of(run)
    sent, received = (seen.per(way, "step") for way in ("sent", "received"))
    measure.row(
        "bytes_per_step",
        sent + received,
        sizes.bare_per_step,
        "bytes per env step",
        (sent + received) / sizes.bare_per_step,
        from_rollouts=round(sent, 1),
        to_rollouts=round(received, 1),
        per_update=round(seen.per("sent", "updates") + seen.per("received", "updates")),
        weights_bytes_per_publish=sizes.policy,
        guide_bytes_per_publish=sizes.guide,
        nodes=sizes.nodes,
        fragment_bytes=sizes.fragment,
        fragment_steps=sizes.fragment_steps,
        env_steps_per_s=round(seen.per("step", "seconds")),
    )
