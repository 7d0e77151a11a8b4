import numpy as np
import pytest

from farreach_workloads.goals.config import FeaturesConfig, ReachabilityConfig
from farreach_workloads.goals.environments.maze import Maze
from farreach_workloads.goals.features import Features, measure

SCALE = np.array([2, 4, 1, 1, 1, 1, 1], np.float32)
UNIT = np.array([1, 2, 1, 1, 1, 1, 1], np.float32)
STATE = np.array([[2.0, -4.0, np.pi / 2, 9, 9, 9, 9]], np.float32)
GOAL = np.array([[4.0, -8.0, 0.0, 0, 0, 0, 0]], np.float32)


def features(**settings):
    return Features(Maze.spec, FeaturesConfig(**settings), ReachabilityConfig(), SCALE, UNIT)


def test_the_default_input_is_scaled_masked_and_relative():
    pair = features().pair(STATE, GOAL)[0]
    # x/2, y/4, sin, cos | goal x/2, y/4 | arsinh(2/1), arsinh(-4/2)
    expected = [1, -1, 1, 0, 2, -2, np.log(2 + np.sqrt(5)), -np.log(2 + np.sqrt(5))]
    np.testing.assert_allclose(pair, expected, atol=1e-6)
    np.testing.assert_allclose(features().reachability(STATE)[0], [1, -1, 1, 0], atol=1e-6)


def test_the_paper_sees_everything_raw():
    paper = features(dims="all", angles="raw", goal="full", relative=False, scale="none")
    np.testing.assert_array_equal(paper.pair(STATE, GOAL)[0], np.concatenate([STATE[0], GOAL[0]]))
    np.testing.assert_array_equal(paper.reachability(STATE)[0], STATE[0, :3])


def test_widths_are_what_comes_out():
    for settings in (
        {},
        {"goal": "full"},
        {"dims": "all", "relative": False},
        {"frequencies": 3},
    ):
        each = features(**settings)
        assert each.pair(STATE, GOAL).shape[1] == each.pair_width


def test_frequencies_add_sines_and_cosines_of_doubled_inputs_to_state_and_goal():
    each = features(frequencies=2, relative=False)
    pair = each.pair(STATE, GOAL)[0]
    x, y, gx, gy = 1.0, -1.0, 2.0, -2.0
    state = [x, y, 1, 0, *np.sin([x, 2 * x, y, 2 * y]), *np.cos([x, 2 * x, y, 2 * y])]
    goal = [gx, gy, *np.sin([gx, 2 * gx, gy, 2 * gy]), *np.cos([gx, 2 * gx, gy, 2 * gy])]
    np.testing.assert_allclose(pair, [*state, *goal], atol=1e-6)
    np.testing.assert_allclose(each.observation(STATE)[0], state, atol=1e-6)
    # The reachability network keeps its input.
    np.testing.assert_allclose(each.reachability(STATE)[0], [1, -1, 1, 0], atol=1e-6)


def test_measure_gives_spread_and_displacement_over_the_window():
    t = np.arange(11.0)
    walks = np.stack([np.stack([t, np.zeros(11)], 1), np.stack([-t, np.zeros(11)], 1)])
    scale, unit = measure(walks.astype(np.float32), window=4)
    assert scale[0] == pytest.approx(np.sqrt(np.mean(t**2)), rel=1e-6)
    assert unit[0] == pytest.approx(4.0)  # 4 steps of 1 each, either way
    assert scale[1] > 0  # a dim that never moves cannot divide by zero


def test_distance_in_units_is_that_of_the_goal_s_dims_whatever_the_heading():
    states, goals = np.zeros((3, 7), np.float32), np.zeros((3, 7), np.float32)
    goals[:, 0] = [1.5, 0.0, 3.0]  # a unit of x is 1, of y is 2
    goals[:, 1] = [4.0, -1.0, 0.0]
    goals[:, 2] = 3.0
    np.testing.assert_allclose(features().units_apart(states, goals), [2.5, 0.5, 3.0])


def test_a_masked_goal_is_seen_with_everything_else_as_it_is():
    states, goals = np.arange(14, dtype=np.float32).reshape(2, 7), np.full((2, 7), -1, np.float32)
    seen = features().as_goal(goals, states)
    np.testing.assert_array_equal(seen, [[-1, -1, 2, 3, 4, 5, 6], [-1, -1, 9, 10, 11, 12, 13]])
    np.testing.assert_array_equal(features(goal="full").as_goal(goals, states), goals)
    assert goals.max() == -1
    assert states[0, 0] == 0
