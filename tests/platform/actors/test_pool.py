import contextlib
import os
import signal
import time

import pytest

from farreach.actors.pool import pulled
from farreach.errors import ActorError, ClusterError, DataError


class Counting:
    """Counts up to an item; some items go wrong."""

    def __init__(self, folder=None):
        self.folder = folder

    def __call__(self, number, wrong=""):
        for step in range(number):
            if wrong == "raise" and step == 1:
                raise DataError(f"step {step} of {number} is missing.")
            if step == 1 and (wrong == "die" or (wrong == "die once" and self._first())):
                os.kill(os.getpid(), signal.SIGKILL)
            yield step, os.getpid()

    def _first(self):
        marker = self.folder / "died"
        if marker.exists():
            return False
        marker.write_text("")
        return True


def told(items, workers=0, factory=Counting, arguments=(), **options):
    with contextlib.closing(pulled(factory, arguments, items, workers=workers, **options)) as found:
        return list(found)


def steps(messages, item):
    return [None if message is None else message[0] for index, message in messages if index == item]


def test_without_workers_everything_comes_in_order_from_this_process():
    messages = told([(2,), (0,), (1,)])
    assert messages == [
        (0, (0, os.getpid())),
        (0, (1, os.getpid())),
        (0, None),
        (1, None),
        (2, (0, os.getpid())),
        (2, None),
    ]


@pytest.mark.ray
def test_actors_tell_the_same_of_each_item(ray_local):
    items = [(number % 4,) for number in range(12)]
    messages, expected = told(items, workers=2, num_cpus=0.5), told(items)
    for item in range(len(items)):
        assert steps(messages, item) == steps(expected, item)
    pids = {message[1] for _, message in messages if message is not None}
    assert len(pids) <= 2
    assert os.getpid() not in pids


class Patient:
    """The first item waits for all others."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, number, count):
        deadline = time.monotonic() + 60
        while number == 0 and len(list(self.folder.iterdir())) < count - 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (self.folder / str(number)).write_text("")
        yield os.getpid()


@pytest.mark.ray
def test_who_is_done_takes_the_next_item(ray_local, tmp_path):
    items = [(number, 10) for number in range(10)]
    messages = told(items, workers=2, factory=Patient, arguments=(tmp_path,), num_cpus=0.1)
    pids = {index: message for index, message in messages if message is not None}
    others = {pids[number] for number in range(1, 10)}
    assert len(others) == 1
    assert pids[0] not in others


@pytest.mark.ray
def test_the_item_of_a_dead_actor_is_done_by_another(ray_local, tmp_path):
    items, reports = [(3, "die once"), (2,), (2,)], []
    messages = told(items, workers=1, arguments=(tmp_path,), num_cpus=0.1, tell=reports.append)
    (report,) = reports
    assert report.role == "worker-0"
    assert report.cause == "signal"
    assert report.pid
    assert report.lost == "its work on item 1 of 3"
    assert steps(messages, 0)[-4:] == [0, 1, 2, None]
    assert [index for index, message in messages if message is None] == [0, 1, 2]


@pytest.mark.ray
def test_an_item_that_kills_every_actor_is_given_up(ray_local):
    with pytest.raises(ActorError, match="workers died 2 times on one piece of work"):
        told([(2, "die")], workers=2, num_cpus=0.1, max_failures=1)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [0, 2])
def test_what_an_item_raises_is_raised_as_itself(workers, ray_local):
    with pytest.raises(DataError, match=r"^step 1 of 2 is missing\.$"):
        told([(1,), (2, "raise")], workers=workers, num_cpus=0.1)


@pytest.mark.ray
def test_too_few_gpus_are_an_error_and_no_wait(ray_local):
    there = ray_local.cluster_resources().get("GPU", 0.0)
    with pytest.raises(ClusterError, match="Lower workers or gpus"):
        told([(1,), (1,)], workers=2, num_gpus=there + 1)


class Sleepy:
    """Takes its time, so that nobody does all of the work before the others are there."""

    def __call__(self, number):
        time.sleep(0.1)
        yield number


@pytest.mark.ray
def test_nobody_waits_for_a_worker_that_finds_no_room(ray_local):
    """As after the loss of a machine, where what was on it has no other place."""
    cpus = ray_local.cluster_resources()["CPU"]
    messages = told([(number,) for number in range(6)], workers=3, factory=Sleepy, num_cpus=cpus)
    assert sorted(index for index, message in messages if message is None) == list(range(6))
