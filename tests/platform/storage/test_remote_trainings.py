"""Whole trainings whose runs are at a URI: goals in one process, Ray Train on several nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from farreach import launch
from farreach.storage.remote import Remote

pytestmark = [pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def process(arguments, cache):
    environment = {
        **os.environ,
        "FARREACH_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("platform", "workloads", ".")),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return subprocess.Popen([sys.executable, *arguments], env=environment, cwd=ROOT)


def until(is_so, running):
    end = time.monotonic() + 240
    while not is_so():
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)


def steps_at(remote):
    names = [name for name in remote.list("checkpoints") if name.endswith("manifest.json")]
    folders = [name.split("/")[1].removesuffix(".old") for name in names]
    return sorted({int(folder.removeprefix("step_")) for folder in folders})


def events_at(remote, kind):
    events = map(json.loads, remote.read("events.jsonl").splitlines())
    return [event for event in events if event["event"] == kind]


def result_of(remote):
    result = json.loads(remote.read("result.json"))
    timed = ("wall_time_s", "versions", "training/minutes")
    return {name: value for name, value in result.items() if name not in timed}


def test_goals_that_are_killed_go_on_from_the_uri_to_the_same_end(s3, tmp_path, monkeypatch):
    settings = ["training.env_steps=4000", "training.checkpoint_every_steps=800"]
    settings += ["evaluation.every_steps=2000", "evaluation.episodes=10"]
    remote = Remote(f"{s3}/runs/walk")
    command = ["-m", "farreach", "train", "goals/walk_maze_debug", *settings]
    command += ["--run-dir", remote.uri, "--continue"]
    killed = process(command, tmp_path / "lost")
    until(lambda: steps_at(remote)[-1:] >= [2400], killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reached = steps_at(remote)[-1]
    shutil.rmtree(tmp_path / "lost")
    monkeypatch.setattr("farreach.storage.lease.STALE_S", 3.0)
    launch.train("goals/walk_maze_debug", settings, run_dir=remote.uri, go_on=True)
    assert [event["step"] for event in events_at(remote, "resumed")] == [reached]
    undisturbed = launch.train("goals/walk_maze_debug", settings, run_dir=tmp_path / "whole")
    expected = {k: v for k, v in undisturbed.read_result().items() if k in result_of(remote)}
    assert result_of(remote) == expected
    assert [name for name in remote.list() if name.startswith("tensorboard/events")]


@pytest.mark.ray
def test_workers_of_machines_with_caches_of_their_own_go_on_with_a_run_at_a_uri(s3, tmp_path):
    config = tmp_path / "regression.yaml"
    content = {
        "workload": "tests.platform.learn.regression_run",
        "name": "regression",
        "training": {"epochs": 2, "batch": 10, "lr": 0.01, "checkpoint_every_epochs": 1.0},
    }
    config.write_text(yaml.safe_dump(content))
    remote = Remote(f"{s3}/runs/regression")
    launch.train(str(config), run_dir=remote.uri)
    script = str(Path(__file__).with_name("three_nodes.py"))
    more = ["training.epochs=4", "runtime={workers: 2, evaluators: 1, cpus: 1.0}"]
    running = process([script, str(tmp_path), remote.uri, *more], tmp_path / "driver")
    assert running.wait(400) == 0
    assert [event["step"] for event in events_at(remote, "resumed")] == [10]
    # The same numbers as in one process without any storage.
    launch.train(str(config), run_dir=tmp_path / "inside")
    inside = launch.resume(tmp_path / "inside", ["training.epochs=4"]).read_result()
    result = result_of(remote)
    assert result["training/updates"] == inside["training/updates"] == 20
    assert result["evaluation/top1"] == pytest.approx(inside["evaluation/top1"], rel=1e-5)
    caches = [tmp_path / str(number) for number in range(3)]
    copies = [list(cache.glob("workers/*/checkpoints/step_*")) for cache in caches]
    assert all(copies)  # two workers that began with one, and the evaluator
    assert steps_at(remote)[-1] == 20
    assert remote.read("checkpoints/step_000000000020/score.json") is not None
    assert not [name for name in remote.list() if name.endswith("/held")]
