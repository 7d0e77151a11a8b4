"""Scenes of solids on a plane, drawn by MuJoCo, with their number and the nearest's distance.

They stand in for CLEVR where that cannot be had: 3 to 10 solids, and six ranges of distance. All 48
pairs of these are equally frequent, among the training scenes and among the others. A scene depends
on the seed and its number alone, and its picture on the OpenGL that draws it.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from farreach import seeding
from farreach.data.images import ImageSet
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach_workloads.vision.evaluation import arrangements
from farreach_workloads.vision.evaluation.arrangements import LIMITS, Camera, Solids
from farreach_workloads.vision.evaluation.layouts import Task
from farreach_workloads.vision.evaluation.structured_layouts import (
    COUNTS,
    count_labels,
    names_of,
    ranges,
)

Pixels = NDArray[np.uint8]
Picture = Image.Image

RANGES = len(LIMITS) - 1
CELLS = len(COUNTS) * RANGES
# Of five times 48 scenes the last 48 are held out.
HELD_OUT_EVERY = 5
# Of the picture, that of a solid must be seen at least.
LEAST_VISIBLE = 1 / 400
TRIES = 1000
COMPRESSION = 1  # of PNG, the fastest
COLUMNS = ("image", "count", "distance", "split")
# By the kinds of arrangements.
GEOMS = ("mjGEOM_SPHERE", "mjGEOM_CYLINDER", "mjGEOM_CYLINDER", "mjGEOM_BOX")
SATURATIONS, VALUES = (0.5, 1.0), (0.4, 1.0)
MODEL = f"""
<mujoco>
  <visual>
    <global fovy="{math.degrees(arrangements.FIELD_OF_VIEW):.12g}"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <map znear="0.01" zfar="10"/>
  </visual>
  <statistic extent="12"/>
  <asset>
    <texture name="tiles" type="2d" builtin="checker" rgb1="0.45 0.45 0.45" rgb2="0.6 0.6 0.6"
      width="64" height="64"/>
    <material name="plane" texture="tiles" texrepeat="0.5 0.5" texuniform="true"/>
  </asset>
  <worldbody>
    <light directional="true" pos="0 0 10" dir="0 0 -1" diffuse="0.6 0.6 0.6" specular="0.3 0.3 0.3"
      castshadow="false"/>
    <geom type="plane" size="80 80 1" material="plane"/>
    {COUNTS[-1] * '<geom type="sphere" size="1"/>'}
  </worldbody>
