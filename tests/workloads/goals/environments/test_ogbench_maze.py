"""The batched point mazes are OGBench's, bit by bit."""

import gymnasium
import numpy as np
import ogbench.locomaze  # noqa: F401 (registers its environments)
import pytest

from farreach.errors import ConfigError, EnvironmentFault
from farreach_workloads.goals.environments.ogbench_maze import MAZES, OGBenchPointMaze


@pytest.fixture(scope="module", params=MAZES)
def maze(request):
    return request.param


@pytest.fixture(scope="module")
def original(maze):
    env = gymnasium.make(f"pointmaze-{maze}-v0", terminate_at_goal=False).unwrapped
    env.reset(seed=0)
    return env


def make(maze, copies=5, seed=0):
    return OGBenchPointMaze(copies, np.random.default_rng(seed), maze=maze)


def test_positions_are_ogbenchs_bit_by_bit_walls_included(maze, original):
    env, rng = make(maze, copies=3), np.random.default_rng(1)
    env.scatter([np.random.default_rng(seed) for seed in range(3)])
    starts = env.positions
    # Directions that are held run into walls.
    actions = np.repeat(rng.uniform(-1, 1, (8, 3, 2)), 25, axis=0)
    walked, met_walls = [], 0
    for action in actions:
        before = env.positions
        env.step(action)
        walked.append(env.positions)
        met_walls += (np.abs(walked[-1] - before - 0.2 * action) > 1e-9).any(axis=1).sum()
    assert met_walls > 50
    for copy in range(3):
        original.set_xy(starts[copy])
        for step, action in enumerate(actions):
            observation, *_ = original.step(action[copy])
            np.testing.assert_array_equal(observation, walked[step][copy])


def test_tasks_start_and_end_where_ogbenchs_do(maze, original):
    env = make(maze, copies=10)
    starts, goals = env.reset(), env.goals(10, np.random.default_rng(0))
    for index in range(10):
        task = original.task_infos[index % 5]
        assert np.abs(starts[index] - task["init_xy"]).max() <= 1
        assert np.abs(goals[index] - task["goal_xy"]).max() <= 1
    np.testing.assert_array_equal(env.goal_categories(goals), [0, 1, 2, 3, 4] * 2)


def test_success_is_ogbenchs(maze, original):
    env = make(maze, copies=1)
    original.reset(seed=3, options={"task_id": 2})
    for offset, reached in ((0.99, True), (1.01, False)):
        original.set_xy(original.cur_goal_xy + np.array([offset, 0]))
        assert original.compute_success() == reached
        distance = env.distance(original.get_xy()[None], np.array(original.cur_goal_xy)[None])
        assert (distance[0] < env.spec.success_threshold) == reached


def test_the_way_is_ogbenchs_from_every_cell_to_every_cell(maze, original):
    env = make(maze, copies=1)
    cells, towards = env.next_cells()
    centres = env.centres(cells)
    np.testing.assert_array_equal(env.cell_of(centres + 1.99), cells)
    np.testing.assert_array_equal(env.cell_of(centres - 1.99), cells)
    for goal in range(0, len(cells), 3):
        for cell in range(len(cells)):
            subgoal, _ = original.get_oracle_subgoal(centres[cell], centres[goal])
            np.testing.assert_array_equal(centres[towards[goal, cell]], subgoal)


def test_paths_lead_around_walls(maze):
    env = make(maze, copies=1)
    start, goal = env.reset(), env.goals(1, np.random.default_rng(0))
    straight = env.distance(start, goal)[0]
    assert straight < env.path_distance(start, goal)[0] < 6 * straight
    cells, towards = env.next_cells()
    at = int(np.flatnonzero((cells == env.cell_of(start)[0]).all(axis=1))[0])
    end = int(np.flatnonzero((cells == env.cell_of(goal)[0]).all(axis=1))[0])
    hops = 0
    while at != end:
        at, hops = towards[end, at], hops + 1
    # Corners are cut, and a path over cells has at most twice a unit's noise at both ends.
    assert 0.6 * 4 * hops - 4 < env.path_distance(start, goal)[0] < 4 * hops + 4


def test_a_goals_cell_has_the_category_of_its_task(maze):
    env = make(maze, copies=1)
    goals = env.goals(3, np.random.default_rng(0))
    np.testing.assert_array_equal(env.categories(goals), [0, 1, 2])
    in_no_goal = env.centres(np.argwhere(env.free))
    assert (env.categories(in_no_goal) == -1).sum() >= len(in_no_goal) - 5


def test_an_unknown_maze_is_refused():
    with pytest.raises(ConfigError, match=r"no maze 'larg'. Did you mean 'large'\?"):
        make("larg")


def test_actions_that_are_not_numbers_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log of diverged simulations here
    env = make("medium", copies=2)
    env.reset()
    with pytest.raises(EnvironmentFault, match=r"copies \[1\] diverged"):
        env.step(np.array([[0, 0], [np.nan, 0]]))
