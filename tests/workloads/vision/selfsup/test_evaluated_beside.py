import numpy as np
import pytest

from farreach import afterwards, launch
from farreach.metrics import read_metrics

DEBUG = "vision/msn_clipart_debug"
OWN = ("evaluation/seconds", "evaluation/left_out")


def evaluations(run):
    return {
        line["step"]: {
            name: value
            for name, value in line.items()
            if name.startswith("evaluation/") and name not in OWN
        }
        for line in read_metrics(run.metrics_path)
        if "evaluation/knn_top1" in line
    }


def weights(run):
    state = afterwards.find_checkpoint(run, "newest").part("learner")
    arrays = [*state["model"].values(), *state["companions"][0].values()]
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning")  # settings of Ray Data
def test_neighbours_are_the_same_whoever_looks_for_them(ray_local, tmp_path):
    inside = launch.train(DEBUG, [], run_dir=tmp_path / "inside")
    settings = ["runtime.workers=1", "runtime.evaluators=1", "runtime.cpus=0.5"]
    beside = launch.train(DEBUG, settings, run_dir=tmp_path / "beside")
    found = evaluations(beside)
    assert found == evaluations(inside)
    assert len(found) == 3
    assert found.pop(0)  # before training, which is no result
    np.testing.assert_array_equal(weights(beside), weights(inside))
    best = afterwards.find_checkpoint(beside, "best")
    assert best.score == max(line["evaluation/knn_top1"] for line in found.values())
    assert best.step == afterwards.find_checkpoint(inside, "best").step
