import pytest

from farreach.config import find, load
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach_workloads.goals import report
from farreach_workloads.goals.environments.factory import make_environment


@pytest.fixture
def reporter(tmp_path, monkeypatch):
    """One that writes whenever something comes."""
    monkeypatch.setattr(report, "FLUSH_EVERY_S", 0.0)
    config = load(find("goals/walk_maze_debug")).config
    run = RunDirectory.create(tmp_path, "maze", "", [], seed=0)
    made = report.Reporter(config, run, make_environment(config.environment, 1), 1000)
    made.run = run
    yield made
    made.close()


def test_what_holds_is_written_with_what_is_measured(reporter):
    reporter.levels({"queue/learner_calls": 2})
    reporter.reached({"training/updates": 64.0})
    reporter.busy("learner", 0.9)
    reporter.progress(250, 0.25)
    reporter.rollout(250, {"weights/age_versions": 3.0})
    (line,) = read_metrics(reporter.run.metrics_path)
    expected = {
        "queue/learner_calls": 2.0,
        "training/updates": 64.0,
        "training/env_steps": 250.0,
        "training/share": 0.25,
        "busy/learner": 0.9,
        "weights/age_versions": 3.0,
    }
    assert {name: line[name] for name in expected} == expected


def test_of_many_rollouts_the_mean_is_kept():
    few = {f"rollout-{i}": i / 10 for i in range(3)}
    assert report.busy_metrics({"memory": 0.5, **few}) == {
        "busy/memory": 0.5,
        "busy/rollout-0": 0.0,
        "busy/rollout-1": 0.1,
        "busy/rollout-2": 0.2,
        "busy/rollouts": pytest.approx(0.1),
    }
    many = {f"rollout-{i}": 0.5 for i in range(100)}
    assert report.busy_metrics({"memory": 0.5, **many}) == {
        "busy/memory": 0.5,
        "busy/rollouts": 0.5,
    }
    assert report.busy_metrics({}) == {}
