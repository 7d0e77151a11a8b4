import math

import numpy as np
import pytest
from scipy import stats

from farreach.data.replay import Ring
from farreach_workloads.goals.relabel import (
    FUTURE,
    NODE,
    ORIGINAL,
    REPLAY,
    Relabeller,
    Transitions,
    future_steps,
)

EPISODES, STEPS = 30, 12
LIKELY = 1e-3  # a right implementation falls below this once in a thousand seeds


def replay(episodes=EPISODES, steps=STEPS, version=1):
    """The observation of episode r at time t is (r, t, 0), its goal is (r, -1, 0)."""
    ring = Ring(episodes)
    observations = np.zeros((episodes, steps + 1, 3), np.float32)
    observations[..., 0] = np.arange(episodes)[:, None]
    observations[..., 1] = np.arange(steps + 1)
    goals = np.zeros((episodes, 3), np.float32)
    goals[:, 0], goals[:, 1] = np.arange(episodes), -1
    actions = observations[:, :-1, :2].copy()
    ring.append(
        {
            "observations": observations,
            "actions": actions,
            "goals": goals,
            "goal_slot": np.full(episodes, 3),
            "nearest": np.broadcast_to(np.arange(steps + 1, dtype=np.int32) % 5, (episodes, 13)),
            "version": np.full(episodes, version),
        }
    )
    return ring


