import os
import signal
import time

import numpy as np
import pytest
import ray

from farreach.actors.services import LOSSES, ActorService, InlineService, death_cause, fetch
from farreach.errors import ActorError, CheckpointError


class Adder:
    def __init__(self, start):
        self.total = np.array(start)

    def add(self, value):
        self.total = self.total + value
        return self.total

    def both(self):
        return self.total, {"pid": os.getpid()}

    def fail(self):
        raise CheckpointError("the part is truncated")


def test_an_inline_service_answers_at_once():
    service = InlineService("adder", Adder, (1,))
    assert fetch(service.call("add", 2)) == 3
    total, _ = service.call("both", returns=2)
    assert total == 3
    with pytest.raises(CheckpointError):
        service.call("fail")


@pytest.mark.ray
def test_an_actor_service_gives_the_same_answers_from_another_process(ray_local):
    service = ActorService("adder", Adder, (1,), num_cpus=0.1)
    pid = service.wait_until_ready()
    first = service.call("add", 2)
    second = service.call("add", first)  # a reference is resolved on the way
    total, facts = service.call("both", returns=2)
    assert fetch(second) == fetch(total) == 6
    assert fetch(facts)["pid"] == pid != os.getpid()
    with pytest.raises(CheckpointError, match="the part is truncated"):
        fetch(service.call("fail"))
    service.stop()


class Refuses:
    def __init__(self, what):
        raise CheckpointError(f"no {what} here")


def test_an_inline_service_is_built_at_once():
    with pytest.raises(CheckpointError, match="no memory here"):
        InlineService("memory", Refuses, ("memory",))


@pytest.mark.ray
def test_what_building_the_object_raises_is_raised_and_not_called_a_death(ray_local):
    service = ActorService("memory", Refuses, ("memory",), num_cpus=0.1)
    with pytest.raises(CheckpointError, match="no memory here"):
        service.wait_until_ready()
    with pytest.raises(CheckpointError, match="no memory here"):
        fetch(service.call("add", 1))


class DiesAtOnce:
    def __init__(self):
        os._exit(1)


@pytest.mark.ray
def test_an_actor_that_dies_while_it_starts_is_named(ray_local):
    service = ActorService("learner", DiesAtOnce, (), num_cpus=0.1)
    with pytest.raises(ActorError, match="the learner actor died while it started"):
        service.wait_until_ready()


@pytest.mark.ray
def test_what_a_killed_actor_has_returned_stays_readable_and_its_death_is_reported(ray_local):
    service = ActorService("adder", Adder, (np.zeros(100_000),), num_cpus=0.1)
    pid = service.wait_until_ready()
    returned = service.call("add", 1.0)
    ray.wait([returned])
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(ray.exceptions.RayActorError) as death:
        fetch(service.call("add", 1.0))
    assert "signal 9" in death_cause(death.value)
    assert fetch(returned).sum() == 100_000


class Loses:
    def read(self):
        raise ray.exceptions.ObjectLostError("ab" * 28, None, "")


@pytest.mark.ray
def test_data_that_a_call_itself_cannot_fetch_are_a_loss_and_nobodys_death(ray_local):
    service = ActorService("reader", Loses, (), num_cpus=0.1)
    with pytest.raises(LOSSES):
        fetch(service.call("read"))
    assert service.facts()["pid"] > 0
    service.stop()
