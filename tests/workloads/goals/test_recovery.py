"""What an asynchronous run makes of deaths, with parts that only note down what they are told."""

import numpy as np
import pytest

from farreach.actors.services import ActorService
from farreach.checkpoint import CheckpointStore
from farreach.failures import Report
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped, StopRequest
from farreach_workloads.goals import coordinator
from farreach_workloads.goals.counters import SUCCESS
from farreach_workloads.goals.overlapped import Overlapped
from farreach_workloads.goals.parts import PartDied

ROLLOUTS = 2
STATES = ("learner", "reachability", "memory", "rollout-0", "rollout-1")


class Part(ActorService):
    """Notes down its calls; `dies` makes the next call of a method raise."""

    def __init__(self, role, told, incarnation=0):
        self.role, self.place, self.incarnation = role, "somewhere", incarnation
        self._told, self.dies = told, set()

    def call(self, method, *arguments, returns=1):
        self._told.append((self.role, method, *arguments[:1]))
        if method in self.dies:
            self.dies.remove(method)
            raise PartDied(self.role, RuntimeError("killed"))
        return {"state": {"of": self.role}}.get(method)

    def settling(self):
        return object()

    def stop(self):
        pass


class Parts:
    """Parts of a run that are all there at once."""

    def __init__(self, config):
        self.told, self.late, self.places, self.shards = [], {}, {}, []
        for role in ("learner", "reachability", "memory", "evaluator"):
            setattr(self, role, Part(role, self.told))
        self.rollouts = [self.start_rollout(i) for i in range(ROLLOUTS)]

    def start_rollout(self, index, incarnation=0):
        return Part(f"rollout-{index}", self.told, incarnation)

    def restart(self, roles):
        for role in roles:
            setattr(self, role, Part(role, self.told))
        return []

    def all(self):
        return [self.learner, self.reachability, self.memory, self.evaluator, *self.rollouts]

    def stateful(self):
        return [part for part in self.all() if part is not self.evaluator]

    def stop(self):
        pass


class Reporter:
    """Shows nothing."""

    def __getattr__(self, name):
        return lambda *arguments, **named: None


class Lost:
    """A guard of machines that take along whom it is told to."""

    def __init__(self, *others):
        self.others = list(others)

    def beside(self, role):
        return self.others

    def look_into(self, role, error):
        return Report(role, "node_lost" if self.others else "signal", "gone")

    def __getattr__(self, name):
        return lambda *arguments, **named: None


@pytest.fixture
def started(toy, tmp_path, monkeypatch):
    """A run between its first checkpoint and the loop."""

    def start(*beside, **sections):
        monkeypatch.setattr(coordinator, "Parts", Parts)
        monkeypatch.setattr(Overlapped, "_shared", lambda self, value: value)
        config = toy.config(runtime={"rollout_actors": ROLLOUTS}, **sections)
        run = RunDirectory(tmp_path)
        found = Overlapped(config, run, Reporter(), None)
        found._deaths.guard.close()
        found._guard = found._deaths.guard = Lost(*beside)
        parts = {role: {"of": role} for role in STATES}
        parts["learner"]["bundle"] = toy.line(3).arrays()
        counters = {**vars(found._counters), "env_steps": 100}
        parts["coordinator"] = {"counters": counters, "visits": np.zeros(0, np.int64)}
        CheckpointStore(run.checkpoints).save(parts, step=100, info={"updates": 7})
        return found, CheckpointStore(run.checkpoints).newest()

    return start


def begun(run, monkeypatch, death=None):
    """Let the loop begin, and end at once, by a death or because all is done."""

    def finished(self):
        if death is not None:
            raise death
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Overlapped, "_finished", finished)
        patch.setattr(Overlapped, "_evaluate_now", lambda self: None)
        run._loop()


@pytest.mark.parametrize("offset", range(4))
def test_a_checkpoint_is_not_put_off_for_ever_by_refreshes_and_evaluations(
    started, monkeypatch, offset
):
    """Both take four rounds and follow at once; unless they end together one is always busy."""
    run, checkpoint = started(evaluation={"every_steps": 1}, training={"checkpoint_every_s": 1e-9})
    run.go_on(checkpoint)
    rounds, saves, ends = [0], [], {}

    def call(self, method, *arguments, returns=1):
        references = tuple(object() for _ in range(returns))
        takes = {"refresh": 2, "integrate": 2, "evaluate": 4}[method]
        ends[references[-1 if method != "evaluate" else 0]] = rounds[0] + takes
        return references

    def take_in(self, timeout_s):
        rounds[0] += 1
        self._counters.env_steps += 1
        for reference in [each for each in self._flight if ends[each] == rounds[0]]:
            self._flight.pop(reference)(reference)

    replaced = {
        "_take_in": take_in,
        "_begin_save": lambda self: saves.append(rounds[0]),
        "_finished": lambda self: rounds[0] >= 60,
        "_refresh_due": lambda self: rounds[0] >= offset,
        "_next_rollout": lambda self: None,
        "_ask_for_facts": lambda self: None,
        "_new_bundle": lambda self, *arguments: None,
        "_evaluated": lambda self, *arguments: None,
        "_evaluate_now": lambda self: None,
    }
    with monkeypatch.context() as patch:
        patch.setattr(Part, "call", call)
        for name, function in replaced.items():
            patch.setattr(Overlapped, name, function)
        run._stop = StopRequest()
        run._loop()
    assert np.diff([0, *saves, 60]).max() <= 4  # as long as a refresh
    assert len(ends) >= 12  # and neither is put off


