"""Who is blamed where several fell together, and what is noted down of machines that leave."""

import time

import pytest

from farreach.actors import nodes
from farreach.actors.chaos import ChaosConfig
from farreach.actors.guard import Guard
from farreach.actors.witness import Whereabouts
from farreach.failures import Facts, Fault
from farreach.rundir import RunDirectory

KILLED = Fault(("ActorDiedError", "RayActorError", "RayError"), "worker unexpectedly exits")
ECHO = Fault(("RuntimeError",), "", trace="RuntimeError: [gloo] Connection closed by peer [::1]")
WRONG = Fault(("ValueError",), "odd", trace="ValueError: odd")


class Crowd:
    """Witnesses of processes that are not there; some have crashed."""

    def __init__(self, *roles, crashed=()):
        self.places = {role: Whereabouts(n, f"node-{n}", "", "") for n, role in enumerate(roles)}
        self._crashed = crashed

    def crashed(self):
        return [role for role in self._crashed if role in self.places]

    def facts(self, role, *, notice_s=None):
        self.places.pop(role, None)
        status = 9 if role in self._crashed else None
        return Facts(role, status=status, notice_s=notice_s)


@pytest.fixture
def guard_of(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "leaving", dict)
    monkeypatch.setattr(nodes, "host_of", lambda node: f"host of {node}")
    lines = []

    def make(*roles, crashed=()):
        guard = Guard(RunDirectory(tmp_path), ChaosConfig(), lines.append)
        guard._witnesses = Crowd(*roles, crashed=crashed)
        guard.lines, guard.run = lines, RunDirectory(tmp_path)
        return guard

    return make


WORKERS = ("worker-0", "worker-1", "worker-2", "evaluator")


def blamed(reports):
    return {report.role: report.cause for report in reports}


def test_who_only_lost_touch_with_one_that_died_is_not_blamed(guard_of):
    found = guard_of(*WORKERS).look_into_all({"worker-0": ECHO, "worker-1": KILLED})
    assert blamed(found) == {"worker-1": "signal"}


def test_one_that_died_silently_is_found_by_those_that_lost_touch_with_it(guard_of):
    guard = guard_of(*WORKERS, crashed=("worker-2", "evaluator"))
    assert blamed(guard.look_into_all({"worker-0": ECHO, "worker-1": ECHO})) == {
        "worker-2": "signal"
    }


def test_without_another_culprit_the_echo_is_told(guard_of):
    assert blamed(guard_of(*WORKERS).look_into_all({"worker-0": ECHO})) == {"worker-0": "exception"}


def test_what_is_wrong_with_the_program_is_told(guard_of):
    found = guard_of(*WORKERS).look_into_all({"worker-0": ECHO, "worker-1": WRONG})
    assert blamed(found) == {"worker-1": "exception"}


def test_a_machine_that_others_have_seen_leave_is_noted_once(guard_of):
    guard = guard_of("worker-0", "worker-1")
    deadline = time.time() + 30
    guard.leave(["node-1"], deadline, ["worker-1"])
    guard.leave(["node-1"], deadline, ["worker-1"])
    (event,) = guard.run.events()
    assert event["event"] == "preemption"
    assert event["roles"] == ["worker-1"]
    assert (event["node"], event["deadline"]) == ("host of node-1", deadline)
    assert guard.leaving() == {"worker-1"}
    assert guard.lines == ["host of node-1 will be taken away; on it: worker-1"]
    report = guard.look_into("worker-1", KILLED)
    assert report.cause == "preempted"
    assert guard.look_into("worker-0", KILLED).cause == "signal"


def test_neighbours_are_those_on_the_same_node(guard_of):
    guard = guard_of("learner", "memory", "rollout-0")
    here = guard._witnesses.places["learner"]
    guard._witnesses.places["memory"] = here
    assert guard.beside("learner") == ["memory"]
    assert guard.beside("rollout-0") == []
    assert guard.beside("nobody") == []
