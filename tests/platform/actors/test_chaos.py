"""Faults on purpose: when, whom, and that they are told before they happen."""

import signal

import pytest

from farreach.actors import nodes
from farreach.actors.chaos import Chaos, ChaosConfig
from farreach.actors.witness import Whereabouts
from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError
from farreach.rundir import RunDirectory


class Crowd:
    """Witnesses of processes that are not there; notes what is done to them."""

    def __init__(self, **nodes):
        self.places = {
            role.replace("_", "-"): Whereabouts(100 + number, node, f"host-{node}", "")
            for number, (role, node) in enumerate(nodes.items())
        }
        self.killed, self.down, self.gone = [], [], set()

    def is_there(self, role):
        return role not in self.gone

    def is_here(self, node):
        return node == "here"

    def kill(self, role, number):
        self.killed.append((role, number))

    def take_down(self, node):
        self.down.append(node)


class Bench:
    """Chaos with a clock of the test's own."""

    def __init__(self, folder, crowd=None, **settings):
        self.now, self.run = 0.0, RunDirectory(folder)
        self.crowd = crowd or Crowd(learner="here", rollout_0="away", rollout_1="far")
        config = ChaosConfig(**settings)
        self.chaos = Chaos(config, self.run, self.crowd, clock=lambda: self.now)

    def pass_s(self, seconds, step=0.5):
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.chaos.tend()
        return [event for event in self.run.events() if event["event"] == "chaos"]


def test_without_settings_nothing_happens(tmp_path):
    bench = Bench(tmp_path)
    assert bench.pass_s(1e4, step=10) == []
    assert bench.crowd.killed == []


def test_processes_are_killed_as_often_as_asked_and_each_is_noted_before(tmp_path):
    events = Bench(tmp_path, kill_every_s=10.0).pass_s(2000)
    assert len(events) == pytest.approx(200, rel=0.25)
    assert {event["role"] for event in events} == {"learner", "rollout-0", "rollout-1"}
    first = events[0]
    assert first["fault"] == "kill"
    assert first["node"].startswith("host-")
    assert first["pid"] >= 100


def test_the_same_seed_hits_the_same_at_the_same_time(tmp_path):
    def hits(folder, seed):
        (tmp_path / folder).mkdir()
        bench = Bench(tmp_path / folder, kill_every_s=10.0, seed=seed)
        bench.pass_s(300)
        return bench.crowd.killed

    assert hits("a", 0) == hits("b", 0) != hits("c", 1)


def test_a_role_stands_for_all_of_its_kind_and_there_are_no_more_than_so_many(tmp_path):
    bench = Bench(tmp_path, kill_every_s=1.0, roles=("rollout",), faults=5)
    assert len(bench.pass_s(100)) == 5
    assert {role for role, _ in bench.crowd.killed} == {"rollout-0", "rollout-1"}
    assert {number for _, number in bench.crowd.killed} == {signal.SIGKILL}
    again = Bench(tmp_path, kill_every_s=1.0, roles=("rollout",), faults=5)
    assert len(again.pass_s(100)) == 5  # of a run that is resumed


def test_a_process_that_is_gone_already_is_no_victim(tmp_path):
    bench = Bench(tmp_path, kill_every_s=1.0)
    bench.crowd.gone = {"learner", "rollout-1"}
    assert {event["role"] for event in bench.pass_s(30)} == {"rollout-0"}


def test_a_machine_gets_its_notice_and_is_taken_down_when_that_is_over(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(nodes, "drain", lambda node, notice_s: told.append((node, notice_s)))
    monkeypatch.setattr(nodes, "host_of", lambda node: f"host-{node}")
    bench = Bench(tmp_path, drain_node_after_s=20.0, notice_s=8.0, roles=("rollout-1",))
    assert bench.pass_s(19) == []
    (event,) = bench.pass_s(2)
    assert (event["fault"], event["node"]) == ("drain", "host-far")
    assert told == [("far", 8.0)]
    bench.pass_s(6)
    assert bench.crowd.down == []
    bench.pass_s(3)
    assert bench.crowd.down == ["far"]


def test_the_drivers_own_machine_is_spared(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "drain", lambda node, notice_s: pytest.fail("drained"))
    bench = Bench(tmp_path, Crowd(learner="here"), drain_node_after_s=1.0)
    assert bench.pass_s(10) == []
    assert "no machine but the driver's" in bench.run.events()[0]["text"]


def test_a_checkpoint_is_damaged_only_where_an_intact_one_is_left(tmp_path):
    bench = Bench(tmp_path, corrupt_checkpoint_every_s=5.0)
    store = CheckpointStore(bench.run.checkpoints, keep=5)
    store.save({"part": {"x": [1.0] * 1000}}, step=1, info={})
    assert bench.pass_s(50) == []
    store.save({"part": {"x": [2.0] * 1000}}, step=2, info={})
    (event,) = bench.pass_s(50)
    assert (event["fault"], event["path"]) == ("corrupt_checkpoint", "step_000000000002")
    with pytest.raises(CheckpointError):
        store.load(store.directory / event["path"])
    assert CheckpointStore(bench.run.checkpoints).newest().step == 1


def test_roles_without_anything_that_hits_them_are_refused():
    with pytest.raises(ValueError, match="neither kill_every_s nor drain_node_after_s"):
        ChaosConfig(roles=("learner",))


def test_what_hits_only_the_disk_needs_no_processes():
    assert ChaosConfig(corrupt_checkpoint_every_s=1.0).is_on
    assert not ChaosConfig(corrupt_checkpoint_every_s=1.0).needs_processes
    assert ChaosConfig(kill_every_s=1.0).needs_processes
    assert not ChaosConfig().is_on
