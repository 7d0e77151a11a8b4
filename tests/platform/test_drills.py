"""What is made of a run's events: written by hand here."""

import json

import pytest

from farreach.testing.drills import Outcome, Training, newest_saved, outcomes, table


def at(time, event, **fields):
    return {"event": event, "time": time, **fields}


EVENTS = [
    at(0.0, "actors", pids={"learner": 1, "rollout-0": 2, "evaluator": 3}),
    at(10.0, "chaos", fault="kill", role="rollout-0", pid=2),
    at(10.5, "actor_died", role="rollout-0", pid=2, lost="800 steps"),
    at(14.0, "actors", pids={"rollout-0": 4}),
    at(20.0, "chaos", fault="kill", role="learner", pid=1),
    at(21.0, "actor_died", role="learner", pid=1, lost="1,600 steps"),
    at(24.0, "actors", pids={"learner": 5}),
    at(26.0, "recovered", role="learner"),
    at(30.0, "chaos", fault="corrupt_checkpoint", path="step_1"),
    at(33.0, "checkpoint"),
    at(40.0, "chaos", fault="drain", node="b"),
    at(41.0, "preemption", roles=["rollout-0", "learner"]),
    at(45.0, "actors", pids={"rollout-0": 6}),
    at(47.0, "moved", roles=["learner"]),
    at(50.0, "chaos", fault="kill", role="evaluator", pid=3),
]


def test_every_fault_is_followed_to_where_what_it_took_is_back():
    assert outcomes("maze", EVENTS, True) == [
        Outcome("maze", "kill rollout", True, pytest.approx(4.0), "800 steps"),
        Outcome("maze", "kill learner", True, pytest.approx(6.0), "1,600 steps"),
        Outcome("maze", "corrupt_checkpoint", True, pytest.approx(3.0)),
        Outcome("maze", "drain", True, pytest.approx(7.0)),
        Outcome("maze", "kill evaluator", True),
    ]


def test_workers_are_back_when_they_train_again():
    events = [
        at(1.0, "chaos", fault="kill", role="worker-1", pid=7),
        at(2.0, "actor_died", role="worker-1", pid=7, lost="3 updates"),
        at(9.0, "worker", rank=1, pid=8),
        at(11.0, "recovered", role="worker"),
        at(12.0, "chaos", fault="kill", role="evaluator", pid=9),
        at(15.0, "evaluator", pid=10),
    ]
    assert outcomes("text", events, False) == [
        Outcome("text", "kill worker", False, 10.0, "3 updates"),
        Outcome("text", "kill evaluator", False, 3.0),
    ]


def test_the_table_counts_by_kind():
    found = [Outcome("maze", "kill rollout", True, float(seconds)) for seconds in (4, 2, 9)]
    found.append(Outcome("maze", "kill rollout", False))
    assert [line.split() for line in table(found)[1:]] == [
        ["maze", "kill", "rollout", "4", "3", "4.0", "9.0"]
    ]
    assert json.loads(found[0].line())["recovery_s"] == 4.0


def test_a_run_that_has_not_begun_has_nothing(tmp_path):
    training = Training("goals/walk_maze_debug", [], tmp_path / "run")
    assert training.output == ""
    assert not training.is_running()
    assert newest_saved(training.path) == -1
    (tmp_path / "run" / "checkpoints" / "step_000000000120").mkdir(parents=True)
    assert newest_saved(training.path) == 120
