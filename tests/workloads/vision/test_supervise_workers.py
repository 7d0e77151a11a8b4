"""Training of classifiers by workers of Ray Train, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach import launch
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[3]
DEBUG = "vision/classify_clipart_debug"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def processes_of(run):
    return {event["rank"]: event["pid"] for event in run.events() if event["event"] == "worker"}


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(path, *settings, config=DEBUG):
    ENVIRONMENT.pop("RAY_AUTH_MODE", None)
    command = [sys.executable, "-m", "farreach", "train", config, "--run-dir", str(path)]
    return subprocess.Popen(
        [*command, "runtime.workers=2", "runtime.cpus=0.5", *settings],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_are_killed_lose_nothing_and_a_stop_leaves_a_checkpoint(tmp_path):
    settings = ["training.epochs=0.4", "training.checkpoint_every_epochs=0.05"]
    whole = start(tmp_path / "whole", *settings)
    output, _ = whole.communicate(timeout=480)
    assert whole.returncode == 0, output
    whole.stdout.close()
    expected = json.loads((tmp_path / "whole/result.json").read_text())

    process = start(tmp_path / "killed", *settings)
    wait_for((tmp_path / "killed/manifest.json").exists, process)
    run = RunDirectory.open(tmp_path / "killed")
    wait_for(lambda: len(list(run.checkpoints.glob("step_*"))) >= 1, process)
    os.kill(processes_of(run)[1], signal.SIGKILL)
    begun = [event for event in run.events() if event["event"] == "worker"]
    wait_for(
        lambda: len([e for e in run.events() if e["event"] == "worker"]) >= len(begun) + 2, process
    )
    # Back again: stop it, and let another process finish.
    time.sleep(2.0)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode in (0, 75), output
    if process.returncode == 75:
        resumed = subprocess.run(
            [sys.executable, "-m", "farreach", "resume", str(run.path)],
            env=ENVIRONMENT,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=480,
            check=False,
        )
        assert resumed.returncode == 0, resumed.stderr
    found = json.loads(run.result_path.read_text())
    for name in ("evaluation/loss", "evaluation/top1"):
        assert found[name] == expected[name]
    updates = [line["step"] for line in read_metrics(run.metrics_path)]
    assert updates[-1] == 53  # 0.4 epochs of 4,235 images, 32 at a time
    assert updates == sorted(updates)  # what was done again is logged once


@pytest.mark.ray
@pytest.mark.slow
def test_split_parameters_learn_as_whole_ones(tmp_path):
    """ResMLP has no statistics of a batch, so two workers are one but for rounding."""
    base = "vision/imagenet_resmlp_s12_debug"
    settings = ["training.epochs=0.1", "mix.mixup=0", "mix.cutmix=0", "backbone.drop_path=0"]
    alone = launch.train(base, settings, run_dir=tmp_path / "alone")
    process = start(tmp_path / "split", *settings, "runtime.sharded=true", config=base)
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 0, output
    found = json.loads((tmp_path / "split/result.json").read_text())
    expected = json.loads(alone.result_path.read_text())["evaluation/loss"]
    assert found["evaluation/loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_worker_cannot_do_is_told_once_and_plainly(tmp_path):
    folder = tmp_path / "images"
    for part, count in (("train", 40), ("val", 2)):
        (folder / part / "a").mkdir(parents=True)
        for number in range(count):
            (folder / part / "a" / f"{number}.png").write_bytes(b"no image")
    relative = os.path.relpath(folder, ROOT)  # workers have a directory of their own
    process = start(tmp_path / "run", f"data.path={relative}")
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 1
    assert ".png: is no image that can be read" in output
    assert "Traceback" not in output
