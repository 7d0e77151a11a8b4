import tempfile

import gymnasium
import gymnasium_robotics
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from farreach.errors import ConfigError, EnvironmentFault, RegistryError
from farreach_workloads.goals.environments.gymnasium_goals import GymnasiumGoals
from farreach_workloads.goals.environments.maze_map import MazeMap
from farreach_workloads.goals.environments.point_maze import PointMazeCopies

gymnasium.register_envs(gymnasium_robotics)


def make(name, num_envs=2, **options):
    return GymnasiumGoals(num_envs, np.random.default_rng(0), name, **options)


@pytest.mark.parametrize("name", ["PointMaze_UMaze-v3", "PointMaze_Large-v3"])
def test_the_fast_point_maze_is_bit_equal_to_gymnasiums(name):
    reference = gymnasium.make(name, max_episode_steps=-1)
    inner = reference.unwrapped
    maze = MazeMap(name, inner.maze.maze_map, 1.0, noise=0.25, radius=0.1, reset_cell=None)
    copies = PointMazeCopies(inner.model, maze, num_envs=3, num_threads=1)
    rng = np.random.default_rng(1)
    for episode in range(3):
        observation, _ = reference.reset(seed=episode)
        positions = np.tile(observation["observation"][:2], (3, 1))
        rows = copies.place(positions, 0.0)
        # A constant push makes the ball hit walls and the limit of speed.
        push = rng.uniform(-1, 1, 2)
        for _ in range(300):
            action = np.clip(push + rng.normal(size=2), -1, 1).astype(np.float32)
            observation = reference.step(action)[0]
            rows = copies.step(np.tile(action, (3, 1)))
            expected = np.concatenate([observation["achieved_goal"], observation["observation"]])
            np.testing.assert_array_equal(rows, np.tile(expected.astype(np.float32), (3, 1)))
        copies.reset(rng)
    reference.close()


def test_point_maze_has_its_position_once_for_the_policy():
    env = make("PointMaze_UMaze-v3")
    assert env.spec.observation_dim == 6
    assert env.spec.goal_dims == env.spec.reachability_dims == (0, 1)
    assert env.spec.policy_dims == (0, 1, 4, 5)
    assert env.spec.success_threshold == 0.45
    goals = env.goals(5, np.random.default_rng(0))
    np.testing.assert_array_equal(goals[:, :2], goals[:, 2:4])
    assert (goals[:, 4:] == 0).all()


@pytest.mark.parametrize(
    ("name", "horizon"),
    [
        ("PointMaze_UMaze-v3", 150),
        ("PointMaze_Medium-v3", 250),
        ("PointMaze_Large-v3", 400),
        ("AntMaze_UMaze-v5", 500),
        ("FetchReach-v4", 50),
        ("Pendulum-v1", 200),
        ("Reacher-v5", 50),
    ],
)
def test_horizons_by_default(name, horizon):
    env = make(name, num_envs=1)
    assert env.spec.horizon == horizon
    env.close()


def test_options_override_horizon_and_threshold():
    env = make("Pendulum-v1", horizon=7, goal_success_threshold=0.5)
    assert (env.spec.horizon, env.spec.success_threshold) == (7, 0.5)


@pytest.mark.parametrize("name", ["PointMaze_UMaze-v3", "AntMaze_UMaze-v5"])
def test_every_copy_of_a_maze_starts_in_the_reset_cell(name):
    env = make(name, num_envs=3, reset_cell=[3, 1])
    # South west in a maze that is symmetric about the origin.
    assert (env.categories(env.reset()) == 2).all()
    assert (env.categories(make(name, num_envs=3).reset()) == 0).all()


def test_a_maze_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make("AntMaze_UMaze-v5", num_envs=2).close()
    assert list(tmp_path.iterdir()) == []


def test_the_loop_steps_an_ant_as_gymnasium_does():
    env = make("AntMaze_UMaze-v5", num_envs=1)
    rng = np.random.default_rng(4)
    env.rng = np.random.default_rng(5)
    rows = env.reset()
    reference = gymnasium.make("AntMaze_UMaze-v5", max_episode_steps=-1)
    seed = int(np.random.default_rng(5).integers(2**31))
    observation, _ = reference.reset(seed=seed, options={"reset_cell": np.array([1, 1])})
    for _ in range(20):
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        rows = env.step(action[None])
        observation = reference.step(action)[0]
    expected = np.concatenate([observation["achieved_goal"], observation["observation"]])
    np.testing.assert_array_equal(rows[0], expected.astype(np.float32))
    reference.close()
    env.close()


