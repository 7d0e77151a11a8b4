"""`ray job submit` to a cluster that is running already: trained, stopped, continued."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
STARTED_S, STOPPED_S = 120, 180


def free_ports(count):
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture
def dashboard(monkeypatch):
    """Address of the dashboard of a cluster of one node, started as a user starts it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # The agent that takes the jobs has a fixed port by default, which another Ray here may hold.
    gcs, http, agent, client = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", f"--port={gcs}",
             f"--dashboard-port={http}", f"--dashboard-agent-listen-port={agent}",
             f"--ray-client-server-port={client}",
             "--num-cpus=4", "--object-store-memory=300000000",
             f"--temp-dir={folder}", "--disable-usage-stats"],
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        address = f"http://127.0.0.1:{http}"
        try:
            wait_for(lambda: answers(f"{address}/api/version"), STARTED_S, head)
            yield address
        finally:
            head.terminate()
            head.wait(60)


def wait_for(condition, timeout_s, head=None):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert head is None or head.poll() is None, "the head of the cluster is gone"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def submit(address, *command):
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


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_trains_stops_with_a_checkpoint_and_continues(dashboard, tmp_path):
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(dashboard)
    path = tmp_path / "run"

    def status(job, *expected):
        found = client.get_job_status(job)
        assert found != JobStatus.FAILED or JobStatus.FAILED in expected, client.get_job_logs(job)
        return found in expected

    job = submit(
        dashboard, "train", "goals/walk_maze_debug", "--run-dir", str(path),
        "runtime.placement=actor", "runtime.mode=async", "training.env_steps=1e9",
        "evaluation.every_steps=1e8", "training.checkpoint_every_s=1000",
    )  # fmt: skip
    wait_for(lambda: status(job, JobStatus.RUNNING), STARTED_S)
    wait_for(lambda: (path / "metrics.jsonl").exists(), STARTED_S)
    assert client.stop_job(job)
    wait_for(lambda: status(job, JobStatus.STOPPED), STOPPED_S)
    # Stopped by SIGTERM with the time that cluster/runtime_env.yaml gives, not killed after 3 s.
    saved = sorted((path / "checkpoints").glob("step_*"))
    assert saved, client.get_job_logs(job)
    steps = int(saved[-1].name.removeprefix("step_"))

    again = submit(
        dashboard, "resume", str(path), f"training.env_steps={steps + 3000}",
        "evaluation.every_steps=3000",
    )  # fmt: skip
    wait_for(lambda: status(again, JobStatus.SUCCEEDED), STOPPED_S)
    assert json.loads((path / "result.json").read_text())["training/env_steps"] >= steps + 3000
    events = RunDirectory(path).events()
    assert len({pid for event in events for pid in event.get("pids", {}).values()}) == 10
