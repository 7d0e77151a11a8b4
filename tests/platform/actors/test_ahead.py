import os
import signal
import time

import pytest

from farreach.actors import ahead
from farreach.actors.ahead import Ahead
from farreach.actors.services import ActorService
from farreach.errors import ActorError, ClusterError, DataError


class Squares:
    """Squares numbers; some of them kill it, once or always."""

    def __init__(self, folder):
        self.folder = folder

    def square(self, number, wrong=""):
        if wrong == "die" or (wrong == "die once" and self._is_first(number)):
            os.kill(os.getpid(), signal.SIGKILL)
        if wrong == "raise":
            raise DataError(f"there is no {number}.")
        return number**2, os.getpid()

    def wait(self, number, others):
        """Until so many other calls are done."""
        deadline = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < others:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (self.folder / str(number)).write_text("")
        return number, os.getpid()

    def _is_first(self, number):
        marker = self.folder / f"died-{number}"
        if marker.exists():
            return False
        marker.write_text("")
        return True


class Told:
    """Notes down who came and who died."""

    def __init__(self):
        self.came, self.died = [], []

    def helper(self, role, place):
        self.came.append((role, place.pid))

    def helper_died(self, role, fault, lost, then):
        self.died.append((role, fault.names[0], lost, then))


@pytest.fixture
def begun(ray_local, tmp_path):
    """Makes an `Ahead` of some actors, which end with the test."""
    made = []

    def begin(count=2, max_failures=2, cpus=0.1):
        def start(role):
            return ActorService(role, Squares, (tmp_path,), num_cpus=cpus)

        told = Told()
        made.append(Ahead("squarer", start, count=count, max_failures=max_failures, watcher=told))
        return made[-1], told

    yield begin
    for each in made:
        each.stop()


@pytest.mark.ray
def test_results_come_in_order_whoever_has_them(begun):
    squares, told = begun()
    for number in range(20):
        squares.ask(number, "square", number)
    found = [squares.take(number) for number in range(20)]
    assert [square for square, _ in found] == [number**2 for number in range(20)]
    assert sorted(told.came) == sorted((f"squarer-{n}", p) for n, p in _by_role(told))
    assert {pid for _, pid in found} <= {pid for _, pid in told.came}
    assert not told.died


def _by_role(told):
    return [(int(role.partition("-")[2]), pid) for role, pid in told.came]


@pytest.mark.ray
def test_whoever_is_free_works_on_the_next(begun):
    """The first call ends when all others have but the one that its actor has in hand besides."""
    squares, _ = begun()
    squares.ask(0, "wait", 0, 10)
    for number in range(1, 12):
        squares.ask(number, "wait", number, 0)
    found = [squares.take(number) for number in range(12)]
    assert [number for number, _ in found] == list(range(12))
    assert len({pid for _, pid in found}) == 2
    assert sum(pid == found[0][1] for _, pid in found) <= 2


@pytest.mark.ray
def test_calls_of_a_dead_actor_are_done_by_another(begun):
    squares, told = begun()
    for number in range(12):
        squares.ask(number, "square", number, "die once" if number in (3, 9) else "")
    found = [squares.take(number)[0] for number in range(12)]
    assert found == [number**2 for number in range(12)]
    assert [then for *_, then in told.died] == [
        "another does its work (death 1 of at most 2)",
        "another does its work (death 2 of at most 2)",
    ]
    assert {role for role, *_ in told.died} <= {"squarer-0", "squarer-1"}


@pytest.mark.ray
def test_an_actor_that_is_idle_may_die_too(begun):
    squares, told = begun(count=1)
    squares.ask(0, "square", 2)
    _, pid = squares.take(0)
    os.kill(pid, signal.SIGKILL)
    squares.ask(1, "square", 3)
    square, other = squares.take(1)
    assert square == 9
    assert other != pid
    assert len(told.died) == 1


@pytest.mark.ray
def test_one_that_dies_again_and_again_is_given_up(begun):
    squares, told = begun(max_failures=1)
    squares.ask(0, "square", 0, "die")
    with pytest.raises(ActorError, match=r"died more often than runtime\.max_failures \(1\)"):
        squares.take(0)
    assert told.died[-1][-1] == "gives up: more deaths than runtime.max_failures (1)"


@pytest.mark.ray
def test_what_a_call_raises_is_raised_as_itself(begun):
    squares, _ = begun()
    squares.ask(0, "square", 0)
    squares.ask(1, "square", 1, "raise")
    with pytest.raises(DataError, match=r"^there is no 1\.$"):
        squares.take(1)


@pytest.mark.ray
def test_nobody_waits_for_an_actor_that_finds_no_room(ray_local, begun):
    """As after the loss of a machine, where what was on it has no other place."""
    squares, told = begun(count=2, cpus=ray_local.cluster_resources()["CPU"])
    for number in range(8):
        squares.ask(number, "square", number)
    assert [squares.take(number)[0] for number in range(8)] == [number**2 for number in range(8)]
    assert len(told.came) == 1


@pytest.mark.ray
def test_a_cluster_without_room_is_named(begun, monkeypatch):
    monkeypatch.setattr(ahead, "ROOM_S", 0.5)
    squares, _ = begun(cpus=1000)
    squares.ask(0, "square", 0)
    with pytest.raises(ClusterError, match="squarer-0: the cluster has found no room"):
        squares.take(0)
