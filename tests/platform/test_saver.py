import threading
import time

import numpy as np
import pytest

from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError
from farreach.saver import Saved, Saver

PATIENCE_S = 20


class Held(CheckpointStore):
    """A disk that is as slow as the test wants it to be."""

    def __init__(self, directory):
        super().__init__(directory, keep=5)
        self.may_write, self.is_writing = threading.Event(), threading.Event()

    def save(self, parts, **more):
        self.is_writing.set()
        assert self.may_write.wait(PATIENCE_S)
        return super().save(parts, **more)


@pytest.fixture
def store(tmp_path):
    return Held(tmp_path)


@pytest.fixture
def saver(store):
    saver = Saver(store)
    yield saver
    store.may_write.set()
    saver.close()


def test_what_is_saved_is_what_was_there_when_it_began(store, saver):
    state = {"weights": np.zeros(4), "names": ["a"]}
    assert saver.begin({"learner": state}, step=1, info={"updates": 1}, score=0.5) == []
    assert store.is_writing.wait(PATIENCE_S)
    state["weights"] += 1
    state["names"].append("b")
    assert saver.done() == []
    store.may_write.set()
    assert saver.wait() == [Saved(1, store.directory / "step_000000000001", {"updates": 1}, False)]
    checkpoint = store.newest()
    assert checkpoint.score == 0.5
    assert checkpoint.part("learner")["weights"].tolist() == [0, 0, 0, 0]
    assert checkpoint.part("learner")["names"] == ["a"]


def test_each_is_told_of_once(store, saver):
    store.may_write.set()
    saver.begin({"learner": 1}, step=1, info={})
    deadline = time.monotonic() + PATIENCE_S
    while not (told := saver.done()):
        assert time.monotonic() < deadline
    assert [saved.step for saved in told] == [1]
    assert saver.done() == saver.wait() == []


def test_the_next_waits_for_the_one_before(store, saver):
    saver.begin({"learner": 1}, step=1, info={}, held=True)
    threading.Timer(0.2, store.may_write.set).start()
    before = saver.begin({"learner": 2}, step=2, info={})
    assert [(saved.step, saved.held) for saved in before] == [(1, True)]
    assert [saved.step for saved in saver.wait()] == [2]
    assert [path.name for path in store.held()] == ["step_000000000001"]


def test_a_disk_that_refuses_is_told_of_later(tmp_path):
    (tmp_path / "file").touch()
    saver = Saver(CheckpointStore(tmp_path / "file"))
    saver.begin({"learner": 1}, step=1, info={})
    with pytest.raises(CheckpointError, match="could not write the checkpoint"):
        saver.wait()
    assert saver.wait() == []
    saver.close()


def test_what_no_file_may_hold_is_told_of_at_once(saver):
    with pytest.raises(TypeError, match="cannot pack"):
        saver.begin({"learner": object()}, step=1, info={})
    assert saver.wait() == []


def test_closing_waits_for_what_is_written(store):
    saver = Saver(store)
    saver.begin({"learner": 1}, step=1, info={})
    threading.Timer(0.2, store.may_write.set).start()
    saver.close()
    assert store.newest().step == 1


def test_parts_lie_where_those_of_before_lay(store, saver):
    store.may_write.set()
    large, small = np.arange(1000.0), np.arange(10.0)
    first = saver.packed("learner", {"a": large}).data
    again = saver.packed("learner", {"a": large + 1}).data
    assert np.shares_memory(first, again)
    for step, array in enumerate((large, small, large + 2), 1):
        saver.begin({"learner": {"a": array}}, step=step, info={})
        saver.wait()
        found = CheckpointStore.load(store.directory / f"step_{step:012d}").part("learner")
        np.testing.assert_array_equal(found["a"], array)
