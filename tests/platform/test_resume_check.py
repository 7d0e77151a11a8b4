import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from farreach.checkpoint import CheckpointStore
from farreach.cli.main import main
from farreach.resume_check import compare


@pytest.fixture
def store(tmp_path):
    def saved(name, state, step=1):
        store = CheckpointStore(tmp_path / name)
        store.save({"state": state}, step=step, info={})
        return store.newest()

    return saved


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run the command on the adding workload; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "adding.yaml").write_text("workload: adding_workload\n")

    def run(*arguments):
        code = main(["check", "resume", "adding.yaml", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_equal_checkpoints_are_equal_whatever_their_clocks_say(store):
    state = {"weights": np.arange(6.0).reshape(2, 3), "lost": float("nan"), "names": ["a", "b"]}
    one = store("one", state | {"trained_s": 1.0, "evaluated": {"evaluation/seconds": 0.2}})
    other = store("other", state | {"trained_s": 2.0, "evaluated": {"evaluation/seconds": 0.3}})
    assert compare(one, other) == ([], 4)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"w": np.zeros(4)}, {"w": np.array([0, 0, 0.5, -2])}, "2 of 4 numbers, by up to 2"),
        ({"w": np.zeros(2)}, {"w": np.zeros(2, np.float32)}, "0 of 2 numbers, by up to 0"),
        ({"w": np.zeros(2)}, {"w": np.zeros(3)}, "[0. 0.]; [0. 0. 0.]"),
        ({"w": np.zeros(1)}, {"w": -np.zeros(1)}, "0 of 1 numbers, by up to 0"),
        ({"w": {"a": 1}}, {"w": {"a": 2}}, "1; 2"),
        ({"w": 1}, {"w": 1.0}, "1; 1.0"),
        ({"w": [1, 2]}, {"w": [1]}, "2; absent"),
    ],
)
def test_every_other_bit_counts(store, one, other, said):
    found, _ = compare(store("one", one), store("other", other))
    assert len(found) == 1
    assert re.fullmatch(r"state\.w[.\w]*: " + re.escape(said), found[0])


def test_another_step_is_told_alone(store):
    found, _ = compare(store("one", {"w": 1}, step=3), store("other", {"w": 2}, step=4))
    assert found == ["step: 3; 4"]


@pytest.mark.slow
def test_a_run_that_resumes_exactly_passes(check):
    code, out, _ = check("--kills", "2", "--out", "checked")
    assert code == 0
    kills = [
        int(step) for step in re.findall(r"^killed after the checkpoint of step (\d)", out, re.M)
    ]
    assert len(kills) == 2
    assert 2 <= kills[0] < kills[1] <= 8
    assert "values of the last checkpoint are equal to the bit" in out
    assert (Path("checked") / "killed" / "result.json").exists()


@pytest.mark.slow
def test_what_a_checkpoint_lacks_is_found_and_blamed(check):
    code, _, err = check("fault=forgets")
    assert code == 1
    assert "3 numbers, by up to" in err
    assert "state.total: " in err
    assert "something is missing in the checkpoint" in err


@pytest.mark.slow
def test_a_workload_that_does_not_repeat_itself_is_told_apart(check):
    code, _, err = check("fault=noisy")
    assert code == 1
    assert "An undisturbed run does not repeat itself either" in err


def test_a_run_that_fails_or_is_over_too_soon_is_one_message(check, tmp_path):
    code, _, err = check("fault=fails")
    assert code == 1
    assert "whole: training ended with exit code 1" in err
    assert "nothing works today" in err
    code, _, err = check("fault=hurries", "steps=1")
    assert code == 1
    assert "the run was over before it could be killed after its second checkpoint" in err
    (tmp_path / "there").mkdir()
    code, _, err = check("--out", "there")
    assert code == 1
    assert "there: exists already. Name a new folder with --out." in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_check_that_is_ended_leaves_no_training_behind(check, number, code, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "farreach", "check", "resume", "adding.yaml", "steps=300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # A shell in the background would have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        while not list(tmp_path.glob("farreach-*/runs/whole/manifest.json")):
            assert process.poll() is None
            time.sleep(0.1)
        [child] = children.read_text().split()
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert not Path(f"/proc/{child}").exists()
        assert not list(tmp_path.glob("farreach-*"))
    finally:
        process.kill()
        process.communicate()
