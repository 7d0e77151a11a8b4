"""The network's training on a data set: which pairs it sees, and that it learns from them."""

import numpy as np
import pytest

from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.fresh.config import FreshRunConfig
from farreach_workloads.goals.fresh.network import StorePairs, fit_network, measured
from farreach_workloads.goals.reachability import PairSampler


@pytest.fixture
def walks(toy, tmp_path):
    """Forty walks along x: steps of 1, of unequal length; `apart` lies between two starts."""

    def made(apart):
        return walks_on_a_line(toy, tmp_path, apart)

    return made


@pytest.fixture
def store(walks):
    return walks(apart=100.0)


def walks_on_a_line(toy, tmp_path, apart):
    lengths = 30 + np.arange(40) % 7
    # In no order, so that the last ones do not lie beyond all others.
    starts = apart * (7 * np.arange(40) % 40)
    walks = [start + np.arange(length) for start, length in zip(starts, lengths, strict=True)]
    columns = {
        "observation": toy.points(np.concatenate(walks)),
        "action": np.zeros((lengths.sum(), 2), np.float32),
    }
    record = write_shard(tmp_path / "shard-00000.arrow", columns, lengths, 0, {})
    write_index(tmp_path, "walks", [record])
    return EpisodeStore.open(tmp_path)


def config(**reachability):
    return FreshRunConfig(
        features={"angles": "raw"},
        reachability={
            "window": 3,
            "epochs": 2,
            "epoch_pairs": 60_000,
            "validation_pairs": 4_000,
            **reachability,
        },
    )


def test_the_measures_are_those_of_the_data(store):
    scale, unit = measured(store, 3, np.random.default_rng(0))
    states = store["observation"][np.arange(store.rows)]
    assert scale[0] == pytest.approx(states[:, 0].std(), rel=0.02)
    # Three steps further is three units, but near an episode's end.
    ends = np.minimum(np.arange(store.rows) + 3, np.repeat(store.starts[1:] - 1, store.lengths))
    change = states[ends, 0] - states[:, 0]
    assert unit[0] == pytest.approx(np.sqrt(np.square(change).mean()), rel=0.02)


def test_pairs_hold_the_states_that_the_sampler_means(store, toy):
    settings = config()
    ones = np.ones(3, np.float32)
    features = Features(toy.Plane.spec, settings.features, settings.reachability, ones, ones)
    sampler = PairSampler(3, True, 0.5, 0.5)
    pairs = StorePairs(store, features, sampler, np.random.default_rng(0))
    start, end, label = (values.numpy() for values in pairs.draw(np.arange(5, 9), 20_000))
    x, y = start[:, 0], end[:, 0]
    assert set(x // 100) == set(y // 100) == {35, 2, 9, 16}
    positive = label == 1
    ahead = (y - x)[positive]
    assert set(ahead) == {0, 1, 2, 3}
    near = (y - x >= 0) & (y - x <= 3)
    # Negatives from anywhere may be near by chance, but hardly ever are.
    assert near[~positive].mean() < 0.05


def test_the_last_episodes_are_held_out(store, toy, monkeypatch):
    drawn = []
    original = StorePairs.draw

    def draw(self, episodes, count):
        drawn.append(set(episodes.tolist()))
        return original(self, episodes, count)

    monkeypatch.setattr(StorePairs, "draw", draw)
    fit_network(store, config(epochs=1), toy.Plane.spec, lambda epoch, metrics: None)
    assert drawn[-1] == {38, 39}
    assert all(episodes == set(range(38)) for episodes in drawn[:-1])


def test_it_learns_which_states_lie_ahead(walks, toy):
    store, told = walks(apart=1.0), []
    settings = config(directed=True, epochs=6)
    weights = fit_network(store, settings, toy.Plane.spec, lambda *said: told.append(said))
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1][1]["reachability/validation_accuracy"] > 0.8
    features = Features(
        toy.Plane.spec, settings.features, settings.reachability, weights.scale, weights.unit
    )
    # All walks together go from 0 to 75.
    points = toy.points(np.arange(5.0, 65.0))
    embeddings = weights.network.embed(features.reachability(points))
    reached = weights.network.all_pairs(embeddings, embeddings) > 0
    ahead = np.arange(60)[None] - np.arange(60)[:, None]
    within = (ahead >= 0) & (ahead <= 2)
    assert reached[within].mean() > 0.9
    assert reached[(ahead > 8) & (ahead < 20)].mean() < 0.1
    assert reached[(ahead < -4) & (ahead > -20)].mean() < 0.1
    assert reached[within.T & (ahead < 0)].mean() < 0.95 * reached[within].mean()


def test_the_same_seed_gives_the_same_network(store, toy):
    one, two = (
        fit_network(store, config(epochs=1), toy.Plane.spec, lambda *said: None) for _ in range(2)
    )
    for left, right in zip(one.network.encoder, two.network.encoder, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
