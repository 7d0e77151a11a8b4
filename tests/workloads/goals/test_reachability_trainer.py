from collections import Counter

import numpy as np
import pytest

from farreach import messages
from farreach_workloads.goals.reachability_trainer import ReachabilityTrainer


@pytest.fixture
def make(toy):
    def make_trainer(scale="none", **reachability):
        settings = {"first_pairs": 4096, "refresh_pairs": 1024, "window": 3, **reachability}
        config = toy.config(reachability=settings, features={"scale": scale})
        return ReachabilityTrainer(config, toy.Plane.spec)

    return make_trainer


@pytest.fixture
def walks(toy):
    """Ten-step walks along x that start from `begin`."""

    def from_x(begin, count=30, seed=0):
        steps = np.random.default_rng(seed).normal(0, 1, (count, 11)).cumsum(axis=1)
        return toy.walks(begin + steps)

    return from_x


@pytest.fixture
def drawn(monkeypatch):
    """Which walks the pairs of each `refresh` came from: walk → how often, in training."""
    counts = []

    def record(trainer):
        inner = trainer._emphasised

        def emphasised(ids):
            chosen = inner(ids)
            counts.append(Counter(chosen.tolist()))
            return chosen

        monkeypatch.setattr(trainer, "_emphasised", emphasised)
        return counts

    return record


def share(counts, rows):
    return sum(counts[row] for row in rows) / sum(counts.values())


def test_walks_since_the_last_refresh_make_up_the_recent_share(make, walks, drawn):
    trainer = make(recent_frac=0.4)
    counts = drawn(trainer)
    for _ in range(10):
        trainer.add(walks(0))
    trainer.refresh()
    trainer.add(walks(50, 20))
    trainer.add(walks(60, 20))
    trainer.refresh()
    trainer.refresh()
    everything, fresh = range(340), range(300, 340)
    assert share(counts[0], everything) == 1
    assert len(set(counts[0].values())) == 1  # all are fresh, so none is favoured
    assert share(counts[1], fresh) == pytest.approx(0.4, abs=0.005)
    assert len({counts[1][row] for row in range(300)}) == 2  # held out or once
    assert share(counts[2], fresh) == pytest.approx(40 / 340, abs=0.01)  # fresh no longer


def test_walks_that_are_held_out_are_never_trained_on(make, walks, drawn):
    trainer = make(recent_frac=0.9)
    counts = drawn(trainer)
    trainer.add(walks(0, 60))
    trainer.refresh()
    trainer.add(walks(50, 60))
    trainer.refresh()
    for count in counts:
        assert not {19, 39, 59, 79, 99, 119} & set(count)


def test_more_fresh_walks_than_their_share_are_all_used_once(make, walks, drawn):
    trainer = make(recent_frac=0.2)
    counts = drawn(trainer)
    trainer.add(walks(0, 10))
    trainer.refresh()
    trainer.add(walks(50, 90))  # nine tenths of all
    trainer.refresh()
    assert set(counts[1].values()) == {1}


def test_a_restored_trainer_continues_as_if_nothing_had_happened(make, walks):
    trainer, restored = make(), make()
    trainer.add(walks(0))
    trainer.refresh()
    trainer.add(walks(40, seed=1))  # fresh, so it must still be favoured afterwards
    restored.add(walks(7, seed=2))
    restored.restore(messages.unpack(messages.pack(trainer.state())))
    one, two = trainer.refresh(), restored.refresh()
    assert one[1] == two[1]
    for ours, theirs in zip(one[0].network.encoder, two[0].network.encoder, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_it_learns_what_the_walks_can_reach(make, walks, toy):
    trainer = make("walk", first_pairs=300_000, refresh_pairs=300_000, in_trajectory_frac=0)
    for place in range(5):
        trainer.add(walks(60 * place, seed=place))
    trainer.refresh()
    weights, metrics = trainer.refresh()
    # Half of the pairs are negatives. One in five of those comes from the same place and can
    # hardly be told from a positive, which leaves 0.9.
    assert metrics["reachability/validation_accuracy"] == pytest.approx(0.9, abs=0.03)
    features = trainer._features
    at = weights.network.embed(features.reachability(toy.points([120.0, 120.5, 180.0])))
    near, far = weights.network.logits(at[[0, 0]], at[[1, 2]])
    assert far < 0 < near
