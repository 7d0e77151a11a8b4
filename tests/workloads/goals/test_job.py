"""Jobs on a cluster that is running already: by Ray's own command, and by `farreach submit`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach.rundir import RunDirectory
from farreach.testing.heads import ray_head

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
STARTED_S, STOPPED_S = 120, 180
SETTINGS = ("runtime.placement=actor", "runtime.mode=async", "training.checkpoint_every_s=1000")


@pytest.fixture
def dashboard(monkeypatch):
    """Address of the dashboard of a cluster of one node."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_head() as address:
        yield address


def wait_for(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def ray_job_submit(address, *command):
    """The id of a job that was submitted as the README says."""
    deadline = time.monotonic() + STARTED_S
    while True:
        done = subprocess.run(
            [BIN / "ray", "job", "submit", "--address", address, "--no-wait", "--working-dir", ".",
             "--runtime-env", "cluster/runtime_env.yaml", "--",
             "python", "-m", "farreach", *command],
            cwd=ROOT, capture_output=True, text=True, timeout=STARTED_S,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout.split("ray job stop ")[1].split()[0].split("\x1b")[0]
        # The dashboard answers some seconds before the agent that takes jobs has come up.
        assert "No available agent" in done.stdout + done.stderr, done.stdout + done.stderr
        assert time.monotonic() < deadline
        time.sleep(1.0)


def farreach_submit(address, folder, *words):
    """A `farreach submit` of a clone from another folder, and what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "farreach", "submit", *words, "--address", address],
        cwd=folder, capture_output=True, text=True, timeout=STARTED_S + STOPPED_S,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}"},
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_stops_with_a_checkpoint_and_a_second_one_continues(dashboard, tmp_path):
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(dashboard)
    path = tmp_path / "run"

    def status(job, expected):
        found = client.get_job_status(job)
        assert found != JobStatus.FAILED, client.get_job_logs(job)
        return found == expected

    job = ray_job_submit(
        dashboard, "train", "goals/walk_maze_debug", "--run-dir", str(path), "--continue",
        *SETTINGS, "training.env_steps=1e9", "evaluation.every_steps=1e8",
    )  # fmt: skip
    wait_for(lambda: status(job, JobStatus.RUNNING), STARTED_S)
    wait_for(lambda: (path / "metrics.jsonl").exists(), STARTED_S)
    assert client.stop_job(job)
    wait_for(lambda: status(job, JobStatus.STOPPED), STOPPED_S)
    # Stopped by SIGTERM with the time that cluster/runtime_env.yaml gives, not killed after 3 s.
    saved = sorted((path / "checkpoints").glob("step_*"))
    assert saved, client.get_job_logs(job)
    steps = int(saved[-1].name.removeprefix("step_"))

    again = farreach_submit(
        dashboard, tmp_path, "goals/walk_maze_debug", "--run-dir", str(path),
        *SETTINGS, f"training.env_steps={steps + 3000}", "evaluation.every_steps=3000",
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"sends     {ROOT}, " in again.stdout
    assert f"resume    step {steps:,}" in again.stdout
    assert again.stderr.endswith(f"walk_maze_debug-1 is done; its run is {path}\n")
    assert json.loads((path / "result.json").read_text())["training/env_steps"] >= steps + 3000
    events = RunDirectory(path).events()
    assert len({pid for event in events for pid in event.get("pids", {}).values()}) == 10
