"""Which transitions and goals the agents see, on a data set small enough to enumerate."""

from collections import Counter

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats

from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach_workloads.goals.agents.build import OfflineAgent
from farreach_workloads.goals.agents.rows import GoalMix, TrainingRows
from farreach_workloads.goals.config import FeaturesConfig, NetworkConfig
from farreach_workloads.goals.environments.base import GoalEnvironmentSpec
from farreach_workloads.goals.features import Features

LENGTHS = [4, 1, 3, 6]  # rows 0-3, 4, 5-7, 8-13; an episode of one state has no transition
ROWS = sum(LENGTHS)
STARTS = [0, 1, 2, 5, 6, 8, 9, 10, 11, 12]
LAST = np.repeat([3, 4, 7, 13], LENGTHS)
SPEC = GoalEnvironmentSpec(
    name="toy",
    observation_dim=3,
    action_dim=2,
    horizon=5,
    success_threshold=1.0,
    reachability_dims=(0, 1),
    policy_dims=(0, 1),
    goal_dims=(0,),
    plane_dims=(0, 1),
)


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "observation": np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3),
        "action": rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
    }
    record = write_shard(tmp_path / "shard-00000.arrow", columns, LENGTHS, 0, {})
    write_index(tmp_path, "toy", [record])
    settings = FeaturesConfig(angles="raw", relative=False, scale="none")
    ones = np.ones(3, np.float32)
    made = TrainingRows(
        EpisodeStore.open(tmp_path), Features(SPEC, settings, NetworkConfig(), ones, ones)
    )
    return made, columns


def test_all_transitions_are_equally_likely(rows):
    drawn = Counter(rows[0].transitions(20_000, np.random.default_rng(0)).tolist())
    assert sorted(drawn) == STARTS
    assert stats.chisquare([drawn[row] for row in STARTS]).pvalue > 1e-3


def test_goals_come_in_the_shares_of_the_mix(rows):
    mix = GoalMix(current=0.2, future=0.5, random=0.3)
    count = 60_000
    goals = rows[0].goals(np.full(count, 9), mix, np.random.default_rng(1))
    # From row 9: itself; rows 10 to 13 of its episode equally; any of 14 rows.
    expected = np.full(ROWS, 0.3 / ROWS)
    expected[9] += 0.2
    expected[10:14] += 0.5 / 4
    found = np.bincount(goals, minlength=ROWS)
    assert stats.chisquare(found, expected * count).pvalue > 1e-3


def test_future_goals_may_be_geometric_and_end_with_the_episode(rows):
    mix = GoalMix(future=1.0, spread=2.0)
    count = 40_000
    goals = rows[0].goals(np.full(count, 9), mix, np.random.default_rng(2))
    # Steps 1, 2, 3 with 1/2, 1/4, 1/8; whatever is further is the last state, 4 steps on.
    found = np.bincount(goals - 9, minlength=5)[1:]
    assert stats.chisquare(found, count * np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])).pvalue > 1e-3


@pytest.mark.parametrize("spread", [None, 3.0])
def test_no_future_goal_lies_in_another_episode(rows, spread):
    rng = np.random.default_rng(3)
    start = rows[0].transitions(10_000, rng)
    goals = rows[0].goals(start, GoalMix(spread=spread), rng)
    assert (goals > start).all()
    assert (goals <= LAST[start]).all()


def test_states_ahead_stop_at_the_end_of_the_episode(rows):
    start = np.array([0, 2, 5, 12, 8])
    np.testing.assert_array_equal(rows[0].ahead(start, 2), [2, 3, 7, 13, 10])


def test_inputs_are_those_of_the_rows(rows):
    made, columns = rows
    start, goal = np.array([1, 8]), np.array([3, 2])
    observation = columns["observation"]
    # The goal's dim is the first; the policy sees the first two.
    expected = np.concatenate([observation[start, :2], observation[goal, :1]], axis=1)
    np.testing.assert_array_equal(made.pair(start, goal), expected)
    np.testing.assert_array_equal(made.states(start), observation[start, :2])
    # The action of a transition is stored with the state that it leads to.
    np.testing.assert_array_equal(made.actions(start), columns["action"][[2, 9]])


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match=r"current \+ future \+ random is 1.2; they must add up"):
        GoalMix(future=1.0, random=0.2)


def test_what_a_config_leaves_out_of_a_mix_is_the_agents_own():
    """Without random and current goals, no value of a state that is reached is ever learned."""
    settings = TypeAdapter(OfflineAgent).validate_python(
        {"kind": "gcivl", "critic_goals": {"spread": 200}}
    )
    assert settings.critic_goals == GoalMix(current=0.2, future=0.5, random=0.3, spread=200.0)
    settings = TypeAdapter(OfflineAgent).validate_python(
        {"kind": "crl", "critic_goals": {"future": 0.9, "random": 0.1}}
    )
    assert settings.critic_goals == GoalMix(future=0.9, random=0.1, spread=100.0)
    with pytest.raises(ValueError, match=r"is 1.3; .*: current 0.2, future 0.8, random 0.3"):
        TypeAdapter(OfflineAgent).validate_python({"kind": "hiql", "critic_goals": {"future": 0.8}})
