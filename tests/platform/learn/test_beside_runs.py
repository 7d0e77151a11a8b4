"""Whole runs with an evaluator beside Ray Train's workers, and what may happen to it."""

import json
import os
import signal
import threading
import time

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.errors import DataError
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning"),  # settings of Ray Data
]


def config_file(folder, **settings):
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(
        yaml.safe_dump(
            {"workload": "tests.platform.learn.regression_run", "name": "regression", **settings}
        )
    )
    return str(path)


BESIDE = {"workers": 1, "evaluators": 1, "cpus": 0.5}


def result(run):
    return json.loads(run.result_path.read_text())


def evaluations(run):
    lines = read_metrics(run.metrics_path)
    return {line["step"]: line["evaluation/top1"] for line in lines if "evaluation/top1" in line}


def scores(run):
    return {
        checkpoint.step: checkpoint.score
        for checkpoint in map(CheckpointStore.load, run.checkpoints.glob("step_*"))
    }


@pytest.fixture
def meanwhile():
    """Does something as soon as a run has come so far, if it ever does."""
    threads, ended = [], threading.Event()

    def act(condition, action):
        while not ended.wait(0.02):
            if condition():
                action()
                return

    def start(*arguments):
        threads.append(threading.Thread(target=act, args=arguments, daemon=True))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def pids(path):
    return [e["pid"] for e in RunDirectory(path).events() if e["event"] == "evaluator"]


def test_training_goes_on_while_an_evaluation_takes_long(ray_local, tmp_path):
    training = {"epochs": 4, "batch": 10, "lr": 0.01, "evaluate_every_epochs": 0.4}
    training["keep_checkpoints"] = 20
    file = config_file(tmp_path, training=training, runtime=BESIDE, nap=1.5)
    run = launch.train(file, run_dir=tmp_path / "run")
    lines = read_metrics(run.metrics_path)
    trained = next(line["time"] for line in lines if line["step"] == 20)
    first = next(line for line in lines if "evaluation/top1" in line)
    assert first["step"] == 2
    assert first["time"] > trained
    left_out = [e["updates"] for e in run.events() if e["event"] == "evaluation_left_out"]
    assert left_out == list(range(4, 20, 2))
    # What training itself would have found, to the last digit.
    inside = launch.train(config_file(tmp_path, training=training), run_dir=tmp_path / "inside")
    expected = evaluations(inside)
    assert list(expected) == list(range(2, 21, 2))
    assert evaluations(run) == {step: expected[step] for step in (2, 20)}
    assert scores(run)[2] == expected[2]
    assert result(run)["evaluation/top1"] == scores(run)[20] == expected[20]
    assert result(run)["training/updates"] == 20
    shown = EventAccumulator(str(run.tensorboard), {"images": 0}).Reload()
    assert [event.step for event in shown.Scalars("evaluation/top1")] == [2, 20]
    assert [event.step for event in shown.Images("evaluation/shade")] == [2, 20]


def test_an_evaluator_that_is_killed_costs_nothing(ray_local, tmp_path, meanwhile):
    """With two workers that split the parameters, of which the evaluator has all."""
    path = tmp_path / "run"
    runtime = BESIDE | {"workers": 2, "sharded": True}
    file = config_file(tmp_path, runtime=runtime, nap=0.7)
    first = path / "checkpoints" / "step_000000000005"
    meanwhile(lambda: first.exists() and pids(path), lambda: os.kill(pids(path)[0], signal.SIGKILL))
    run = launch.train(file, run_dir=path)
    assert len(set(pids(path))) == 2
    died = [event for event in run.events() if event["event"] == "actor_died"]
    assert [(event["role"], event["cause"]) for event in died] == [("evaluator", "signal")]
    found = evaluations(run)
    assert {5, 15} <= found.keys()
    assert scores(run)[15] == found[15] == result(run)["evaluation/top1"]
    inside = launch.train(config_file(tmp_path), run_dir=tmp_path / "inside")
    expected = evaluations(inside)
    assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-4)


def test_a_run_that_is_stopped_while_it_evaluates_does_so_when_it_goes_on(
    ray_local, tmp_path, meanwhile
):
    path = tmp_path / "run"
    file = config_file(tmp_path, runtime=BESIDE, nap=900.0)
    last = path / "checkpoints" / "step_000000000015"
    meanwhile(last.exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    begun = time.monotonic()
    with pytest.raises(Stopped):
        launch.train(file, run_dir=path)
    assert time.monotonic() - begun < 300
    assert not (path / "result.json").exists()
    run = launch.resume(path, ["nap=0"])
    assert evaluations(run).keys() == {15}
    assert CheckpointStore(run.checkpoints).held() == []
    assert scores(run)[15] == result(run)["evaluation/top1"] == evaluations(run)[15]
    inside = launch.train(config_file(tmp_path), run_dir=tmp_path / "inside")
    assert result(inside)["evaluation/top1"] == evaluations(run)[15]


def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint(ray_local, tmp_path):
    training = {"epochs": 1000, "batch": 10, "lr": 0.01}
    file = config_file(tmp_path, training=training, runtime=BESIDE, nap=-1.0, pause=0.05)
    with pytest.raises(DataError, match="the held-out numbers are gone"):
        launch.train(file, run_dir=tmp_path / "run")
    assert 5 <= CheckpointStore(tmp_path / "run" / "checkpoints").newest().step < 5000
