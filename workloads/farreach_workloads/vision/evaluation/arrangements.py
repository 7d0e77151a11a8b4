"""Where solids stand on a plane, and how far they are from a camera that sees all of them.

The number of solids and the range in which the nearest one's distance lies are given; all else is
drawn. A distance is that from the camera to the nearest point of a solid's surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPHERE, CYLINDER, LYING_CYLINDER, BOX = range(4)
FIELD_OF_VIEW = math.radians(40)
RADIUS = 10.0  # from the point that the camera looks at
ELEVATIONS = (math.radians(24), math.radians(40))
AIM = 0.3  # how far beside the middle it may look
HALF_SIZES = (0.35, 0.7)
FARTHEST = 15.0
# From the foot of the camera: nothing nearer is as far from it as the first limit.
AHEAD = (4.0, FARTHEST)
ASIDE = FARTHEST * math.tan(FIELD_OF_VIEW / 2)
GAP = 0.1  # between solids
# Of the nearest solid's surface; six ranges of equal width.
LIMITS = (8.0, 8.5, 9.0, 9.5, 10.0, 10.5, 11.0)
DRAWN = 256  # solids that are drawn, of which those that fit are kept
NEWTON_STEPS = 4


@dataclass(frozen=True)
class Camera:
    """Where it is and where it looks.

    Attributes:
        position: (3,), z is up.
        axes: (3, 3), its right, up and forward axis, one a row.
        azimuth: of the forward axis, radians.
        elevation: by how much it looks down, radians.
        aim: (3,), the point of the plane that it looks at.
    """

    position: Floats
    axes: Floats
    azimuth: float
    elevation: float
    aim: Floats


@dataclass(frozen=True)
class Solids:
    """Solids on the plane z = 0.

    Attributes:
        kinds: (n,) SPHERE, CYLINDER, LYING_CYLINDER or BOX.
        sizes: (n, 3): radius; radius and half the length; half the edges. The rest is 0.
        turns: (n,) angle about the vertical, radians.
        positions: (n, 3) of the centres.
    """

    kinds: NDArray[np.int64]
    sizes: Floats
    turns: Floats
    positions: Floats

    def __len__(self) -> int:
        """How many."""
        return len(self.kinds)

    def at(self, positions: Floats) -> Solids:
        """The same, elsewhere."""
        return Solids(self.kinds, self.sizes, self.turns, positions)

    def select(self, rows: list[int]) -> Solids:
        """Some of them."""
        return Solids(self.kinds[rows], self.sizes[rows], self.turns[rows], self.positions[rows])

    def joined(self, other: Solids) -> Solids:
        """These and others."""
        return Solids(
            np.concatenate([self.kinds, other.kinds]),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.turns, other.turns]),
            np.concatenate([self.positions, other.positions]),
        )

    def rotations(self) -> Floats:
        """The solids' axes as columns, (n, 3, 3); a cylinder's length is along the third."""
        cos, sin, zero = np.cos(self.turns), np.sin(self.turns), np.zeros(len(self))
        along = np.stack([cos, sin, zero], 1)
        across = np.stack([-sin, cos, zero], 1)
        up = np.broadcast_to(np.array([0.0, 0.0, 1.0]), along.shape)
        standing = np.stack([along, across, up], 2)
        lying = np.stack([across, up, along], 2)
        return np.where((self.kinds == LYING_CYLINDER)[:, None, None], lying, standing)

    def bounds(self) -> Floats:
        """Radius of a sphere around each, (n,)."""
        a, b, c = self.sizes.T
        return np.where(self.kinds == SPHERE, a, np.sqrt(a**2 + b**2 + c**2))

    def footprints(self) -> Floats:
        """Radius of a circle around what each covers of the plane, (n,)."""
        a, b, _ = self.sizes.T
        is_round = (self.kinds == SPHERE) | (self.kinds == CYLINDER)
        return np.where(is_round, a, np.hypot(a, b))

    def heights(self) -> Floats:
        """Of the centres where they stand on the plane, (n,)."""
        a, b, c = self.sizes.T
        return np.select([self.kinds == CYLINDER, self.kinds == BOX], [b, c], a)

    def distances(self, point: Floats) -> Floats:
        """From a point outside to the surface of each, (n,).

        To a box: |max(|q| - half edges, 0)| with q the point in the box's axes; to a cylinder the
        same of radius and length.
        """
        x, y, z = (point - self.positions).T
        cos, sin = np.cos(self.turns), np.sin(self.turns)
        along, across = np.abs(x * cos + y * sin), np.abs(y * cos - x * sin)
        a, b, c = self.sizes.T
        to_sphere = np.sqrt(x**2 + y**2 + z**2) - a
        box = np.maximum([along - a, across - b, np.abs(z) - c], 0)
        to_box = np.sqrt((box**2).sum(0))
        lies = self.kinds == LYING_CYLINDER
        beside = np.where(lies, np.hypot(across, z), np.hypot(x, y)) - a
        beyond = np.where(lies, along, np.abs(z)) - b
        to_cylinder = np.hypot(np.maximum(beside, 0), np.maximum(beyond, 0))
        is_round = np.where(self.kinds == SPHERE, to_sphere, to_cylinder)
        return np.where(self.kinds == BOX, to_box, is_round)


def in_view(camera: Camera, solids: Solids) -> NDArray[np.bool_]:
    """Whether the sphere around each solid lies inside the four sides of the view, (n,)."""
    x, y, depth = camera.axes @ (solids.positions - camera.position).T
    slope = math.tan(FIELD_OF_VIEW / 2)
    room = (depth * slope - np.maximum(np.abs(x), np.abs(y))) / math.hypot(1, slope)
    return room >= solids.bounds()


def draw_camera(rng: np.random.Generator) -> Camera:
    """From all sides, at some height."""
    azimuth, elevation = rng.uniform(-math.pi, math.pi), rng.uniform(*ELEVATIONS)
    aim = np.array([*rng.uniform(-AIM, AIM, 2), 0.0])
    ahead = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    forward = math.cos(elevation) * ahead - math.sin(elevation) * up
    upward = math.sin(elevation) * ahead + math.cos(elevation) * up
    right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
    axes = np.stack([right, upward, forward])
    return Camera(aim - RADIUS * forward, axes, azimuth, elevation, aim)


def arrange(
    rng: np.random.Generator, camera: Camera, count: int, low: float, high: float
) -> Solids | None:
    """Solids that do not touch, all in view, the first of them the nearest.

    Args:
        rng: what is drawn from.
        camera: who sees them.
        count: how many.
        low: the first one's distance is evenly distributed from here …
        high: … to here.

    Returns:
        None: what was drawn did not fit; draw again.
    """
    first = _at_distance(_draw(rng, camera, 1), camera, float(rng.uniform(low, high)))
    nearest = float(first.distances(camera.position)[0])
    if not in_view(camera, first)[0] or not low < nearest <= high:
        return None
    drawn = _draw(rng, camera, DRAWN)
    distances = drawn.distances(camera.position)
    fits = in_view(camera, drawn) & (distances > nearest) & (distances < FARTHEST)
    kept = _apart(drawn, np.flatnonzero(fits), first, count - 1)
    if len(kept) < count - 1:
        return None
    return first.joined(drawn.select(kept))


def _draw(rng: np.random.Generator, camera: Camera, count: int) -> Solids:
    """Solids anywhere on the part of the plane that may do."""
    kinds = rng.integers(0, BOX + 1, count)
    sizes = rng.uniform(*HALF_SIZES, (count, 3))
    sizes[kinds != BOX, 2] = 0
    sizes[kinds == SPHERE, 1] = 0
    turns = rng.uniform(-math.pi, math.pi, count)
    ahead, aside = rng.uniform(*AHEAD, count), rng.uniform(-ASIDE, ASIDE, count)
    solids = Solids(kinds, sizes, turns, np.zeros((count, 3)))
    return solids.at(_on_plane(camera, solids, ahead, aside))


def _on_plane(camera: Camera, solids: Solids, ahead: Floats, aside: Floats) -> Floats:
    """Positions so far ahead of the foot of the camera, and to its right: (n, 3)."""
    direction = np.array([math.cos(camera.azimuth), math.sin(camera.azimuth)])
    flat = camera.position[:2] + ahead[:, None] * direction + aside[:, None] * camera.axes[0, :2]
    return np.concatenate([flat, solids.heights()[:, None]], 1)


def _at_distance(solid: Solids, camera: Camera, distance: float) -> Solids:
    """One solid, moved straight away from the camera until its surface is so far from it."""
    offset = solid.positions[0, :2] - camera.position[:2]
    length = math.hypot(*offset)
    direction, height = offset / length, camera.position[2] - solid.positions[0, 2]
    length = math.sqrt(max((distance + solid.bounds()[0]) ** 2 - height**2, 0.0))
    for _ in range(NEWTON_STEPS):
        flat = camera.position[:2] + length * direction
        solid = solid.at(np.array([[*flat, solid.positions[0, 2]]]))
        missing = distance - float(solid.distances(camera.position)[0])
        length += missing * math.hypot(length, height) / max(length, 1.0)
    return solid


def _apart(drawn: Solids, rows: NDArray[np.int64], first: Solids, most: int) -> list[int]:
    """The first so many of the rows whose circles on the plane touch none before them."""
    x, y, radius = (
        values.tolist() for values in (*drawn.positions[:, :2].T, drawn.footprints() + GAP)
    )
    placed = [(*first.positions[0, :2].tolist(), float(first.footprints()[0]))]
    kept: list[int] = []
    for row in rows.tolist():
        if len(kept) == most:
            break
        if all(math.hypot(x[row] - a, y[row] - b) >= radius[row] + c for a, b, c in placed):
            placed.append((x[row], y[row], radius[row] - GAP))
            kept.append(row)
    return kept
