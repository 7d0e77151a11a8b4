import numpy as np
import pytest

from farreach_workloads.goals.environments.pusher import (
    HAND_HIGH,
    HAND_LOW,
    PUCK_HIGH,
    PUCK_LOW,
    Pusher,
)

STILL = np.zeros((1, 2))


def make(num_envs=1):
    return Pusher(num_envs, np.random.default_rng(0))


def pushing_actions(observations, goals):
    """Go behind the puck as seen from the goal, then move to where the puck touches the goal."""
    hand, puck = observations[:, :2], observations[:, 2:]
    ahead = goals[:, 2:] - puck
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    offset = hand - puck
    along = (offset * ahead).sum(axis=1, keepdims=True)
    aside = np.linalg.norm(offset - along * ahead, axis=1, keepdims=True)
    is_behind = (along < -0.04) & (aside < 0.01)
    target = np.where(is_behind, goals[:, 2:] - 0.05 * ahead, puck - 0.06 * ahead)
    return (target - hand) / 0.02


def test_reset_puts_puck_and_hand_exactly():
    env = make(3)
    env.step(np.ones((3, 2)))
    expected = np.tile(np.float32([-0.02, 0.5, 0.0, 0.6]), (3, 1))
    np.testing.assert_array_equal(env.reset(), expected)


def test_the_first_step_pulls_the_hand_into_its_limits():
    env = make()
    env.reset()
    np.testing.assert_allclose(env.step(STILL)[0], [-0.02, 0.55, 0.0, 0.6], atol=2e-3)


def test_a_full_action_moves_the_hand_by_two_centimetres():
    env = make()
    env.reset()
    env.step(STILL)
    before = env.step(STILL)[0]
    after = env.step(np.array([[-1.0, 0.0]]))[0]
    np.testing.assert_allclose(after[:2] - before[:2], [-0.02, 0.0], atol=1e-3)


def test_the_hand_stays_within_its_limits():
    env = make(4)
    env.reset()
    pulls = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    for _ in range(20):
        observations = env.step(pulls)
    corners = np.where(pulls > 0, HAND_HIGH, HAND_LOW)
    np.testing.assert_allclose(observations[:, :2], corners, atol=2e-3)


def test_a_pushed_puck_stops_within_a_centimetre():
    env = make()
    env.reset()
    for _ in range(4):
        pushed = env.step(np.array([[0.3, 1.0]]))
    assert pushed[0, 3] > 0.61
    env.step(STILL)
    resting = env.step(STILL)
    np.testing.assert_allclose(env.step(STILL)[0, 2:], resting[0, 2:], atol=1e-6)
    assert np.linalg.norm(resting[0, 2:] - pushed[0, 2:]) < 0.01


def test_an_untouched_puck_does_not_move():
    env = make()
    env.reset()
    for _ in range(30):
        observations = env.step(np.array([[-1.0, -1.0]]))
    np.testing.assert_array_equal(observations[0, 2:], np.float32([0.0, 0.6]))


def test_a_scripted_hand_pushes_the_puck_to_goals_ahead_of_it():
    count = 24
    env = make(count)
    rng = np.random.default_rng(1)
    goals = env.goals(count, rng)
    goals[:, 2] = rng.uniform(-0.03, 0.03, count)
    goals[:, 3] = rng.uniform(0.64, 0.69, count)
    observations = env.reset()
    for _ in range(env.spec.horizon):
        near = env.distance(observations, goals) < 0.01
        actions = np.where(near[:, None], 0.0, pushing_actions(observations, goals))
        observations = env.step(actions)
    reached = env.distance(observations, goals) < env.spec.success_threshold
    assert reached.mean() > 0.5


def test_goals_fill_both_rectangles():
    goals = make().goals(4000, np.random.default_rng(2))
    np.testing.assert_allclose(goals.min(axis=0), [*HAND_LOW, *PUCK_LOW], atol=2e-3)
    np.testing.assert_allclose(goals.max(axis=0), [*HAND_HIGH, *PUCK_HIGH], atol=2e-3)


def test_cells_are_squares_of_two_centimetres():
    pucks = np.array([[-0.149, 0.501], [-0.149, 0.521], [0.149, 0.699], [0.2, 0.6]])
    observations = np.concatenate([np.zeros((4, 2)), pucks], axis=1).astype(np.float32)
    cells, count = make().cells(observations)
    assert count == 150
    np.testing.assert_array_equal(cells, [0, 1, 149, -1])


def test_a_picture_shows_where_the_puck_is():
    env = make()
    frames = env.render(np.float32([[0, 0.55, -0.1, 0.6], [0, 0.55, 0.1, 0.6]]))
    env.close()
    if frames is None:
        pytest.skip("no OpenGL")
    assert frames.shape == (2, 96, 96, 3)
    redness = frames[..., 0].astype(int) - frames[..., 1]
    columns = redness.max(axis=1).argmax(axis=1)
    assert columns[0] < 48 < columns[1]
