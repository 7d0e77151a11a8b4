import numpy as np
import pytest

from farreach_workloads.goals.environments.maze import (
    HIGH,
    LOW,
    Maze,
    Walls,
    is_free,
    wall_segments,
)


def maze(n, seed=0):
    return Maze(n, np.random.default_rng(seed))


def test_there_are_48_wall_segments():
    vertical, horizontal = wall_segments()
    assert len(vertical) + len(horizontal) == 48


def test_a_hundred_random_steps_stay_in_room_1_and_a_thousand_hardly_leave_it():
    env, rng = maze(1000), np.random.default_rng(1)
    start = env.reset()
    end = env.walk(rng.uniform(-1, 1, (100, 1000, 2)))[-1]
    assert np.mean(env.categories(end) == 0) > 0.99
    rms = np.sqrt(np.square(end[:, :2] - start[:, :2]).sum(1).mean())
    assert 4.0 < rms < 4.7  # measured on the original: 4.3
    end = env.walk(rng.uniform(-1, 1, (900, 1000, 2)))[-1]
    shares = np.bincount(env.categories(end), minlength=4) / 1000
    np.testing.assert_allclose(shares, [0.863, 0.135, 0.002, 0.0], atol=0.035)


def test_no_position_is_ever_outside_of_the_free_space():
    env, rng = maze(500), np.random.default_rng(2)
    env.place(env.goals(500, rng)[:, :2], rng.uniform(-np.pi, np.pi, 500))
    for _ in range(400):
        observations = env.step(rng.uniform(-1, 1, (500, 2)))
        assert is_free(observations[:, :2].astype(np.float64) * (1 - 1e-7)).all()


@pytest.mark.parametrize(
    ("start", "heading", "move", "expected"),
    [
        # Free: straight east by 1.
        ((0.0, 0.0), 0.0, 1.0, (1.0, 0.0)),
        # Backwards.
        ((0.0, 0.0), 0.0, -1.0, (-1.0, 0.0)),
        # West wall at x = -1.6: the move ends at -2.0, mirror image -1.2, c + 0.8 × 0.4 = -1.28.
        ((-1.0, 0.0), np.pi, 1.0, (-1.28, 0.0)),
        # North wall at y = 1.6, hit at 45°: c = (1.1, 1.6) - behind it 0.2071 in both axes.
        (
            (0.6, 1.1),
            np.pi / 4,
            1.0,
            (1.1 + 0.8 * (np.sqrt(0.5) - 0.5), 1.6 - 0.8 * (np.sqrt(0.5) - 0.5)),
        ),
        # A corner pocket: the bounce off one wall runs into the other, so the body stays.
        ((-1.55, 1.5), np.pi * 0.75, 1.0, (-1.55, 1.5)),
    ],
)
def test_a_move_ends_where_the_arithmetic_says(start, heading, move, expected):
    env = maze(1)
    env.place(np.array([start]), np.array([heading]))
    observation = env.step(np.array([[move, 0.0]]))[0]
    np.testing.assert_allclose(observation[:2], expected, atol=1e-6)


def test_the_heading_turns_by_a_quarter_rad_and_wraps():
    env = maze(1)
    env.place(np.zeros((1, 2)), np.array([3.1]))
    assert env.step(np.array([[0.0, 1.0]]))[0, 2] == pytest.approx(3.35 - 2 * np.pi, abs=1e-6)


def test_sorting_out_distant_moves_changes_nothing():
    walls, rng = Walls(), np.random.default_rng(3)
    start = maze(2000).goals(2000, rng)[:, :2].astype(np.float64)
    angle, length = rng.uniform(-np.pi, np.pi, 2000), rng.uniform(-1, 1, 2000)
    end = start + length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    near = walls.near(start, length)
    assert 100 < len(near) < 1900
    hits = np.flatnonzero(np.isfinite(walls.first_hit(start, end)[0]))
    assert len(hits) > 50
    assert set(hits) <= set(near)


def test_goals_are_uniform_over_the_free_space():
    env, rng = maze(1), np.random.default_rng(4)
    goals = env.goals(4000, rng)
    assert is_free(goals[:, :2].astype(np.float64) * (1 - 1e-7)).all()
    assert ((goals[:, :2] >= LOW) & (goals[:, :2] <= HIGH)).all()
    # Every room is 3 × 3 cells of the same shape, so a quarter of the goals each.
    shares = np.bincount(env.categories(goals), minlength=4) / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_the_way_to_room_4_leads_through_rooms_2_and_3():
    env = maze(1)
    start, goal = np.zeros((1, 7), np.float32), np.zeros((1, 7), np.float32)
    goal[0, :2] = (20.0, -4.0)
    assert env.distance(start, goal)[0] == pytest.approx(np.hypot(20, 4), abs=1e-4)
    # Way-points (4, -12), (12, -20), (20, -12) give 12.6 + 11.3 + 11.3 + 8 = 43.3 at most.
    assert 39 < env.path_distance(start, goal)[0] < 45


def test_every_cell_of_the_map_is_numbered_once():
    env, rng = maze(1), np.random.default_rng(5)
    cell, count = env.cells(env.goals(60_000, rng))
    assert cell.max() == count - 1
    assert len(np.unique(cell[cell >= 0])) == count
    # Free area: four rooms of 11.2² and three doors of 4.8 × 3.2 are 548 unit cells.
    assert abs(count - 548) < 0.05 * 548


def test_data_sets_begin_anywhere_free_with_any_heading():
    env = Maze(2000, np.random.default_rng(0))
    starts = env.scatter([np.random.default_rng(seed) for seed in range(2000)])
    assert is_free(starts[:, :2]).all()
    assert np.bincount(env.categories(starts), minlength=4).min() > 400
    assert starts[:, 2].min() < -3
    assert starts[:, 2].max() > 3
    np.testing.assert_array_equal(starts[:, 6], 0)
