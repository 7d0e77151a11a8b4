import json
import shutil

import pytest

from farreach.checkpoint import HELD, SCORE, CheckpointStore


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def save(store, step, **settings):
    return store.save({"a": {"step": step}}, step=step, info={"epoch": step / 2}, **settings)


def steps(store):
    return sorted(int(path.name.removeprefix("step_")) for path in store.directory.iterdir())


def test_a_held_checkpoint_stays_until_it_is_released(store):
    path = save(store, 1, held=True)
    for step in (2, 3, 4):
        save(store, step)
    assert steps(store) == [1, 3, 4]
    assert store.held() == [path]
    store.release(path)
    assert store.held() == []
    save(store, 5)
    assert steps(store) == [4, 5]


def test_a_score_that_is_known_later_counts_as_one_that_was_saved(store):
    first = store.load(save(store, 1, held=True))
    second = store.load(save(store, 2, held=True))
    store.add_score(first, 0.9, {"evaluated": {"evaluation/top1": 0.9, "evaluation/x": None}})
    store.add_score(second, 0.4, {})
    assert store.held() == []
    save(store, 3)
    save(store, 4)
    assert steps(store) == [1, 3, 4]
    best = store.best()
    assert (best.step, best.score) == (1, 0.9)
    assert best.info == {
        "epoch": 0.5,
        "evaluated": {"evaluation/top1": 0.9, "evaluation/x": None},
    }
    assert best.part("a") == {"step": 1}
    best.verify()


@pytest.mark.parametrize("score", [None, float("nan")])
def test_what_has_no_score_is_released_too(store, score):
    path = save(store, 1, held=True)
    store.add_score(store.load(path), score, {"evaluated": {}})
    assert store.held() == []
    assert store.load(path).score is None
    assert store.load(path).info == {"epoch": 0.5, "evaluated": {}}
    assert store.best() is None


def test_the_score_of_a_checkpoint_that_was_replaced_is_not_that_of_its_heir(store):
    path = save(store, 1, held=True)
    old = store.load(path)
    store.save({"a": {"step": 7}}, step=1, info={}, held=True)
    store.add_score(old, 0.9, {})
    assert store.load(path).score is None
    assert store.held() == [path]
    # Even if it was written at the very moment of the replacement.
    store.add_score(store.load(path), 0.3, {})
    content = (path / SCORE).read_bytes()
    store.save({"a": {"step": 8}}, step=1, info={})
    (path / SCORE).write_bytes(content)
    assert store.load(path).score is None
    assert store.load(path).part("a") == {"step": 8}


def test_a_score_for_a_checkpoint_that_is_gone_is_passed_over(store):
    old = store.load(save(store, 1, held=True))
    shutil.rmtree(old.path)
    store.add_score(old, 0.9, {})
    assert store.newest() is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sha256": 0}', "altered"])
def test_a_damaged_score_does_not_damage_the_checkpoint(store, damage):
    path = save(store, 1, held=True)
    store.add_score(store.load(path), 0.5, {})
    text = (path / SCORE).read_text()
    assert json.loads(text)["score"] == 0.5
    (path / SCORE).write_text(text.replace("0.5", "0.6") if damage == "altered" else damage)
    found = store.newest()
    assert found.step == 1
    assert found.score is None
    assert store.skipped == []


def test_nobody_is_held_after_all_are_released(store):
    for step in (1, 2, 3, 4):
        save(store, step, held=True)
    assert [path.name[-1] for path in store.held()] == ["4", "3", "2", "1"]
    assert (store.held()[0] / HELD).read_bytes() == b""
    store.release_all()
    assert steps(store) == [1, 2, 3, 4]
    store.tidy()
    assert steps(store) == [3, 4]


def test_a_checkpoint_can_be_held_after_it_was_saved(store):
    path = save(store, 1)
    store.hold(path)
    for step in (2, 3, 4):
        save(store, step)
    assert steps(store) == [1, 3, 4]
