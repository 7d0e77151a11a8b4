import numpy as np
import pytest
from dm_control import suite

from farreach.errors import ConfigError
from farreach_workloads.goals.environments.walker import POSES, Walker, joint_positions

COPIES = 4


def make(num_envs=COPIES, seed=0):
    return Walker(num_envs, np.random.default_rng(seed))


def flat(time_step):
    """dm_control's observation as one float32 row, in the order of the 24 dims."""
    parts = [time_step.observation[key] for key in ("orientations", "height", "velocity")]
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


def test_two_hundred_control_steps_are_bit_equal_to_dm_control():
    env = make()
    observations = env.reset()
    positions, velocities = env.joint_state()
    references = []
    for position, velocity in zip(positions, velocities, strict=True):
        reference = suite.load("walker", "walk")
        reference.reset()
        with reference.physics.reset_context():
            reference.physics.data.qpos[:] = position
            reference.physics.data.qvel[:] = velocity
        references.append(reference)
        parts = reference.task.get_observation(reference.physics)
        row = np.concatenate([np.ravel(part) for part in parts.values()]).astype(np.float32)
        np.testing.assert_array_equal(observations[len(references) - 1], row)
    rng = np.random.default_rng(1)
    for _ in range(200):
        actions = rng.uniform(-1, 1, (COPIES, 6))
        observations = env.step(actions)
        expected = [flat(r.step(a)) for r, a in zip(references, actions, strict=True)]
        np.testing.assert_array_equal(observations, expected)
    positions, velocities = env.joint_state()
    for index, reference in enumerate(references):
        np.testing.assert_array_equal(positions[index], reference.physics.data.qpos)
        np.testing.assert_array_equal(velocities[index], reference.physics.data.qvel)


def test_a_held_action_is_two_control_steps_and_leaves_evaluation_as_it_is():
    one, two = make(), Walker(COPIES, np.random.default_rng(0), hold=2)
    assert (one.spec.action_repeat, two.spec.action_repeat) == (2, 1)
    np.testing.assert_array_equal(one.reset(), two.reset())
    rng = np.random.default_rng(1)
    for _ in range(20):
        actions = rng.uniform(-1, 1, (COPIES, 6))
        one.step(actions)
        np.testing.assert_array_equal(one.step(actions), two.step(actions))


def test_an_action_can_be_held_for_one_or_two_control_steps_only():
    with pytest.raises(ConfigError, match="hold is 3"):
        Walker(1, np.random.default_rng(0), hold=3)


def test_joint_positions_are_recovered_from_an_observation():
    env = make()
    rng = np.random.default_rng(2)
    for _ in range(40):
        observations = env.step(rng.uniform(-1, 1, (COPIES, 6)))
    expected, _ = env.joint_state()
    expected[:, 1] = 0.0
    expected[:, 2] = np.arctan2(np.sin(expected[:, 2]), np.cos(expected[:, 2]))
    np.testing.assert_allclose(joint_positions(observations), expected, atol=1e-5)


def lexa_distance(position, goal):
    """The measure written out joint by joint from the definition."""

    def one_way(goal):
        turn = abs(position[2] - goal[2]) % (2 * np.pi)
        gaps = [abs(position[0] - goal[0]), min(turn, 2 * np.pi - turn)]
        gaps += [abs(position[joint] - goal[joint]) for joint in (3, 4, 6, 7)]
        return max(gaps)

    mirrored = [*goal[:3], *goal[6:9], *goal[3:6]]
    return min(one_way(goal), one_way(mirrored))


def test_the_distance_agrees_with_the_measure_on_known_joint_positions():
    rng = np.random.default_rng(3)
    count = 200
    env = make(count)
    env.reset()
    positions, velocities = env.joint_state()
    positions[:, :2] += rng.uniform(-1, 1, (count, 2))
    positions[:, 2] = rng.uniform(-9, 9, count)
    observations = env.place(positions, velocities)
    goals = env.goals(count, rng)
    poses = [list(POSES.values())[index % 12] for index in range(count)]
    expected = [lexa_distance(q, g) for q, g in zip(positions, poses, strict=True)]
    np.testing.assert_allclose(env.distance(observations, goals), expected, atol=2e-6)