def test_fetch_runs_and_a_gripper_led_by_hand_reaches_its_goals():
    env = make("FetchReach-v4", num_envs=4)
    assert env.spec.success_threshold == 0.05
    assert env.spec.policy_dims[:3] == (0, 1, 2)
    goals = env.goals(4, np.random.default_rng(1))
    observations = env.reset()
    for _ in range(env.spec.horizon):
        to_goal = np.zeros((4, 4))
        to_goal[:, :3] = 10 * (goals - observations)[:, :3]
        observations = env.step(to_goal)
    assert (env.distance(observations, goals) < env.spec.success_threshold).all()
    env.close()


def test_actions_are_rescaled_to_the_environments_bounds():
    # Pendulum's torque is within ±2 and a full action must be 2.
    env = make("Pendulum-v1", num_envs=1)
    env.rng = np.random.default_rng(3)
    env.reset()
    reference = gymnasium.make("Pendulum-v1")
    reference.reset(seed=int(np.random.default_rng(3).integers(2**31)))
    expected = reference.step(np.array([2.0], np.float32))[0]
    np.testing.assert_array_equal(env.step(np.array([[1.0]]))[0], expected)


def test_goals_of_a_box_environment_are_states_of_random_walks():
    goals = make("Pendulum-v1").goals(40, np.random.default_rng(0))
    np.testing.assert_allclose(goals[:, 0] ** 2 + goals[:, 1] ** 2, 1.0, atol=1e-5)
    assert len(np.unique(goals, axis=0)) > 30


class Line(gymnasium.Env):
    """A point on a line that moves by its action and ends when asked to."""

    def __init__(self, ends_at=np.inf, says=(1,), observation_dim=1, nan_at=np.inf):
        self.observation_space = Box(-np.inf, np.inf, says, np.float64)
        self.action_space = Box(-0.5, 0.5, (1,), np.float32)
        self._ends_at = ends_at
        self._nan_at = nan_at
        self._observation_dim = observation_dim

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x = 0.0
        return np.full(self._observation_dim, self._x), {}

    def step(self, action):
        self._x += float(action[0])
        shown = np.nan if self._x >= self._nan_at else self._x
        return np.full(self._observation_dim, shown), 0.0, self._x >= self._ends_at, False, {}


class LineWithGoal(Line):
    """The same with a desired goal at 2, where the episode ends."""

    def __init__(self):
        super().__init__(ends_at=2.0)
        space = Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = Dict(observation=space, achieved_goal=space, desired_goal=space)

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return self._present(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return self._present(observation), *rest

    @staticmethod
    def _present(x):
        return {"observation": x**2, "achieved_goal": x, "desired_goal": np.array([2.0])}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Line-v0", entry_point=Line)
    gymnasium.register("LineWithGoal-v0", entry_point=LineWithGoal)
    yield
    del gymnasium.registry["Line-v0"], gymnasium.registry["LineWithGoal-v0"]


def test_a_copy_that_ended_holds_its_last_observation_until_the_reset():
    env = make("Line-v0", make={"ends_at": 1.0})
    env.reset()
    seen = [env.step(np.array([[1.0], [0.2]]))[:, 0] for _ in range(4)]
    np.testing.assert_allclose(seen, [[0.5, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]], atol=1e-6)
    env.reset()
    np.testing.assert_allclose(env.step(np.ones((2, 1)))[:, 0], 0.5)


def test_the_environments_own_goal_ends_nothing():
    env = make("LineWithGoal-v0")
    env.reset()
    for _ in range(5):
        observations = env.step(np.ones((2, 1)))
    np.testing.assert_allclose(observations, [[2.5, 6.25], [2.5, 6.25]])


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("PointMaze_UMase-v3", {}, RegistryError, "Did you mean 'PointMaze_UMaze-v3'"),
        ("nothing like it", {}, RegistryError, "no 'nothing like it' in gymnasium"),
        ("FrozenLake-v1", {}, EnvironmentFault, r"FrozenLake-v1: its observation space is Disc"),
        ("CartPole-v1", {}, EnvironmentFault, "CartPole-v1: its action space is Discrete"),
        ("Line-v0", {"make": {"says": (2, 2)}}, EnvironmentFault, r"Box of shape \(d,\)"),
        ("Line-v0", {"make": {"observation_dim": 3}}, EnvironmentFault, r"\(3,\).*\(1,\)"),
        ("Line-v0", {"make": {"length": 3}}, ConfigError, "environment.make: Line-v0 refuses"),
        ("Line-v0", {"reset_cell": [1, 1]}, ConfigError, "not a maze"),
        ("PointMaze_UMaze-v3", {"reset_cell": [0, 0]}, ConfigError, "not a free cell"),
    ],
)
def test_a_wrong_environment_is_refused_with_a_reason(name, options, error, message):
    with pytest.raises(error, match=message):
        make(name, **options)


def test_nan_names_the_environment():
    env = make("Line-v0", make={"nan_at": 1.0})
    env.reset()
    env.step(np.ones((2, 1)))
    with pytest.raises(EnvironmentFault, match=r"Line-v0: observation \[0\] is NaN"):
        env.step(np.ones((2, 1)))
