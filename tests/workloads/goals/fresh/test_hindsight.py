"""The baselines' rows come in the shares of their buffer, found by enumeration."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach_workloads.goals.fresh.config import HindsightConfig
from farreach_workloads.goals.fresh.hindsight import HindsightSource

LENGTHS = [4, 1, 3]  # rows; the second has no transition
ROWS = 8


@pytest.fixture
def store(tmp_path):
    columns = {
        "observation": np.arange(24, dtype=np.float32).reshape(8, 3),
        "action": np.linspace(-0.9, 0.9, 16, dtype=np.float32).reshape(8, 2),
    }
    record = write_shard(tmp_path / "shard-00000.arrow", columns, LENGTHS, 0, {})
    write_index(tmp_path, "toy", [record])
    return EpisodeStore.open(tmp_path)


class Pairs:
    """Features: state and goal side by side."""

    def pair(self, observations, goals):
        return np.concatenate([observations, goals], axis=1)


class Agent:
    """Values are the goal's first dim; the policy always does the same."""

    device = torch.device("cpu")

    def sample(self, pair, noise):
        return torch.full_like(noise, 0.25)

    def first_value(self, pair, action):
        return pair[:, 3]


def source(store, **settings):
    return HindsightSource(store, Pairs(), HindsightConfig(**settings), Agent())


def filled_buffer(episodes):
    """(following, goal row, is it the last, is the goal random) → weight."""
    weights = Counter()
    for begin, count in episodes:
        for t in range(count):
            last = begin + t
            for g in range(ROWS):
                share = Fraction(1, ROWS)
                weights[last, g, True, True] += share  # A
                weights[last, last, True, False] += share  # B
                for j in range(t):
                    weights[begin + j, last, False, False] += share
                    weights[begin + j, g, False, True] += share
    return weights


@pytest.mark.parametrize(
    ("piece_steps", "episodes"),
    [
        (None, [(1, 3), (6, 2)]),
        (2, [(1, 2), (3, 1), (6, 2)]),
        (1, [(1, 1), (2, 1), (3, 1), (6, 1), (7, 1)]),
    ],
)
def test_rows_have_the_probabilities_of_the_papers_buffer(store, piece_steps, episodes):
    rows = source(store, piece_steps=piece_steps).draw(200_000, np.random.default_rng(0))
    columns = (rows.following, rows.goal_row, rows.is_last, rows.is_random)
    drawn = Counter(zip(*(column.tolist() for column in columns), strict=True))
    expected = filled_buffer(episodes)
    assert set(drawn) <= set(expected)
    keys = list(expected)
    total = sum(expected.values())
    wanted = np.array([float(expected[key] / total) for key in keys]) * 200_000
    assert stats.chisquare([drawn[key] for key in keys], wanted).pvalue > 1e-3
    assert not rows.is_negative.any()


def drawn(store, count=4000, seed=0, **settings):
    """The batch, and the rows it was made of."""
    made = source(store, **settings)
    rows = made.draw(count, np.random.default_rng(seed))
    return made.batch(count, np.random.default_rng(seed)), rows


def test_hindsight_pays_for_what_is_reached_and_ends_there(store):
    batch, rows = drawn(store, scale=10.0)
    reached = rows.is_last & ~rows.is_random
    np.testing.assert_array_equal(batch.reward, np.where(reached, 10.0, 0.0))
    np.testing.assert_array_equal(batch.continues, np.where(rows.is_last, 0.0, 1.0))
    observation = store["observation"][np.arange(ROWS)]
    np.testing.assert_array_equal(batch.observation, observation[rows.following - 1])
    np.testing.assert_array_equal(batch.next_observation, observation[rows.following])
    np.testing.assert_array_equal(batch.goal, observation[rows.goal_row])
    np.testing.assert_array_equal(batch.action, store["action"][rows.following])
    np.testing.assert_array_equal(batch.next_observation[reached], batch.goal[reached])


@pytest.mark.parametrize("kind", ["uniform", "policy"])
def test_every_row_is_followed_by_one_with_another_action(store, kind):
    batch, rows = drawn(store, count=20_000, negative_actions=kind)
    assert rows.is_negative.mean() == pytest.approx(0.5, abs=0.01)
    for chosen in (rows.is_last, ~rows.is_last, rows.is_random):
        assert rows.is_negative[chosen].mean() == pytest.approx(0.5, abs=0.02)
    negative = batch.action[rows.is_negative]
    if kind == "policy":
        np.testing.assert_array_equal(negative, 0.25)
    else:
        assert np.abs(negative).max() <= 1
        np.testing.assert_allclose(negative.std(axis=0), 3**-0.5, atol=0.02)
    kept = store["action"][rows.following[~rows.is_negative]]
    np.testing.assert_array_equal(batch.action[~rows.is_negative], kept)
    assert (batch.reward[rows.is_negative] == 0).all()
    assert (batch.continues[rows.is_negative] == 0).all()
    assert (batch.reward[~rows.is_negative & rows.is_last & ~rows.is_random] == 1).all()


@pytest.mark.parametrize(("rescale", "factor"), [(False, 1.0), (True, 10.0)])
def test_actionable_models_values_random_goals_once_or_as_the_released_code_does(
    store, rescale, factor
):
    batch, rows = drawn(
        store, random_goals="value", negative_actions="policy", scale=10.0, rescale_values=rescale
    )
    valued = rows.is_last & rows.is_random & ~rows.is_negative
    np.testing.assert_array_equal(batch.reward[valued], factor * batch.goal[valued, 0])
    reached = rows.is_last & ~rows.is_random & ~rows.is_negative
    assert (batch.reward[reached] == 10).all()
    assert (batch.reward[~valued & ~reached] == 0).all()
