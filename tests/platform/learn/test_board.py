"""The board between workers and driver, which Ray may lose."""

import pickle
import threading
import time

import pytest
import ray

from farreach.errors import ActorError
from farreach.learn import board
from farreach.learn.board import DriversLink, Link, Remote
from farreach.learn.outlet import Outlet

pytestmark = pytest.mark.ray


@pytest.fixture
def link(ray_local):
    link = DriversLink()
    yield link
    link.take_down()


def lose(link):
    """As when Ray takes the driver for dead: nobody restarts it."""
    ray.kill(link._board, no_restart=True)


def test_messages_come_once_and_in_order(link):
    worker = pickle.loads(pickle.dumps(link.worker()))
    for step in range(3):
        worker.ask("put", "scalars", (step,))
    assert link.take() == ([("scalars", (step,)) for step in range(3)], None)
    worker.ask("end", ({"loss": 1.0}, False))
    assert link.take() == ([], ({"loss": 1.0}, False))
    assert worker.ask("outcome") == ({"loss": 1.0}, False)


def test_a_board_that_is_lost_is_put_up_again_and_the_wish_to_stop_with_it(link):
    worker = link.worker()
    worker.ask("put", "scalars", (1,))
    link.ask_to_stop()
    lose(link)
    answered = []
    asking = threading.Thread(target=lambda: answered.append(worker.ask("end", "the end")))
    asking.start()
    deadline = time.monotonic() + 60
    found = link.take()
    while found[1] is None and time.monotonic() < deadline:
        time.sleep(0.05)
        found = link.take()
    asking.join()
    assert found[1] == "the end"
    assert answered == [None]
    assert worker.ask("request") == board.STOP


def test_a_worker_whose_driver_is_gone_does_not_wait_for_ever(ray_local, monkeypatch):
    monkeypatch.setattr(board, "PATIENCE_S", 0.5)
    with pytest.raises(ActorError, match="board nowhere is gone"):
        Link("nowhere").ask("outcome")


def test_the_first_worker_hears_of_the_wish_to_stop_whatever_happens_to_the_board(
    link, monkeypatch
):
    monkeypatch.setattr(board, "ASK_EVERY_S", 0.0)
    outlet: Outlet = Remote(link.worker())
    assert not hears(outlet, 0.5)
    lose(link)
    assert not hears(outlet, 0.5)
    link.take()
    link.ask_to_stop()
    assert hears(outlet, 30)
    outlet.scalars(7, {"loss": 1.0}, 0.5)
    deadline = time.monotonic() + 30
    while not (found := link.take()[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == [("scalars", (7, {"loss": 1.0}, 0.5))]


def hears(outlet, patience_s):
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if outlet.stop_asked():
            return True
        time.sleep(0.05)
    return False


def test_workers_save_before_there_are_more_or_fewer_and_nobody_waits_for_others(link, monkeypatch):
    monkeypatch.setattr(board, "ASK_EVERY_S", 0.0)
    monkeypatch.setattr(board, "PAUSE_S", 1.0)
    controller, done = link.worker(), []
    controller.pause()  # nobody trains yet
    link.ask("train", True)
    outlet = Remote(link.worker())
    assert not hears(outlet, 0.3)
    assert not outlet.is_last_moment()
    pausing = threading.Thread(target=lambda: done.append(controller.pause()))
    pausing.start()
    deadline = time.monotonic() + 30
    while not outlet.is_last_moment() and time.monotonic() < deadline:
        assert not outlet.stop_asked()
        time.sleep(0.05)
    assert outlet.is_last_moment()
    assert not done  # not before it has saved, which is when it rests
    outlet.rest()
    pausing.join(10)
    assert done == [None]
    # Nobody has ended this worker after all, so that it goes on.
    assert not outlet.is_last_moment()
    assert link.ask("is_training")
    assert not hears(outlet, 0.3)
    link.ask("train", False)
    controller.pause()


def test_a_last_checkpoint_is_due_before_a_machine_goes_and_rest_after_it(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(board.time, "time", lambda: now[0])
    slept = []
    monkeypatch.setattr(board.time, "sleep", slept.append)
    outlet = Remote(Link("nowhere"))
    assert not outlet.is_last_moment()
    outlet._deadline = 1008.0
    assert not outlet.is_last_moment()
    now[0] = 1004.5
    assert outlet.is_last_moment()
    outlet.rest()
    assert slept == [6.5]  # 3 s past the deadline
    assert not outlet.is_last_moment()
