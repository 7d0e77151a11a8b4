"""Evaluation beside training: what the loop leaves, and what the driver has evaluated."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from regression import Notes, Regression, loop_of, trained
from tests.platform.learn.sleeper import Sleeper, step_of

from farreach import config as configs
from farreach.actors.chaos import ChaosConfig
from farreach.actors.guard import Guard
from farreach.actors.services import ActorService
from farreach.checkpoint import CheckpointStore
from farreach.errors import ActorError, ConfigError, DataError
from farreach.learn.beside import SideEvaluation, reserved
from farreach.learn.settings import WorkersConfig
from farreach.rundir import RunDirectory


def weights(task):
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


def test_the_loop_leaves_checkpoints_to_be_evaluated_and_learns_the_same(tmp_path):
    notes = Notes()
    torch.manual_seed(0)
    task = Regression()
    settings = {"evaluate_every_epochs": 0.6, "checkpoint_every_epochs": 1.0}
    loop_of(tmp_path / "beside", task, notes, evaluators=1, **settings).run()
    assert notes.due == [3, 6, 9, 12, 15]
    assert notes.checkpoints == [3, 5, 6, 9, 10, 12, 15]
    assert not any("evaluation/top1" in line for _, line, _ in notes.lines)
    assert notes.seen == []
    assert notes.remarks == [(step, f"{step} updates") for step in notes.due]
    store = CheckpointStore(tmp_path / "beside")
    assert [step_of(path) for path in store.held()] == [15, 12, 9, 6, 3]
    inside = trained(tmp_path / "inside", **settings)
    torch.testing.assert_close(weights(task), weights(inside), atol=0, rtol=0)


def test_a_stop_does_not_write_again_what_is_being_evaluated(tmp_path):
    notes = Notes(stop_at=5)
    loop = loop_of(tmp_path, Regression(), notes, evaluators=1)
    _, stopped = loop.run()
    assert stopped
    assert (notes.checkpoints, notes.due) == ([5], [5])
    store = CheckpointStore(tmp_path)
    found = store.newest()
    store.add_score(found, -0.5, {"evaluated": {"evaluation/top1": -0.5}})
    notes = Notes(stop_at=0)
    loop = loop_of(tmp_path, Regression(), notes, evaluators=1)
    loop.restore(store.newest())
    metrics, stopped = loop.run()
    assert stopped
    assert notes.checkpoints == []
    assert store.newest().score == -0.5
    assert metrics["evaluation/top1"] == -0.5


def test_an_evaluator_needs_workers_beside_it(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("workload: tests.platform.learn.regression_run\n")
    with pytest.raises(ConfigError, match=r"workers is 0, .* Set workers to 1 or more"):
        configs.load(file, ["runtime.evaluators=1"])
    config = configs.load(file, ["runtime.evaluators=1", "runtime.workers=1"]).config
    assert config.runtime.evaluators == 1


def test_the_evaluator_has_what_a_worker_has_and_a_gpu_if_one_is_left():
    def of(workers, gpus, there, **more):
        settings = WorkersConfig(workers=workers, gpus=gpus, cpus=3.0, evaluators=1, **more)
        return reserved(settings, there)

    assert of(2, 1.0, 3.0) == (3.0, 1.0)
    assert of(2, 1.0, 2.0) == (3.0, 0.0)
    assert of(1, 0.5, 1.0) == (3.0, 0.5)
    assert of(2, 0.0, 8.0) == (3.0, 0.0)
    assert of(2, 1.0, 8.0, min_workers=1) == (0.0, 0.0)
    assert reserved(WorkersConfig(workers=2, gpus=1.0), 8.0) == (0.0, 0.0)


class Report:
    def __init__(self):
        self.lines, self.pictures, self.remarks = [], [], []

    def evaluated(self, step, metrics):
        self.lines.append((step, metrics))

    def picture(self, step, name, picture):
        self.pictures.append((step, name, picture))

    def remark(self, step, text):
        self.remarks.append((step, text))


class Side:
    """The driver's side over checkpoints that the test writes."""

    def __init__(self, folder, nap=0.0, deaths=0, max_failures=3):
        (folder / "deaths").write_text(str(deaths))
        self.run, self.report = RunDirectory(folder), Report()
        self.store = CheckpointStore(self.run.checkpoints, 1)

        def start():
            arguments = (nap, folder / "deaths")
            return ActorService("evaluator", Sleeper, arguments, num_cpus=0.1)

        self.guard = Guard(self.run, ChaosConfig(), lambda line: None)
        self.side = SideEvaluation(start, self.run, self.report, self.guard, 1, max_failures)

    def save(self, step, score, held=True):
        content = {"learner": {"score": score}}
        return self.store.save(content, step=step, info={}, held=held)

    def leave(self, step, score):
        self.side.evaluation_due(step, self.save(step, score).name)

    def events(self, kind):
        return [event for event in self.run.events() if event["event"] == kind]


