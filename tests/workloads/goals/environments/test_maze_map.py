import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib.figure import Figure

from farreach.errors import ConfigError
from farreach_workloads.goals.environments.maze_map import MazeMap

U_MAZE = [
    [1, 1, 1, 1, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]
TWO_ROOMS = [[1, 1, 1, 1, 1], [1, "r", 1, 0, 1], [1, 1, 1, 1, 1]]


def make(cells=U_MAZE, side=2.0, reset_cell=None):
    return MazeMap("a maze", cells, side, noise=0.25, radius=0.2, reset_cell=reset_cell)


def test_copies_start_in_the_first_free_cell_in_reading_order():
    maze = make()
    assert maze.reset_cell == (1, 1)
    # The centre of the map is the origin, so cell (1, 1) is centred at (-2, 2).
    starts = maze.starts(1000, np.random.default_rng(0))
    assert (np.abs(starts - [-2.0, 2.0]) <= 0.5).all()
    assert np.ptp(starts, axis=0).min() > 0.9


def test_another_reset_cell_can_be_asked_for():
    starts = make(reset_cell=(3, 1)).starts(10, np.random.default_rng(0))
    assert (np.abs(starts - [-2.0, -2.0]) <= 0.5).all()


@pytest.mark.parametrize("cell", [(0, 0), (2, 2), (9, 1), (-1, 1)])
def test_a_reset_cell_in_a_wall_is_refused_with_the_free_ones(cell):
    with pytest.raises(ConfigError, match=r"a maze.*\[1, 1\], \[1, 2\]"):
        make(reset_cell=cell)


def test_goals_lie_in_every_free_cell_equally_often():
    maze = make()
    goals = maze.goals(7000, np.random.default_rng(1))
    cells, counts = np.unique(np.floor((goals + 5) / 2), axis=0, return_counts=True)
    assert len(cells) == 7
    assert (np.abs(counts - 1000) < 150).all()
    assert maze.is_free(goals).all()


def test_what_cannot_be_reached_is_neither_goal_nor_cell():
    maze = make(TWO_ROOMS)
    assert (maze.goals(100, np.random.default_rng(0))[:, 0] < 0).all()
    cells, count = maze.sub_cells(np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
    assert count == 16
    assert cells[0] >= 0
    assert (cells[1:] == -1).all()


def test_sub_cells_are_sixteenths_numbered_from_the_north_west():
    maze = make()
    points = np.array([[-2.99, 2.99], [-2.49, 2.99], [2.99, -2.99], [0.0, 0.0], [99.0, 0.0]])
    cells, count = maze.sub_cells(points)
    assert count == 7 * 16
    np.testing.assert_array_equal(cells, [0, 1, 111, -1, -1])


def test_the_body_must_fit_between_the_walls():
    points = np.array([[-2.0, 2.0], [-2.85, 2.0], [-2.75, 2.0], [0.0, 0.0], [50.0, 50.0]])
    np.testing.assert_array_equal(make().is_free(points), [True, False, True, False, False])


def test_the_path_leads_around_the_wall_of_the_u():
    maze = make()
    # Along the corridor over the corner squares: at least 2 × 3.2 + 2.4, by the centre line 12.
    length = maze.path_distance(np.array([[-2.0, 2.0]]), np.array([[-2.0, -2.0]]))[0]
    inner = 2 * np.hypot(3.2, 0.8) + 2.4
    assert inner <= length <= 1.1 * inner


def test_quadrants_are_named_by_the_compass():
    points = np.array([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    np.testing.assert_array_equal(make([[0]], 4.0).quadrants(points), [0, 1, 2, 3])
    moved = MazeMap("a maze", [[0]], 4.0, noise=0, radius=0, reset_cell=None, centre=(7.0, -3.0))
    np.testing.assert_array_equal(moved.quadrants(points + np.array([7.0, -3.0])), [0, 1, 2, 3])
    assert moved.is_free(np.array([[8.9, -4.9], [9.1, -4.9], [0.0, 0.0]])).tolist() == [1, 0, 0]


def test_drawing_shows_each_wall():
    axes = Figure().subplots()
    make().draw(axes)
    assert len(axes.patches) == 18
    assert axes.get_xlim() == (-5.0, 5.0)