def test_what_is_better_than_all_before_is_saved_at_once(started):
    run, _ = started(training={"checkpoint_every_s": 1e9})
    run._busy, counters, due = {"refresh": 0}, run._counters, []
    for at, success in ((10, 0.0), (20, 0.4), (30, 0.3), (40, 0.4), (50, 0.5)):
        counters.add_evaluation(at, {SUCCESS: success}, 3)
        due.append(run._save_due())
        assert counters.take_evaluation() == {SUCCESS: success}
        assert not run._save_due()
    assert due == [True, True, False, False, True]


@pytest.mark.parametrize("how", ["in time", "on request"])
def test_a_checkpoint_does_not_wait_for_an_evaluation_and_has_it_made_again(
    started, monkeypatch, how
):
    run, checkpoint = started(evaluation={"every_steps": 50})
    run.go_on(checkpoint)
    run._stop, evaluation = StopRequest(), object()
    run._counters.evaluated_at = 60

    def call(self, method, *arguments, returns=1):
        return (evaluation, object()) if method == "evaluate" else {"of": self.role}

    def ask(self):
        """While the evaluation that is due is under way."""
        if self._evaluation is evaluation and how == "in time":
            self._saved_time = -np.inf
        elif self._evaluation is evaluation:
            self._stop.signum = 15

    replaced = {
        "_finished": lambda self: how == "in time" and self._counters.saved_at == 110,
        "_take_in": lambda self, timeout_s: None,
        "_look_around": ask,
        "_next_rollout": lambda self: None,
        "_refresh_due": lambda self: False,
        "_ask_for_facts": lambda self: None,
    }
    run._counters.env_steps = 110
    with monkeypatch.context() as patch:
        patch.setattr(Part, "call", call)
        for name, function in replaced.items():
            patch.setattr(Overlapped, name, function)
        waits = []
        patch.setattr(Overlapped, "_drain", lambda self, but=None: waits.append(but))
        if how == "in time":
            patch.setattr(Overlapped, "_evaluate_now", lambda self: None)
            run._loop()
            run._tell_of(run._saver.wait())
        else:
            with pytest.raises(Stopped):
                run._loop()
    assert waits[0] is evaluation
    assert run._counters.evaluated_at == 110
    saved = CheckpointStore(run._run.checkpoints).newest()
    assert saved.step == 110
    assert saved.part("coordinator")["counters"]["evaluated_at"] == 60


def told(run, role):
    return [call[1] for call in run._parts.told if call[0] == role]


@pytest.mark.parametrize("role", ["learner", "memory"])
def test_a_death_while_a_run_is_taken_up_again_leaves_every_rollout_with_its_state(started, role):
    run, checkpoint = started()
    getattr(run._parts, role).dies.add("restore")
    run.go_on(checkpoint)
    assert run._counters.env_steps == 100
    for index in range(ROLLOUTS):
        assert "restore" in told(run, f"rollout-{index}")
        assert "begin_anew" not in told(run, f"rollout-{index}")


def test_rollouts_that_are_under_way_go_on_as_they_are_when_another_part_dies(started, monkeypatch):
    run, checkpoint = started()
    run.go_on(checkpoint)
    run._parts.told.clear()
    begun(run, monkeypatch)
    run._recover(PartDied("learner", RuntimeError("killed")))
    assert told(run, "memory") == ["restore"]
    assert told(run, "rollout-0") == told(run, "rollout-1") == []


def test_no_two_rollouts_ever_get_the_same_number_though_counters_go_back(started, monkeypatch):
    """Messages under a number that the learner has had are dropped as repetitions."""
    run, checkpoint = started("rollout-0")
    run.go_on(checkpoint)
    numbers = []
    start = Parts.start_rollout

    def start_rollout(self, index, incarnation=0):
        numbers.append(incarnation)
        return start(self, index, incarnation)

    monkeypatch.setattr(Parts, "start_rollout", start_rollout)
    for _ in range(2):  # the machine of learner and rollout-0 is lost, twice
        begun(run, monkeypatch)
        run._start_rollout(0)  # one that died by itself
        run._recover(PartDied("learner", RuntimeError("lost")))
    run._start_rollout(1)
    assert len(numbers) == 5
    assert len(set(numbers)) == 5
    assert min(numbers) > 0


def test_a_death_amid_a_recovery_keeps_the_numbers_that_were_given(started, monkeypatch):
    run, checkpoint = started("rollout-0")
    run.go_on(checkpoint)
    begun(run, monkeypatch)
    run._parts.memory.dies.add("restore")
    run._recover(PartDied("learner", RuntimeError("lost")))
    last = run._parts.rollouts[0].incarnation
    run._start_rollout(1)
    assert run._parts.rollouts[1].incarnation > last > 1
