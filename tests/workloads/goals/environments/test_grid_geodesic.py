import math
import time

import numpy as np
import pytest

from farreach_workloads.goals.environments.grid_geodesic import GridGeodesic


def wall_with_door(points):
    """A 10 × 10 square with a wall 4.5 < x < 5.5 that is open above y = 8."""
    x, y = points[:, 0], points[:, 1]
    inside = (x >= 0) & (x <= 10) & (y >= 0) & (y <= 10)
    return inside & ~((x > 4.5) & (x < 5.5) & (y < 8))


@pytest.fixture
def geodesic():
    return GridGeodesic(wall_with_door, low=(0, 0), high=(10, 10), spacing=0.5)


def test_a_free_straight_segment_has_its_euclidean_length(geodesic):
    starts = np.array([[1.0, 1.0], [1.0, 9.0], [2.0, 2.0]])
    ends = np.array([[4.0, 5.0], [9.0, 9.0], [2.0, 2.0]])
    np.testing.assert_allclose(geodesic.distance(starts, ends), [5.0, 8.0, 0.0])


def test_the_path_around_a_wall_goes_through_the_door(geodesic):
    # Over the corners (4.5, 8) and (5.5, 8) of the wall.
    expected = 2 * math.hypot(2.5, 6) + 1
    length = geodesic.distance(np.array([[2.0, 2.0]]), np.array([[8.0, 2.0]]))[0]
    assert expected <= length + 1e-6
    assert length <= 1.03 * expected


def test_a_path_is_never_shorter_than_the_straight_line_and_is_symmetric(geodesic):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 10, (4000, 2))
    points = points[wall_with_door(points)]
    starts, ends = points[: len(points) // 2], points[len(points) // 2 :][: len(points) // 2]
    forth, back = geodesic.distance(starts, ends), geodesic.distance(ends, starts)
    np.testing.assert_allclose(forth, back, rtol=1e-5)
    assert (forth >= np.linalg.norm(ends - starts, axis=1) - 1e-5).all()
    assert np.isfinite(forth).all()


def test_rooms_without_a_door_are_infinitely_far_apart():
    def two_rooms(points):
        return np.abs(points[:, 0] - 5) > 0.5

    geodesic = GridGeodesic(two_rooms, low=(0, 0), high=(10, 10), spacing=0.5)
    starts, ends = np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[9.0, 1.0], [1.0, 3.0]])
    np.testing.assert_array_equal(geodesic.distance(starts, ends), [np.inf, 2.0])


def test_a_point_pressed_into_a_wall_has_a_path_and_one_deep_inside_has_none(geodesic):
    starts = np.array([[4.55, 3.0], [2.0, 2.0]])
    ends = np.array([[8.0, 2.0], [5.0, -7.0]])
    lengths = geodesic.distance(starts, ends)
    assert 10 < lengths[0] < 14
    assert lengths[1] == np.inf


def test_a_place_without_any_free_node_has_no_path():
    geodesic = GridGeodesic(lambda p: np.zeros(len(p), bool), (0, 0), (2, 2), 0.5)
    assert geodesic.distance(np.array([[0.0, 0.0]]), np.array([[2.0, 2.0]]))[0] == np.inf


def test_knights_moves_keep_open_space_nearly_euclidean():
    # Straight segments are asked of the grid itself by hiding them behind a speck at the middle.
    def nearly_open(points):
        return np.linalg.norm(points - 5.01, axis=1) > 0.3

    geodesic = GridGeodesic(nearly_open, (0, 0), (10, 10), 0.25)
    angles = np.linspace(0, np.pi, 40)
    starts = 5.01 + 4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lengths = geodesic.distance(starts, 2 * 5.01 - starts)
    assert (lengths > 8).all()
    assert lengths.max() < 8 * 1.05


def test_thousands_of_pairs_take_a_fraction_of_a_second(geodesic):
    rng = np.random.default_rng(1)
    geodesic.distance(np.array([[2.0, 2.0]]), np.array([[8.0, 2.0]]))
    starts, ends = rng.uniform(0, 10, (2, 5000, 2))
    begin = time.process_time()
    geodesic.distance(starts, ends)
    assert time.process_time() - begin < 1.0
