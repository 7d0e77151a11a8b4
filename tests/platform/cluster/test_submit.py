"""`farreach submit` to a cluster that wants a token: begun, stopped, continued, refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from farreach import provenance
from farreach.rundir import RunDirectory
from farreach.testing.heads import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SOURCES = [Path(__file__).resolve().parents[3] / root for root in ("platform", "workloads")]
LIMIT_S = 180


class Cluster(NamedTuple):
    address: str
    folder: Path  # what its machines share
    token: Path

    def submit(self, *words, token=None):
        """A `farreach submit` that has begun, with the counting workload in its working folder."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token or self.token),
            "RAY_ADDRESS": "127.0.0.1:1",  # Ray's own client would prefer it
        }
        # An earlier test's Ray may have left its own here, which is preferred to a path.
        environment.pop("RAY_AUTH_TOKEN", None)
        return subprocess.Popen(
            [sys.executable, "-m", "farreach", "submit", "count.yaml", "--working-dir", "code",
             "--address", self.address, *words],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip


def ended(process):
    """Exit code of a process, and what it has printed."""
    with contextlib.closing(process.stdout):
        try:
            printed, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    return process.returncode, printed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    (folder / "code").mkdir()
    shutil.copy(Path(__file__).parents[1] / "counting_workload.py", folder / "code")
    # Neither file lies in the folder that is sent.
    (folder / "common.yaml").write_text("workload: counting_workload\nlr: 0.25\n")
    (folder / "count.yaml").write_text("base: common.yaml\nname: count\nsteps: 4\n")
    token = folder / "token"
    token.write_text("3f7ad0c5e1")
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with ray_head(variables=variables) as address:
        yield Cluster(address, folder, token)


def test_a_job_trains_to_the_end_and_is_then_left_alone(cluster):
    path = cluster.folder / "first run"
    code, printed = ended(cluster.submit("steps=5", "--run-dir", str(path)))
    assert code == 0, printed
    assert "count/steps  5\n" in printed
    assert printed.count("note      lr is not the paper's") == 1
    assert RunDirectory(path).read_result()["count/steps"] == 5.0
    here = provenance.git_state(SOURCES[0].parent)
    assert json.loads((path / "manifest.json").read_text())["git"] == here
    assert "lr: 0.25" in RunDirectory(path).config_path.read_text()
    name = next(line.split()[1] for line in printed.splitlines() if line.startswith("job "))
    assert printed.splitlines()[-1] == f"{name} is done; its run is {path}"

    events = RunDirectory(path).events()
    code, printed = ended(cluster.submit("steps=5", "--run-dir", str(path), "--code", "image"))
    assert code == 0, printed
    assert "is done already" in printed
    assert RunDirectory(path).events() == events


def test_the_exit_code_is_that_of_the_training(cluster):
    code, printed = ended(cluster.submit("steps=-1", "--root", str(cluster.folder)))
    assert code == 2, printed
    assert "steps counts up: give 0 or more." in printed
    assert "failed with exit code 2, see above" in printed


def test_ctrl_c_stops_the_job_with_a_checkpoint_and_submitting_again_continues(cluster):
    path = cluster.folder / "stopped"
    process = cluster.submit("mishap=wait", "--run-dir", str(path))
    deadline = time.monotonic() + LIMIT_S
    while not (path / "waiting").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, printed = ended(process)
    assert code == 75, printed
    assert "after a last checkpoint; Ctrl-C again leaves without waiting for it" in printed
    assert "stopped with a checkpoint" in printed
    assert f"submit it with --run-dir {path} to go on" in printed
    assert (path / "checkpoints/step_000000000002").is_dir()

    code, printed = ended(cluster.submit("mishap=wait", "lr=0.1", "--run-dir", str(path)))
    assert code == 2, printed
    assert "lr: 0.25 -> 0.1" in printed

    code, printed = ended(cluster.submit("steps=6", "--run-dir", str(path)))
    assert code == 0, printed
    assert RunDirectory(path).read_result()["count/steps"] == 6.0
    kinds = [event["event"] for event in RunDirectory(path).events()]
    assert kinds == ["started", "stopped", "resumed", "finished"]
    assert RunDirectory(path).events()[2]["step"] == 2


def test_a_job_that_nobody_waits_for_goes_on(cluster):
    code, printed = ended(cluster.submit("--root", str(cluster.folder), "--no-wait"))
    assert code == 0, printed
    path = Path(next(line.split()[1] for line in printed.splitlines() if line.startswith("run ")))
    assert path.parent == cluster.folder / "runs"
    assert path.name.startswith("count-")
    deadline = time.monotonic() + LIMIT_S
    while not (path / "result.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_wrong_token_is_one_clear_error(cluster):
    wrong = cluster.folder / "wrong"
    wrong.write_text("0000000000")
    code, printed = ended(cluster.submit(token=wrong))
    assert code == 1
    assert printed.startswith(f"error: the cluster at {cluster.address} refuses the token")
    assert len(printed.splitlines()) == 1
