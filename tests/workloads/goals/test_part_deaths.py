"""What a death of a part means: for its neighbours, and for the run."""

import pytest
import ray

from farreach.actors.witness import Whereabouts
from farreach.errors import ActorError
from farreach.failures import Report
from farreach.rundir import RunDirectory
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.deaths import Deaths
from farreach_workloads.goals.parts import PartDied

PLACES = {
    "learner": Whereabouts(1, "a", "host a", ""),
    "memory": Whereabouts(2, "a", "host a", ""),
    "rollout-0": Whereabouts(3, "b", "host b", ""),
}


class Guard:
    """Says the same of everybody."""

    def __init__(self, cause):
        self.cause, self.told = cause, []

    def beside(self, role):
        return [each for each, p in PLACES.items() if p.node == PLACES[role].node and each != role]

    def look_into(self, role, error):
        return Report(role, self.cause, str(error))

    def tell(self, report, *, lost, then):
        self.told.append((report.role, lost, then))

    def watch(self, places):
        pass


@pytest.fixture
def deaths_of(tmp_path):
    def make(cause, max_restarts=2):
        runtime = {"max_restarts": max_restarts}
        deaths = Deaths(GoalsRunConfig(runtime=runtime), RunDirectory(tmp_path), lambda line: None)
        deaths.guard.close()
        deaths.guard = Guard(cause)
        return deaths

    return make


def died(role="learner", error=None):
    return PartDied(role, error or RuntimeError("gone"))


def test_a_process_that_dies_takes_nobody_along(deaths_of):
    deaths = deaths_of("signal")
    assert deaths.gone_with(died(), "5 steps", "back") == ["learner"]
    assert deaths.guard.told == [("learner", "5 steps", "back")]


@pytest.mark.parametrize("cause", ["node_lost", "preempted"])
def test_a_machine_takes_along_all_that_was_on_it(deaths_of, cause):
    deaths = deaths_of(cause)
    assert deaths.gone_with(died(), "5 steps", "back") == ["learner", "memory"]
    assert [role for role, _, _ in deaths.guard.told] == ["learner", "memory"]


def test_too_many_deaths_of_a_role_end_the_run_and_say_so(deaths_of):
    deaths = deaths_of("signal")
    for _ in range(2):
        deaths.died("memory", RuntimeError(), lost="", then="back")
        deaths.died("learner", RuntimeError(), lost="", then="back")
    with pytest.raises(ActorError, match="learner died more than 2 times within 600 s"):
        deaths.died("learner", RuntimeError("the last one"), lost="", then="back")
    assert deaths.guard.told[-1][2] == "gives up: learner died more than 2 times within 600 s"


def test_machines_that_were_taken_away_after_a_notice_do_not_count(deaths_of):
    deaths = deaths_of("preempted", max_restarts=0)
    for _ in range(5):
        deaths.died("learner", RuntimeError(), lost="", then="back")


def test_data_that_are_lost_are_nobodys_death_but_not_for_ever(deaths_of, tmp_path):
    deaths = deaths_of("signal")
    lost = ray.exceptions.ObjectLostError("ab" * 28, None, "")
    for _ in range(2):
        assert deaths.gone_with(died("memory", lost), "", "") == []
    assert deaths.guard.told == []
    assert [event["event"] for event in RunDirectory(tmp_path).events()] == ["lost", "lost"]
    with pytest.raises(ActorError, match="data on machines that are gone were missed more than 2"):
        deaths.gone_with(died("memory", lost), "", "")


def test_new_processes_are_noted_down(deaths_of, tmp_path):
    deaths = deaths_of("signal")
    deaths.watch({})
    deaths.watch(PLACES)
    (event,) = RunDirectory(tmp_path).events()
    assert event["pids"] == {"learner": 1, "memory": 2, "rollout-0": 3}
    assert event["nodes"]["learner"] == "host a"
    assert event["node_ids"]["rollout-0"] == "b"
