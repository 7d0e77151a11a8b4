"""The real command in a process of its own: stopped, killed, resumed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "farreach", "train", "goals/walk_maze_debug"]
SETTINGS = [
    "runtime.placement=actor", "runtime.mode=async", "runtime.cpus.learner=0.5",
    "training.env_steps=1e9", "training.checkpoint_every_s=1", "evaluation.every_steps=1e8",
]  # fmt: skip
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


def start(path):
    ENVIRONMENT.pop("RAY_AUTH_MODE", None)
    return subprocess.Popen(
        [*COMMAND, "--run-dir", str(path), *SETTINGS],
        env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def running(path):
    """A run that has written checkpoints."""
    process = start(path)
    wait_for(lambda: len(checkpoints(path)) >= 2, 120, process)
    return process


def checkpoints(path):
    return sorted(each.name for each in (path / "checkpoints").glob("step_*"))


def wait_for(condition, timeout_s, process):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def actor_pids(path):
    for event in RunDirectory(path).events():
        if "pids" in event:
            return list(event["pids"].values())
    return []


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def child(parent, program):
    """Pid of the child process that runs `program`."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError):
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
            if int(state[1]) == parent and command.endswith(program):
                return int(folder.name)
    raise AssertionError(f"{parent} has no child {program}")


def expect_no_orphans(pids):
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_leaves_no_orphans_and_sigterm_leaves_a_last_checkpoint(tmp_path):
    path = tmp_path / "run"
    process = running(path)
    pids = actor_pids(path)
    assert len(pids) == 5
    process.kill()
    process.wait()
    process.stdout.close()
    expect_no_orphans(pids)
    saved = checkpoints(path)[-1]

    resumed = subprocess.Popen(
        [sys.executable, "-m", "farreach", "resume", str(path)],
        env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: checkpoints(path)[-1] > saved, 120, resumed)
    before = checkpoints(path)[-1]
    time.sleep(1.0)
    resumed.send_signal(signal.SIGTERM)
    output, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 75, output
    assert "continuing at" in output
    assert checkpoints(path)[-1] > before
    expect_no_orphans([pid for event in RunDirectory(path).events() for pid in
                       event.get("pids", {}).values()])  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_ends_soon_after_its_own_ray(tmp_path):
    path = tmp_path / "run"
    process = running(path)
    os.kill(child(process.pid, "gcs_server"), signal.SIGKILL)
    output, _ = process.communicate(timeout=40)  # Ray's own patience is a minute
    assert process.returncode not in (0, None), output
    expect_no_orphans(actor_pids(path))


@pytest.mark.ray
@pytest.mark.slow
def test_too_few_cpus_are_refused_with_what_to_lower(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--run-dir", str(tmp_path / "run"), "runtime.placement=actor",
         "runtime.rollout_actors=4000"],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "CPUs" in done.stderr
    assert "runtime.rollout_actors" in done.stderr
    assert "Traceback" not in done.stderr