def draw(toy, ring, bundle, count=20_000, seed=0, **sections):
    config = toy.config(**sections)
    relabeller = Relabeller(config, toy.env())
    features = bundle.features(config, toy.Plane.spec)
    return relabeller.sample(ring, bundle, features, count, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def mixed(toy):
    shares = {"original": 0.2, "future": 0.3, "node": 0.4, "replay": 0.1, "future_mean_steps": 3.0}
    return draw(toy, replay(), toy.line(5), relabel=shares)


def test_goals_come_in_the_configured_shares(mixed):
    counts = np.bincount(mixed.kind, minlength=4)
    assert (ORIGINAL, FUTURE, NODE, REPLAY) == (0, 1, 2, 3)
    assert stats.chisquare(counts, np.array([0.2, 0.3, 0.4, 0.1]) * 20_000).pvalue > LIKELY


def test_transitions_are_uniform_and_belong_together(mixed):
    row, t = mixed.observation[:, 0].astype(int), mixed.observation[:, 1].astype(int)
    counts = np.bincount(row * STEPS + t, minlength=EPISODES * STEPS)
    assert len(counts) == EPISODES * STEPS
    assert stats.chisquare(counts).pvalue > LIKELY
    np.testing.assert_array_equal(mixed.next_observation[:, 0], row)
    np.testing.assert_array_equal(mixed.next_observation[:, 1], t + 1)
    np.testing.assert_array_equal(mixed.action, mixed.observation[:, :2])
    np.testing.assert_array_equal(mixed.next_slot, (t + 1) % 5)


def test_an_original_goal_is_the_one_that_was_pursued(mixed):
    chosen = mixed.kind == ORIGINAL
    np.testing.assert_array_equal(mixed.goal[chosen, 0], mixed.observation[chosen, 0])
    assert (mixed.goal[chosen, 1] == -1).all()
    assert (mixed.goal_slot[chosen] == 3).all()


def test_a_future_goal_lies_later_in_the_same_episode_and_not_past_its_end(mixed):
    chosen = mixed.kind == FUTURE
    t, ahead = mixed.observation[chosen, 1], mixed.goal[chosen, 1]
    np.testing.assert_array_equal(mixed.goal[chosen, 0], mixed.observation[chosen, 0])
    assert (ahead >= t + 1).all()
    assert ahead.max() == STEPS
    assert (ahead[t == STEPS - 1] == STEPS).all()
    np.testing.assert_array_equal(mixed.goal_slot[chosen], ahead % 5)


def test_a_future_goal_is_geometrically_far_ahead():
    horizon, mean = 40, 4.0
    ahead = future_steps(np.random.default_rng(0), np.zeros(50_000, int), horizon, mean)
    expected = np.array([0.25 * 0.75 ** (k - 1) for k in range(1, 13)])
    counts = np.bincount(ahead, minlength=13)
    rest = counts[13:].sum()
    pvalue = stats.chisquare(
        [*counts[1:13], rest], np.append(expected, 1 - expected.sum()) * 50_000
    ).pvalue
    assert pvalue > LIKELY
    assert counts[0] == 0


def test_a_mean_of_one_step_or_less_is_always_the_next_state():
    t = np.arange(5)
    assert future_steps(np.random.default_rng(0), t, 9, 1.0).tolist() == [1, 2, 3, 4, 5]


def test_node_goals_are_uniform_over_the_memory(mixed):
    chosen = mixed.kind == NODE
    slots = mixed.goal_slot[chosen]
    assert stats.chisquare(np.bincount(slots, minlength=5)).pvalue > LIKELY
    np.testing.assert_array_equal(mixed.goal[chosen, 0], slots * 10)
    assert (mixed.goal[chosen, 1] == 0).all()


def test_replay_goals_are_uniform_over_all_stored_states(mixed):
    chosen = mixed.kind == REPLAY
    row, t = mixed.goal[chosen, 0].astype(int), mixed.goal[chosen, 1].astype(int)
    assert stats.chisquare(np.bincount(row, minlength=EPISODES)).pvalue > LIKELY
    assert stats.chisquare(np.bincount(t, minlength=STEPS + 1)).pvalue > LIKELY
    np.testing.assert_array_equal(mixed.goal_slot[chosen], t % 5)


@pytest.mark.parametrize("kind", ["original", "future", "node", "replay"])
def test_a_share_of_one_gives_only_this_kind(toy, kind):
    shares = {name: float(name == kind) for name in ("original", "future", "node", "replay")}
    batch = draw(toy, replay(), toy.line(5), 300, relabel=shares)
    assert set(batch.kind) == {["original", "future", "node", "replay"].index(kind)}


@pytest.mark.parametrize("kind", ["original", "future", "replay"])
def test_an_annotation_of_an_overwritten_node_is_looked_up_again(toy, kind):
    # Nodes on the axis at 0, 10, …; every state has x = its episode. Annotated at version 1,
    # slots 0 to 2 still mean the same, slots 3 and 4 were taken by others at version 2.
    ring = replay()
    shares = {name: float(name == kind) for name in ("original", "future", "node", "replay")}
    bundle = toy.line(5, version=2, born=np.array([1, 1, 1, 2, 2]))
    batch = draw(toy, ring, bundle, 3000, relabel=shares)
    nearest = (np.abs(np.arange(EPISODES)[:, None] - np.arange(5) * 10)).argmin(axis=1)
    t, row = batch.next_observation[:, 1].astype(int), batch.next_observation[:, 0].astype(int)
    # As it was annotated where that holds, by the network where it does not.
    np.testing.assert_array_equal(batch.next_slot, np.where(t % 5 < 3, t % 5, nearest[row]))
    goal_row, goal_t = batch.goal[:, 0].astype(int), batch.goal[:, 1].astype(int)
    annotated = np.full(3000, 3) if kind == "original" else goal_t % 5
    np.testing.assert_array_equal(
        batch.goal_slot, np.where(annotated < 3, annotated, nearest[goal_row])
    )


def test_a_node_goal_needs_no_looking_up_in_a_new_bundle(toy):
    # The network calls node 1 nearest to everything, but a node goal is its own node.
    network = toy.network(1.0, forwards=0.0, backwards=0.0)
    shares = {"original": 0.0, "future": 0.0, "node": 1.0}
    bundle = toy.line(5, version=2, born=np.full(5, 2), network=network)
    batch = draw(toy, replay(), bundle, 300, relabel=shares)
    np.testing.assert_array_equal(batch.goal_slot * 10, batch.goal[:, 0])


def test_a_goal_without_a_node_is_looked_up_for_graph_rewards(toy):
    ring = replay()
    ring["goal_slot"][:] = -1
    batch = draw(toy, ring, toy.line(5), 500, relabel={"original": 1.0, "future": 0.0, "node": 0.0})
    assert (np.abs(batch.goal_slot * 10 - batch.goal[:, 0]) <= 5).all()


# ------------------------------------------------------------------------------------ rewards


def sigma(x):
    return 1 / (1 + math.exp(-x))


def reward(toy, mode, scale=0.5, temperature=2.0):
    """s' at x = 1, 10.5, 32 with nodes 0, 1, 3; goals at x = 28, 10, 32 with nodes 3, 1, 3."""
    config = toy.config(reward={"mode": mode, "scale": scale, "temperature": temperature})
    bundle = toy.line(6, reach=3.0)
    following, goal = toy.points([1.0, 10.5, 32.0]), toy.points([28.0, 10.0, 32.0])
    batch = Transitions(
        toy.points([500.0, 500.0, 500.0]),  # the state before must not matter
        np.zeros((3, 2), np.float32),
        following,
        goal,
        np.array([0, 1, 3]),
        np.array([3, 1, 3]),
        np.zeros(3, int),
    )
    values = Relabeller(config, toy.env()).reward(
        batch, bundle, bundle.features(config, toy.Plane.spec)
    )
    assert values.dtype == np.float32
    return values.tolist()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # R(s', g) = 3 - |s' - g|: -24, 2.5, 3. Hops: 3, 0, 0.
        ("graph", [-1.5, 0.0, 0.0]),
        (
            "graph_goal",
            [0.5 * (-3 + sigma(-12) - 1), 0.5 * (sigma(1.25) - 1), 0.5 * (sigma(1.5) - 1)],
        ),
        # R(s', node of s') = 3 - 1, 3 - 0.5, 3 - 2.
        (
            "graph_node",
            [0.5 * (-3 + sigma(1.0) - 1), 0.5 * (sigma(1.25) - 1), 0.5 * (sigma(0.5) - 1)],
        ),
        (
            "reachability",
            [0.5 * (sigma(-12) - 1), 0.5 * (sigma(1.25) - 1), 0.5 * (sigma(1.5) - 1)],
        ),
        ("oracle_dense", [-0.5 * 27, -0.5 * 0.5, 0.0]),
        ("oracle_sparse", [-1.0, -1.0, 0.0]),  # 0.5 is not below the threshold 0.5
    ],
)
def test_each_reward_equals_its_equation(toy, mode, expected):
    assert reward(toy, mode) == pytest.approx(expected, abs=1e-6)


def test_the_dense_oracle_reward_takes_the_way_around_walls(toy):
    class Detour(toy.Plane):
        def path_distance(self, observations, goals):
            return 3 * self.distance(observations, goals)

    config = toy.config(reward={"mode": "oracle_dense", "scale": 0.1})
    bundle = toy.line(2)
    states, goals = toy.points([1.0]), toy.points([3.0])
    batch = Transitions(states, states, states, goals, *np.zeros((3, 1), int))
    relabeller = Relabeller(config, Detour(1, np.random.default_rng(0)))
    values = relabeller.reward(batch, bundle, bundle.features(config, toy.Plane.spec))
    assert values.tolist() == pytest.approx([-0.6])


@pytest.mark.parametrize("mode", ["reachability", "oracle_dense", "oracle_sparse"])
def test_rewards_without_a_graph_leave_annotations_alone(toy, mode):
    ring = replay()
    bundle = toy.line(5, version=2, born=np.full(5, 2))
    batch = draw(toy, ring, bundle, 50, reward={"mode": mode})
    np.testing.assert_array_equal(batch.next_slot, batch.next_observation[:, 1] % 5)