def test_exchanging_the_legs_costs_nothing_and_ankles_do_not_count():
    env = make(2)
    pose = np.array(POSES["lean_back"])
    mirrored = pose[[0, 1, 2, 6, 7, 8, 3, 4, 5]]
    other_ankles = pose + np.array([0, 3, 0, 0, 0, 0.2, 0, 0, -0.3])
    observations = env.place(np.stack([mirrored, other_ankles]), np.zeros((2, 9)))
    goal = env.goals(12, np.random.default_rng(0))[[6, 6]]
    np.testing.assert_allclose(env.distance(observations, goal), 0.0, atol=1e-6)


def test_goals_are_the_twelve_poses_at_rest_in_turn():
    env = make(1)
    goals = env.goals(25, np.random.default_rng(0))
    np.testing.assert_array_equal(goals[:12], goals[12:24])
    np.testing.assert_array_equal(goals[24], goals[0])
    np.testing.assert_allclose(joint_positions(goals[:12]), list(POSES.values()), atol=1e-6)
    assert (goals[:, 15:] == 0).all()
    np.testing.assert_array_equal(env.categories(goals[:12]), np.arange(12))


def test_a_state_far_from_every_pose_has_no_category():
    env = make(1)
    upside_down_in_the_air = np.array([[2.0, 0, 3.1, 0, 0, 0, 0, 0, 0]])
    assert env.categories(env.place(upside_down_in_the_air, np.zeros((1, 9))))[0] == -1


@pytest.mark.parametrize("how", ["reset", "scatter"])
def test_every_start_draws_each_joint_in_its_range_at_rest(how):
    env = make(2000)
    if how == "reset":
        env.reset()
    else:
        env.scatter([np.random.default_rng(seed) for seed in range(2000)])
    positions, velocities = env.joint_state()
    assert (velocities == 0).all()
    assert (positions[:, :2] == 0).all()
    # Torso in ±π; hips -20 to 100 degrees, knees -150 to 0, ankles ±45.
    low = np.radians([-180, -20, -150, -45, -20, -150, -45])
    high = np.radians([180, 100, 0, 45, 100, 0, 45])
    assert ((positions[:, 2:] >= low) & (positions[:, 2:] <= high)).all()
    np.testing.assert_allclose(positions[:, 2:].mean(axis=0), (low + high) / 2, atol=0.15)
    np.testing.assert_allclose(positions[:, 2:].std(axis=0), (high - low) / 12**0.5, rtol=0.1)


def test_a_diverged_copy_starts_anew_and_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log of diverged simulations here
    env = make()
    env.reset()
    positions, velocities = env.joint_state()
    velocities[2, 4] = 1e12
    env.place(positions, velocities)
    observations = env.step(np.zeros((COPIES, 6)))
    assert env.diverged == 1
    assert np.isfinite(observations).all()
    assert (observations[2, 15:] == 0).all()
    assert (observations[[0, 1, 3], 15:] != 0).any(axis=1).all()
    env.step(np.zeros((COPIES, 6)))
    assert env.diverged == 1


def test_a_picture_shows_the_pose_or_there_is_no_opengl():
    env = make(1)
    goals = env.goals(2, np.random.default_rng(0))
    frames = env.render(goals)
    env.close()
    if frames is None:
        pytest.skip("no OpenGL")
    assert frames.shape == (2, 96, 96, 3)
    assert frames.dtype == np.uint8
    assert (frames[0] != frames[1]).any()


def test_missing_opengl_gives_no_picture_and_no_crash(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    env = make(1)
    assert env.render(env.goals(1, np.random.default_rng(0))) is None