def steps(store):
    return sorted(step_of(path) for path in store.directory.glob("step_*"))


@pytest.fixture
def side_of(ray_local, tmp_path):
    made = []

    def make(**settings):
        made.append(Side(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.side.stop()
        one.guard.close()


def never():
    return False


@pytest.mark.ray
def test_the_newest_checkpoint_that_waits_takes_the_place_of_older_ones(side_of):
    one = side_of(nap=0.3)
    one.side.begin(None)
    for step, score in ((1, 0.7), (2, 0.9), (3, 0.8), (4, 0.1)):
        one.leave(step, score)
    one.side.tend()
    # 1 is being evaluated and 4 waits, so both are held; of the others only what is new enough.
    assert {1, 4} <= set(steps(one.store)) <= {1, 3, 4}
    assert one.side.wait(never)
    assert [event["updates"] for event in one.events("evaluation_left_out")] == [2, 3]
    expected = [
        (1, {"evaluation/x": 0.7, "evaluation/seconds": 0.5, "evaluation/left_out": 2.0}),
        (4, {"evaluation/x": 0.1, "evaluation/seconds": 0.5, "evaluation/left_out": 2.0}),
    ]
    assert one.report.lines == expected
    shown = [(step, "evaluation/shade", [[[step] * 3]]) for step in (1, 4)]
    assert one.report.pictures == shown
    assert one.report.remarks == [(1, "score 0.7"), (4, "score 0.1")]
    assert one.side.metrics == {"evaluation/x": 0.1}
    assert steps(one.store) == [1, 4]
    assert (one.store.best().step, one.store.best().score) == (1, 0.7)
    assert one.store.newest().score == 0.1
    assert one.store.held() == []


@pytest.mark.ray
def test_an_evaluation_whose_process_dies_is_repeated(side_of):
    one = side_of(deaths=2, max_failures=2)
    one.side.begin(None)
    one.leave(1, 0.7)
    assert one.side.wait(never)
    assert one.store.newest().score == 0.7
    for event in one.events("actor_died"):
        assert event["role"] == "evaluator"
        assert event["cause"] == "signal"
        assert event["lost"] == "its evaluation of update 1"
    assert len(one.events("actor_died")) == 2


@pytest.mark.ray
def test_an_evaluator_that_dies_too_often_is_given_up_and_the_checkpoint_kept(side_of):
    one = side_of(deaths=2, max_failures=1)
    one.side.begin(None)
    one.leave(1, 0.7)
    with pytest.raises(ActorError, match=r"more often than runtime\.max_failures \(1\): signal 9"):
        one.side.wait(never)
    one.leave(2, 0.7)  # training goes on until it has heard of it
    assert steps(one.store) == [1, 2]
    assert one.store.newest().score is None


@pytest.mark.ray
def test_what_an_evaluation_raises_is_told_as_it_is(side_of):
    one = side_of()
    one.side.begin(None)
    one.leave(1, None)
    with pytest.raises(DataError, match=r"^the held-out numbers are gone\. Bring them back\.$"):
        one.side.wait(never)


@pytest.mark.ray
def test_a_run_that_is_stopped_does_not_wait(side_of):
    one = side_of(nap=60)
    one.side.begin(None)
    one.leave(1, 0.7)
    begun = time.monotonic()
    assert not one.side.wait(lambda: time.monotonic() > begun + 0.5)
    assert time.monotonic() - begun < 5
    assert one.store.held() == [one.store.newest().path.resolve()]


@pytest.mark.ray
def test_a_run_that_goes_on_evaluates_its_newest_checkpoint_if_that_was_not_done(side_of):
    one = side_of()
    one.save(1, 0.7, held=False)
    one.save(2, 0.9, held=False)
    one.side.begin(one.store.newest())
    assert one.side.wait(never)
    assert [step for step, _ in one.report.lines] == [2]
    again = side_of()
    again.side.begin(again.store.newest())
    assert again.side.wait(never)
    assert again.report.lines == []


@pytest.mark.ray
def test_a_last_checkpoint_whose_writer_died_before_it_spoke_is_evaluated(side_of):
    one = side_of()
    one.side.begin(None)
    one.leave(1, 0.7)
    one.save(2, 0.8)
    assert one.side.wait(never)
    assert [step for step, _ in one.report.lines] == [1, 2]
    assert one.side.metrics == {"evaluation/x": 0.8}
