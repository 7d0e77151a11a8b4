import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from farreach.errors import EnvironmentFault, RegistryError
from farreach_workloads.goals.environments import maze, pusher, walker
from farreach_workloads.goals.environments.export import (
    as_goal_env,
    as_gymnasium,
    as_vector_env,
    register,
)

MODULES = (maze, pusher, walker)  # importing them registers the environments


@pytest.fixture(autouse=True)
def registered():
    register()


@pytest.mark.parametrize(
    ("name", "shape"), [("UFourRooms", (7,)), ("Walker", (24,)), ("PusherLike", (4,))]
)
def test_gymnasium_makes_each_by_its_id(name, shape):
    env = gymnasium.make(f"farreach/{name}-v0")
    observation, _ = env.reset(seed=0)
    assert observation.shape == shape
    goal_env = gymnasium.make(f"farreach/{name}Goal-v0")
    assert goal_env.reset(seed=0)[0]["observation"].shape == shape
    vector_env = gymnasium.make_vec(f"farreach/{name}-v0", num_envs=3)
    assert vector_env.reset(seed=0)[0].shape == (3, *shape)
    for each in (env, goal_env, vector_env):
        each.close()


def test_an_episode_is_truncated_after_the_horizon():
    env = as_gymnasium("pusher")
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(False, True)]


def test_the_walkers_episode_has_a_thousand_control_steps():
    env = as_gymnasium("walker")
    env.reset(seed=0)
    steps, truncated = 0, False
    while not truncated:
        truncated = env.step(np.zeros(6, np.float32))[3]
        steps += 1
    assert steps == 1000


def test_the_seed_decides_start_and_goal():
    env = as_goal_env("maze")
    first, _ = env.reset(seed=5)
    other, _ = env.reset(seed=6)
    again, _ = env.reset(seed=5)
    for key in ("observation", "achieved_goal", "desired_goal"):
        np.testing.assert_array_equal(first[key], again[key])
        assert (first[key] != other[key]).any()


def test_the_reward_is_zero_at_the_goal_and_minus_one_elsewhere():
    env = as_goal_env("maze")
    observation, info = env.reset(seed=0)
    goal = observation["desired_goal"]
    assert env.compute_reward(goal, goal, {}) == 0
    # The maze's threshold is 1.0, not included.
    batch = goal + np.float32([[0.9, 0.0], [0.0, 1.1], [0.7, 0.7], [0.8, 0.8]])
    rewards = env.compute_reward(batch, np.tile(goal, (4, 1)), {})
    np.testing.assert_array_equal(rewards, [0, -1, 0, -1])
    observation, reward, *_, info = env.step(np.zeros(2, np.float32))
    assert reward == -1.0
    assert info == {"is_success": False}


def test_the_desired_goal_stays_and_the_achieved_one_follows():
    env = as_goal_env("pusher")
    start, _ = env.reset(seed=1)
    for _ in range(4):
        observation, *_ = env.step(np.array([0.3, 1.0], np.float32))
    np.testing.assert_array_equal(observation["desired_goal"], start["desired_goal"])
    np.testing.assert_array_equal(observation["achieved_goal"], observation["observation"][2:])
    assert (observation["achieved_goal"] != start["achieved_goal"]).any()


def test_the_vector_environment_resets_at_the_step_after_the_end():
    env = as_vector_env("pusher", num_envs=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    first, _ = env.reset(seed=0)
    actions = np.ones((3, 2), np.float32)
    for _ in range(50):
        observations, rewards, terminated, truncated, _ = env.step(actions)
        assert not terminated.any()
        assert (rewards == 0).all()
    assert truncated.all()
    assert (observations != first).any()
    observations, _, _, truncated, _ = env.step(actions)
    np.testing.assert_array_equal(observations, first)
    assert not truncated.any()
    assert (env.step(actions)[0] != first).any()


def test_vector_and_single_environment_agree():
    vector, single = as_vector_env("pusher", num_envs=2), as_gymnasium("pusher")
    vector.reset(seed=0)
    single.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        rows = vector.step(np.tile(action, (2, 1)))[0]
        np.testing.assert_array_equal(rows[1], single.step(action)[0])


def test_a_picture_is_made_on_request():
    env = as_gymnasium("pusher", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        picture = env.render()
    except EnvironmentFault:
        pytest.skip("no OpenGL")
    assert picture.shape == (96, 96, 3)
    assert as_gymnasium("pusher").render() is None
    env.close()


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(RegistryError, match="Did you mean 'walker'"):
        as_gymnasium("walkr")
