import os
import signal
import time

import pytest

from farreach.actors.tasks import done_in_any_order
from farreach.actors.witness import Witnesses
from farreach.errors import ActorError, DataError


def square(number):
    return number * number


def refuse(number):
    if number == 2:
        raise DataError("number 2 is odd somehow")
    return number


def die_once(folder, number):
    """Kills its own process, the first time, once the caller knows where it is."""
    marker, known = folder / f"died-{number}", folder / f"task-{number}"
    if not marker.exists():
        marker.write_text("")
        while not known.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_inline_calls_come_in_order():
    done = done_in_any_order(square, [(3,), (1,), (2,)], inline=True)
    assert list(done) == [(0, 9), (1, 1), (2, 4)]


@pytest.mark.ray
def test_tasks_give_what_inline_calls_give(ray_local):
    items = [(number,) for number in range(60)]
    done = dict(done_in_any_order(square, items, inline=False, num_cpus=0.5))
    assert done == dict(done_in_any_order(square, items, inline=True))


@pytest.mark.ray
@pytest.mark.parametrize("inline", [True, False])
def test_what_a_call_raises_is_raised_as_itself(inline, ray_local):
    with pytest.raises(DataError, match=r"^number 2 is odd somehow$"):
        list(done_in_any_order(refuse, [(n,) for n in range(5)], inline=inline))


@pytest.mark.ray
def test_work_of_a_process_that_dies_is_done_again(ray_local, tmp_path, monkeypatch):
    watch = Witnesses.watch

    def watch_and_say(witnesses, role, place):
        watch(witnesses, role, place)
        (tmp_path / role).write_text("")

    monkeypatch.setattr(Witnesses, "watch", watch_and_say)
    items, reports = [(tmp_path, number) for number in range(2)], []
    done = done_in_any_order(die_once, items, inline=False, tell=reports.append)
    assert sorted(done) == [(0, 0), (1, 1)]
    assert {report.cause for report in reports} == {"signal"}
    assert {report.lost for report in reports} == {f"its work on item {i} of 2" for i in (1, 2)}
    # A task that waited in a process that dies ends with it, before anyone knows where it is.
    assert {report.role for report in reports if report.pid} == {"task-0", "task-1"}


@pytest.mark.ray
def test_work_that_kills_every_process_is_given_up(ray_local):
    with pytest.raises(ActorError, match="a task died 4 times"):
        list(done_in_any_order(die, [()], inline=False))
