"""Workers that become more while they train: nothing is done twice, and nothing is left out."""

import json

import pytest
from tests.platform.learn.test_beside_runs import config_file

from farreach import launch
from farreach.rundir import RunDirectory
from farreach.testing.drills import Training
from farreach.testing.nodes import several_nodes

RARELY = {"evaluate_every_epochs": 100, "checkpoint_every_epochs": 100}
TRAINING = {"epochs": 120, "batch": 10, "lr": 0.01, **RARELY}
LIMIT_S = 240


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_takes_in_a_machine_that_comes_and_no_update_is_lost(tmp_path):
    path = tmp_path / "run"
    elastic = {"workers": 2, "min_workers": 1, "grow_every_s": 4.0}
    file = config_file(tmp_path, training=TRAINING, runtime=elastic, pause=0.06)
    with several_nodes([{"num_cpus": 1}], head_cpus=0) as nodes:
        variables = {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        training = Training(file, [], path, variables)
        training.start()
        assert training.until(lambda: training.step() > 20, LIMIT_S), training.output
        assert {event["rank"] for event in workers(training)} == {0}
        nodes.add(num_cpus=1)
        assert training.until(lambda: len(workers(training)) == 3, LIMIT_S), training.output
        assert training.wait(LIMIT_S) == 0, training.output
    later = workers(training)[1:]
    assert sorted(event["rank"] for event in later) == [0, 1]
    assert len({event["node_id"] for event in later}) == 2
    (saved, *_) = [event for event in training.events() if event["event"] == "checkpoint"]
    assert 20 < saved["updates"] < 500  # not one that was due, and before the first that was
    (back,) = [event for event in training.events() if event["event"] == "recovered"]
    assert back["updates"] == saved["updates"]
    assert back["lost_updates"] == 0
    inside = launch.train(config_file(tmp_path, training=TRAINING), run_dir=tmp_path / "inside")
    expected = json.loads(inside.result_path.read_text())["evaluation/top1"]
    assert RunDirectory(path).read_result()["evaluation/top1"] == pytest.approx(expected, rel=1e-3)


def workers(training):
    return [event for event in training.events() if event["event"] == "worker"]