</mujoco>
"""


@dataclass(frozen=True)
class Scene:
    """What is drawn.

    Attributes:
        camera: where from.
        solids: three to ten.
        colors: of each, (n, 3) uint8.
        light: the azimuth it shines to, radians.
    """

    camera: Camera
    solids: Solids
    colors: Pixels
    light: float

    @property
    def distance(self) -> float:
        """From the camera to the nearest point of a surface."""
        return float(self.solids.distances(self.camera.position).min())


class SceneRenderer:
    """Draws solids on the plane, and tells which pixels show which.

    One model has as many solids as a scene may have; their kinds, sizes and places are set.
    `MUJOCO_GL` names the OpenGL platform: egl, osmesa or glfw; egl by default on Linux.
    """

    def __init__(self, side: int) -> None:
        """Pictures of `side` pixels; raises DataError where OpenGL is missing."""
        self._side = side
        default = "egl" if sys.platform == "linux" else "glfw"
        # mujoco and its platforms raise AttributeError, ImportError, OSError, FatalError and
        # exceptions of PyOpenGL, which must not be imported before the platform is chosen.
        try:
            self._mujoco: Any = importlib.import_module("mujoco")
            platform = importlib.import_module(f"mujoco.{os.environ.get('MUJOCO_GL') or default}")
            self._gl = platform.GLContext(side, side)
            self._gl.make_current()
            self._model = self._mujoco.MjModel.from_xml_string(MODEL)
            fonts = self._mujoco.mjtFontScale.mjFONTSCALE_100
            self._context = self._mujoco.MjrContext(self._model, fonts)
        except Exception as error:
            raise DataError(
                f"scenes: OpenGL cannot be used ({type(error).__name__}: {error}). Install "
                "libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa."
            ) from error
        mujoco = self._mujoco
        self._data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)
        mujoco.mjr_resizeOffscreen(side, side, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self._model, COUNTS[-1] + 10)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.distance = arrangements.RADIUS
        self._geoms = [int(getattr(mujoco.mjtGeom, name)) for name in GEOMS]

    def draw(self, scene: Scene) -> Pixels:
        """A picture, (side, side, 3)."""
        camera, solids = scene.camera, scene.solids
        model, data, count = self._model, self._data, len(solids)
        shown = slice(1, 1 + count)
        model.geom_type[shown] = [self._geoms[kind] for kind in solids.kinds]
        model.geom_size[shown] = solids.sizes
        model.geom_rbound[shown] = solids.bounds()
        model.geom_rgba[1:, 3] = 0
        model.geom_rgba[shown] = np.concatenate([scene.colors / 255, np.ones((count, 1))], 1)
        data.geom_xpos[shown] = solids.positions
        data.geom_xmat[shown] = solids.rotations().reshape(count, 9)
        shines = np.array([math.cos(scene.light), math.sin(scene.light), -1.5])
        data.light_xdir[0] = shines / np.linalg.norm(shines)
        self._camera.lookat[:] = camera.aim
        self._camera.azimuth = math.degrees(camera.azimuth)
        self._camera.elevation = -math.degrees(camera.elevation)
        self._gl.make_current()
        everything = self._mujoco.mjtCatBit.mjCAT_ALL
        self._mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, everything, self._scene
        )
        return self._read()

    def visible(self) -> NDArray[np.int64]:
        """Pixels that show each of the solids last drawn, (10,)."""
        kinds = self._mujoco.mjtRndFlag
        flags = (kinds.mjRND_SEGMENT, kinds.mjRND_IDCOLOR)
        for flag in flags:
            self._scene.flags[flag] = 1
        parts = self._read()[..., 0]
        for flag in flags:
            self._scene.flags[flag] = 0
        # A colour is the place in the scene plus 1; the plane is the first.
        return np.bincount(parts.ravel(), minlength=256)[2 : 2 + COUNTS[-1]]

    def close(self) -> None:
        """Free the OpenGL context."""
        self._context.free()
        self._gl.free()

    def _read(self) -> Pixels:
        picture = np.empty((self._side, self._side, 3), np.uint8)
        viewport = self._mujoco.MjrRect(0, 0, self._side, self._side)
        self._mujoco.mjr_render(viewport, self._scene, self._context)
        self._mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return picture[::-1]  # OpenGL's first row is the lowest


def compose(renderer: SceneRenderer, side: int, seed: int, index: int) -> tuple[Scene, Pixels]:
    """Scene `index`: what it holds and its picture, (side, side, 3).

    Raises:
        DataError: none of many that were drawn fits.
    """
    rng = seeding.generator(seed, "scene", index)
    count = COUNTS[index % len(COUNTS)]
    number = index // len(COUNTS) % RANGES
    for _ in range(TRIES):
        camera = arrangements.draw_camera(rng)
        solids = arrangements.arrange(rng, camera, count, LIMITS[number], LIMITS[number + 1])
        if solids is None:
            continue
        scene = Scene(camera, solids, _colors(rng, count), rng.uniform(-math.pi, math.pi))
        picture = renderer.draw(scene)
        if renderer.visible()[:count].min() >= LEAST_VISIBLE * side**2:
            return scene, picture
    raise DataError(
        f"scene {index}: in {TRIES} that were drawn some solid cannot be seen. Give another seed, "
        f"or more than {side} pixels."
    )


def render(file: Path, scenes: int, side: int = 64, seed: int = 0) -> None:
    """Write scenes to a Parquet file, whole or not at all.

    Its columns are `image` (PNG), `count`, `distance` and `split` ("train" or "val").

    Args:
        file: is replaced.
        scenes: how many; all of them are held in memory, about 4 kB each at 64 pixels.
        side: of a picture, in pixels.
        seed: of all of them.

    Raises:
        DataError: there are too few, or OpenGL is missing.
    """
    if scenes < HELD_OUT_EVERY * CELLS:
        raise DataError(
            f"scenes: is {scenes}; {HELD_OUT_EVERY * CELLS} are the fewest of which some can be "
            "held out."
        )
    renderer = SceneRenderer(side)
    images, counts, distances = [], [], []
    try:
        for index in range(scenes):
            scene, picture = compose(renderer, side, seed, index)
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "PNG", compress_level=COMPRESSION)
            images.append(encoded.getvalue())
            counts.append(len(scene.solids))
            distances.append(scene.distance)
    finally:
        renderer.close()
    is_last = np.arange(scenes) // CELLS % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    split = np.where(is_last, "val", "train").tolist()
    table = pa.table(dict(zip(COLUMNS, (images, counts, distances, split), strict=True)))
    content = io.BytesIO()
    pq.write_table(table, content, compression="none")
    atomic_write(file, content.getvalue())


class RenderedImages(ImageSet):
    """Scenes from a file that `render` wrote.

    Attributes:
        counts: solids of each, (n,) int64.
        distances: of the nearest, (n,) float64.
        split: "train" or "val", (n,).
    """

    def __init__(self, path: Path, task: Task) -> None:
        """All of them, with what the task asks for as labels; raises DataError if it is no such."""
        try:
            table = pq.read_table(path, memory_map=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: is no readable Parquet file: {error}.") from error
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing or not len(table):
            raise DataError(
                f"{path}: has {len(table)} rows and the columns {', '.join(table.column_names)}; "
                f"{', '.join(COLUMNS)} are needed. Render the scenes again."
            )
        self._task = task
        self._bytes = table["image"].combine_chunks()
        self.counts: NDArray[np.int64] = table["count"].to_numpy().astype(np.int64)
        self.distances: NDArray[np.float64] = table["distance"].to_numpy().astype(np.float64)
        self.split = np.array(table["split"].to_pylist(), np.str_)
        if task == "count":
            labels = count_labels(self.counts, str(path))
            super().__init__(path, labels, [str(count) for count in COUNTS])
        else:
            labels = ranges(self.distances, LIMITS)
            super().__init__(path, labels, names_of(LIMITS))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file again."""
        return RenderedImages, (self.path, self._task)

    def name(self, index: int) -> str:
        """The file and the row."""
        return f"{self.path}, row {index}"

    def _open(self, index: int) -> Picture:
        return Image.open(io.BytesIO(self._bytes[index].as_buffer()))


def open_rendered(path: Path, task: Task) -> tuple[ImageSet, ImageSet]:
    """The scenes to train on and those to evaluate on; raises as `RenderedImages`."""
    whole = RenderedImages(path, task)
    parts = [whole.subset(np.flatnonzero(whole.split == part)) for part in ("train", "val")]
    return parts[0], parts[1]


def _colors(rng: np.random.Generator, count: int) -> Pixels:
    from matplotlib.colors import hsv_to_rgb

    hues = rng.uniform(0, 1, count)
    tints = np.stack([hues, rng.uniform(*SATURATIONS, count), rng.uniform(*VALUES, count)], 1)
    return np.asarray(np.rint(255 * hsv_to_rgb(tints)), np.uint8)
