"""Ray's own autoscaler with pretended machines: it grows, it shrinks, and runs train on it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.cluster import control
from farreach.cluster.demand import total
from farreach.cluster.fake import HEAD, FakeCluster, NodeType
from farreach.rundir import RunDirectory
from farreach_workloads.goals import online

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 240.0
ROLLOUT = NodeType({"CPU": 1, "rollout": 1}, most=2)
DEBUG = ["runtime.placement=actor", "runtime.resources={rollout: {rollout: 1}}"]

HOLDER = """
import sys
import ray

class Holder:
    def here(self):
        return True

ray.init(sys.argv[1], log_to_driver=False)
kind = ray.remote(num_cpus=1, resources={"rollout": 1})(Holder)
holders = [kind.remote() for _ in range(int(sys.argv[2]))]
ray.get([holder.here.remote() for holder in holders])
print("held", flush=True)
sys.stdin.readline()
"""

LATE = """
import sys
from pathlib import Path

from farreach.cli.main import main
from farreach_workloads.goals import parts
from farreach_workloads.goals.coordinator import Coordinator

parts.LATE_S = 1.0
Coordinator._finished = lambda self: Path(sys.argv[1]).exists()
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="module")
def cluster():
    """A head of two CPUs, and up to two machines for a rollout each; autoscaler version 2."""
    before = os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with FakeCluster({"rollout": ROLLOUT}, {"CPU": 2}, idle_s=2.0) as made:
        yield made
    os.environ["RAY_AUTH_MODE"] = before


@contextlib.contextmanager
def python(script, *arguments, address="", **options):
    """A program with a Ray of its own, or the one at an address; killed if it is left early."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = f"{ROOT / 'platform'}{os.pathsep}{ROOT / 'workloads'}"
    environment |= {"RAY_ADDRESS": address} if address else {}
    command = [sys.executable, *(["-c", script] if script else ["-m", "farreach"])]
    process = subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, text=True, **options
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def held(address, count):
    """So many rollouts' places are taken inside of it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with python(HOLDER, address, count, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()
        process.wait(TIMEOUT_S)


def until(condition, process):
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_version_1_starts_machines_on_demand_removes_idle_ones_and_leaves_nothing():
    with FakeCluster({"rollout": ROLLOUT}, {"CPU": 1}, version=1, idle_s=2.0) as made:
        assert [node.kind for node in made.nodes()] == [HEAD]
        with held(made.address, 2):
            assert made.counts() == {"rollout": 2}
            assert made.nodes()[1].resources["rollout"] == 1
            assert made.nodes()[1].free.get("rollout", 0) == 0
            pids = made.processes()
        made.wait_for({}, TIMEOUT_S)
    assert made.processes() == []
    assert len(pids) > 15
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_in_lockstep_ends_the_same_on_machines_that_come_on_demand(cluster, tmp_path):
    small = ["training.env_steps=4800", "evaluation.episodes=10"]
    launch.train("goals/walk_maze_debug", small, run_dir=tmp_path / "inline")
    cluster.wait_for({}, TIMEOUT_S)
    words = [*small, *DEBUG, "--run-dir", tmp_path / "there"]
    with python("", "train", "goals/walk_maze_debug", *words, address=cluster.address) as process:
        assert process.wait(TIMEOUT_S) == 0
    runs = [RunDirectory.open(tmp_path / name) for name in ("inline", "there")]
    (places,) = [event["node_ids"] for event in runs[1].events() if event["event"] == "actors"]
    assert places["learner"] != places["rollout-0"]
    inline, there = (
        {key: value for key, value in run.read_result().items() if "/" in key} for run in runs
    )
    del inline["training/minutes"], there["training/minutes"]
    assert there == inline
    weights = [
        CheckpointStore(run.checkpoints).newest().part("learner")["agent"]["actor"] for run in runs
    ]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


@pytest.mark.ray
@pytest.mark.slow
def test_an_overlapped_run_begins_with_one_rollout_and_takes_in_another_that_comes_late(
    cluster, tmp_path
):
    overrides = [
        *DEBUG, "runtime.mode=async", "runtime.rollout_actors=2", "training.env_steps=1e8",
        "evaluation.every_steps=1e8", "training.figures_every_steps=1e8",
        "training.checkpoint_every_s=1", "evaluation.episodes=10",
    ]  # fmt: skip
    enough, path = tmp_path / "enough", tmp_path / "run"
    words = [enough, "train", "goals/walk_maze_debug", *overrides, "--run-dir", path]

    def rollouts():
        """Rollouts that were noted down as started, each time some were."""
        file = path / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        events = [json.loads(line) for line in lines]
        noted = [set(event["pids"]) for event in events if event["event"] == "actors"]
        return [{role for role in roles if role.startswith("rollout")} for roles in noted]

    def last_parts():
        checkpoint = CheckpointStore(path / "checkpoints").newest()
        return set() if checkpoint is None else set(checkpoint.parts())

    with contextlib.ExitStack() as stack:
        other = stack.enter_context(contextlib.ExitStack())
        other.enter_context(held(cluster.address, 1))
        process = stack.enter_context(python(LATE, *words, address=cluster.address))
        (first,) = until(rollouts, process)
        assert len(first) == 1
        until(lambda: first <= last_parts(), process)
        other.close()
        until(lambda: {"rollout-0", "rollout-1"} <= last_parts(), process)
        config = configs.load(path / "config.yaml").config
        asked = total(demand.asked for demand in online.demand(config) for _ in range(demand.count))
        assert reserved(cluster) == pytest.approx(asked)
        enough.touch()
        assert process.wait(TIMEOUT_S) == 0
    assert rollouts()[1:] == [{"rollout-0", "rollout-1"} - first]
    assert (path / "result.json").exists()


def reserved(cluster):
    """What Ray itself says is in use, of CPUs, GPUs and the cluster's own resources."""
    nodes = control.state(control.client(cluster.address)).nodes
    used = {
        name: sum(node.resources.get(name, 0) - node.free.get(name, 0) for node in nodes)
        for name in ("CPU", "GPU", "rollout")
    }
    return {name: amount for name, amount in used.items() if amount}
