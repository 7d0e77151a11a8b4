"""Whole runs of Ray Train that are hit: they end with the numbers of those that are not."""

import json
import os
import signal

import pytest
import ray
from tests.platform.learn.test_beside_runs import BESIDE, config_file, meanwhile, result

from farreach import launch
from farreach.errors import ConfigError
from farreach.learn.board import NAMESPACE
from farreach.rundir import RunDirectory

__all__ = ["meanwhile"]
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning"),  # settings of Ray Data
]
TRAINING = {"epochs": 30, "batch": 10, "lr": 0.01, "checkpoint_every_epochs": 2}


def workers(path):
    return [e for e in RunDirectory(path).events() if e["event"] == "worker"]


def test_a_worker_that_is_killed_costs_what_came_after_the_last_checkpoint(
    ray_local, tmp_path, meanwhile
):
    path = tmp_path / "run"
    file = config_file(tmp_path, training=TRAINING, runtime=BESIDE | {"workers": 2}, pause=0.05)
    saved = path / "checkpoints" / "step_000000000020"
    meanwhile(saved.exists, lambda: os.kill(victim(path)["pid"], signal.SIGKILL))
    run = launch.train(file, run_dir=path)
    (died,) = [event for event in run.events() if event["event"] == "actor_died"]
    assert died["role"] == "worker-1"
    assert died["cause"] == "signal"
    assert died["pid"] == victim(path)["pid"]
    assert "updates since the last checkpoint" in died["lost"]
    assert "failure 1 of 3" in died["next"]
    (recovered,) = [event for event in run.events() if event["event"] == "recovered"]
    assert 20 <= recovered["updates"] < 150
    assert len(workers(path)) == 4
    inside = launch.train(config_file(tmp_path, training=TRAINING), run_dir=tmp_path / "inside")
    expected = result(inside)["evaluation/top1"]
    assert result(run)["evaluation/top1"] == pytest.approx(expected, rel=1e-3)


def victim(path):
    return next(event for event in workers(path) if event["rank"] == 1)


def test_a_board_that_is_lost_costs_nothing(ray_local, tmp_path, meanwhile):
    path = tmp_path / "run"
    training = TRAINING | {"epochs": 10}
    file = config_file(tmp_path, training=training, runtime=BESIDE, pause=0.1)
    saved = path / "checkpoints" / "step_000000000010"
    lost = []

    def lose():
        for entry in ray.util.list_named_actors(all_namespaces=True):
            if entry["namespace"] == NAMESPACE:
                lost.append(entry["name"])
                ray.kill(ray.get_actor(entry["name"], NAMESPACE), no_restart=True)

    meanwhile(saved.exists, lose)
    run = launch.train(file, run_dir=path)
    assert len(lost) == 1
    assert result(run)["training/updates"] == 50
    assert len(workers(path)) == 1
    assert "evaluation/top1" in json.loads(run.result_path.read_text())


def test_scores_that_come_later_cannot_end_a_run(tmp_path):
    file = config_file(tmp_path, training=TRAINING | {"patience": 3}, runtime=BESIDE)
    with pytest.raises(ConfigError, match=r"training\.patience: training cannot end by scores"):
        launch.train(file, run_dir=tmp_path / "run")


def test_a_run_without_workers_has_nobody_to_kill(tmp_path):
    file = config_file(tmp_path, training=TRAINING, chaos={"kill_every_s": 5.0})
    with pytest.raises(ConfigError, match="nobody to kill in a run of one process"):
        launch.train(file, run_dir=tmp_path / "run")
