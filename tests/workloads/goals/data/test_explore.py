"""Exploration data: reproducible, aligned, and wider than random data."""

import numpy as np
import pytest

from farreach import datasets, seeding
from farreach.data.episodes import EpisodeStore
from farreach_workloads.goals.data import explore
from farreach_workloads.goals.data.behaviours import behaviours

SETTINGS = ["behaviour=rnd", "episodes=6", "steps=60", "episodes_per_shard=3"]


class Line:
    """x from 0, moved by up to 0.1 a step: a random walk stays near where it began."""

    class spec:  # noqa: N801 (as the environments have it)
        observation_dim = 1
        action_dim = 1

    def __init__(self, copies):
        self._x = np.zeros((copies, 1), np.float32)

    def scatter(self, rngs):
        self._x[:] = [[rng.uniform(-0.1, 0.1)] for rng in rngs]
        return self._x.copy()

    def step(self, actions):
        self._x = np.clip(self._x + 0.1 * actions, -5, 5).astype(np.float32)
        return self._x.copy()

    def walk(self, actions):
        return np.stack([self.step(one) for one in actions])


def test_an_explorer_goes_further_than_chance(monkeypatch):
    monkeypatch.setattr(explore, "COPIES", 5)
    reach = {}
    for name in ("random", "rnd"):
        rngs = [seeding.generator(0, "episode", index) for index in range(20)]
        observations, actions = behaviours.get(name)(Line, rngs, 150)
        assert observations.shape == (20, 151, 1)
        assert actions.shape == (20, 150, 1)
        moved = np.clip(observations[:, :-1] + 0.1 * actions, -5, 5)
        np.testing.assert_allclose(observations[:, 1:], moved, atol=1e-5)
        reach[name] = np.abs(observations[10:]).max(axis=(1, 2)).mean()
    assert reach["rnd"] > 2 * reach["random"]


@pytest.mark.parametrize("first", [False, True])
def test_the_data_depend_on_the_seed_alone(tmp_path, monkeypatch, first):
    monkeypatch.setattr(explore, "FIRST_STEPS", 20)
    whole = datasets.generate("data/walker_rnd_debug", SETTINGS, tmp_path / "whole")
    # One shard is there already, as after an interruption.
    part = tmp_path / "part"
    part.mkdir()
    kept = "shard-00000.arrow" if first else "shard-00001.arrow"
    (part / kept).write_bytes((tmp_path / "whole" / kept).read_bytes())
    again = datasets.generate("data/walker_rnd_debug", SETTINGS, part)
    assert again.info["content"] == whole.info["content"]
    other = datasets.generate("data/walker_rnd_debug", [*SETTINGS, "seed=1"], tmp_path / "other")
    assert other.info["content"] != whole.info["content"]
    assert len(EpisodeStore.open(part)) == 6
