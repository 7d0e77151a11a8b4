import math

import numpy as np
import pytest

from farreach_workloads.vision.evaluation.arrangements import (
    BOX,
    CYLINDER,
    FARTHEST,
    FIELD_OF_VIEW,
    LIMITS,
    LYING_CYLINDER,
    SPHERE,
    Solids,
    arrange,
    draw_camera,
    in_view,
)


def one(kind, sizes, turn=0.0, position=(0.0, 0.0, 0.0)):
    return Solids(np.array([kind]), np.array([sizes]), np.array([turn]), np.array([position]))


def surface(kind, sizes, turn, position, steps=121):
    """Points all over a solid, (n, 3), from their own description of each kind."""
    a, b, c = sizes
    u, v = (x.ravel() for x in np.meshgrid(*[np.linspace(-1, 1, steps)] * 2))
    angle = math.pi * u
    if kind == SPHERE:
        polar = math.pi / 2 * v
        flat = np.cos(polar)
        points = a * np.stack([flat * np.cos(angle), flat * np.sin(angle), np.sin(polar)], 1)
    elif kind == BOX:
        faces = []
        for axis in range(3):
            for sign in (-1, 1):
                face = np.insert(np.stack([u, v], 1), axis, sign, axis=1)
                faces.append(face * np.array([a, b, c]))
        points = np.concatenate(faces)
    else:
        mantle = np.stack([a * np.cos(angle), a * np.sin(angle), b * v], 1)
        radius = a * (v + 1) / 2
        lids = [
            np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * u + end], 1)
            for end in (-b, b)
        ]
        points = np.concatenate([mantle, *lids])
        if kind == LYING_CYLINDER:
            points = points[:, [2, 0, 1]]
    cos, sin = math.cos(turn), math.sin(turn)
    turned = points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return turned + position


def test_distances_by_hand():
    """From (3, 0, 4): a sphere 5 - 1; a box of 1 x 1 x 4 is 2 away; turned by 45° it is nearer."""
    point = np.array([3.0, 0.0, 4.0])
    assert one(SPHERE, [1.0, 0, 0]).distances(point)[0] == pytest.approx(4)
    assert one(BOX, [1.0, 1.0, 4.0]).distances(point)[0] == pytest.approx(2)
    turned = one(BOX, [1.0, 1.0, 4.0], math.pi / 4).distances(point)[0]
    assert turned == pytest.approx(3 - math.sqrt(2))
    assert one(CYLINDER, [1.0, 1.0, 0]).distances(point)[0] == pytest.approx(math.hypot(2, 3))
    assert one(LYING_CYLINDER, [1.0, 3.0, 0]).distances(point)[0] == pytest.approx(3)
    across = one(LYING_CYLINDER, [1.0, 3.0, 0], math.pi / 2).distances(point)[0]
    assert across == pytest.approx(4)


@pytest.mark.parametrize("kind", [SPHERE, CYLINDER, LYING_CYLINDER, BOX])
def test_distances_are_those_to_the_nearest_of_many_points_of_the_surface(kind):
    rng = np.random.default_rng(kind)
    for _ in range(8):
        sizes = rng.uniform(0.35, 0.7, 3)
        sizes[{SPHERE: 1, BOX: 3}.get(kind, 2) :] = 0
        turn, position = rng.uniform(-3, 3), rng.uniform(-1, 1, 3)
        solid = one(kind, sizes.tolist(), turn, position)
        points = surface(kind, sizes, turn, position)
        camera = position + rng.uniform(1, 3, 3) * rng.choice([-1, 1], 3)
        nearest = np.linalg.norm(points - camera, axis=1).min()
        assert nearest - 2e-3 < solid.distances(camera)[0] <= nearest + 1e-9
        farthest = np.linalg.norm(points - position, axis=1).max()
        assert solid.bounds()[0] == pytest.approx(farthest, abs=1e-3)
        flat = np.linalg.norm(points[:, :2] - position[:2], axis=1).max()
        assert solid.footprints()[0] == pytest.approx(flat, abs=1e-3)
        assert solid.heights()[0] == pytest.approx(position[2] - points[:, 2].min(), abs=1e-3)


def test_a_camera_looks_at_its_aim_upright():
    rng = np.random.default_rng(0)
    for _ in range(20):
        camera = draw_camera(rng)
        np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(np.cross(camera.axes[0], camera.axes[1]), -camera.axes[2])
        ahead = camera.aim - camera.position
        np.testing.assert_allclose(ahead / np.linalg.norm(ahead), camera.axes[2])
        assert camera.axes[0, 2] == 0
        assert camera.axes[1, 2] > 0


def arranged(count, low, high, seed):
    rng = np.random.default_rng(seed)
    while True:
        camera = draw_camera(rng)
        solids = arrange(rng, camera, count, low, high)
        if solids is not None:
            return camera, solids


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize("number", [0, 3, 5])
def test_solids_are_apart_in_view_and_the_nearest_is_as_far_as_asked(count, number):
    low, high = LIMITS[number], LIMITS[number + 1]
    half = math.tan(FIELD_OF_VIEW / 2)
    for seed in range(5):
        camera, solids = arranged(count, low, high, seed)
        shapes = [
            surface(kind, sizes, turn, position, 31)
            for kind, sizes, turn, position in zip(
                solids.kinds, solids.sizes, solids.turns, solids.positions, strict=True
            )
        ]
        assert len(shapes) == count
        nearest = [np.linalg.norm(points - camera.position, axis=1).min() for points in shapes]
        assert low < min(nearest) <= high + 0.02
        assert int(np.argmin(nearest)) == 0
        assert max(nearest) < FARTHEST + 0.02
        for row, points in enumerate(shapes):
            assert points[:, 2].min() == pytest.approx(0, abs=0.02), "it stands on the plane"
            right, up, depth = camera.axes @ (points - camera.position).T
            assert np.abs([right / depth, up / depth]).max() < half
            others = [other for other in range(count) if other != row]
            for point in points[::17]:
                assert solids.select(others).distances(point).min() > 0


def test_a_solid_at_the_edge_is_not_in_view():
    """A sphere of radius 1 at depth 10 fits if its centre is 1 / cos(half the angle) off a side."""
    camera = draw_camera(np.random.default_rng(0))
    half = FIELD_OF_VIEW / 2
    inside = 10 * math.tan(half) - 1 / math.cos(half)
    for axis in (0, 1):
        for sign, step, expected in ((1, -1e-6, True), (-1, -1e-6, True), (1, 1e-6, False)):
            aside = sign * (inside + step) * camera.axes[axis]
            place = camera.position + 10 * camera.axes[2] + aside
            found = in_view(camera, one(SPHERE, [1.0, 0, 0], 0, place))
            assert found.tolist() == [expected]
