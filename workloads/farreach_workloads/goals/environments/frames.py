"""Pictures of MuJoCo states, without a screen."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import mujoco
import numpy as np
from numpy.typing import NDArray

from farreach_workloads.goals.environments.base import Floats

FRAME_SIZE = 96  # pixels, both sides
_MAX_GEOMS = 200
_log = logging.getLogger(__name__)


class FrameRenderer:
    """Draws joint positions of one model from one of its cameras.

    Shadows, reflections and multisampling are off, which makes software rendering twenty times
    faster. `MUJOCO_GL` names the OpenGL platform: egl, osmesa or glfw; egl by default on Linux.
    """

    def __init__(self, model: mujoco.MjModel, camera: str) -> None:
        """A renderer for `model`, whose quality settings are changed.

        Raises:
            Exception: whatever kind the platform's binding raises where OpenGL is missing.
        """
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        self._model = model
        self._data = mujoco.MjData(model)
        default = "egl" if sys.platform == "linux" else "glfw"
        platform = importlib.import_module(f"mujoco.{os.environ.get('MUJOCO_GL') or default}")
        self._gl = platform.GLContext(FRAME_SIZE, FRAME_SIZE)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(camera).id

    def frames(self, positions: Floats) -> NDArray[np.uint8]:
        """A picture of each row of joint positions: (n, nq) → (n, 96, 96, 3)."""
        self._gl.make_current()
        viewport = mujoco.MjrRect(0, 0, FRAME_SIZE, FRAME_SIZE)
        pictures = np.empty((len(positions), FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        for row, picture in zip(positions, pictures, strict=True):
            self._data.qpos[:] = row
            mujoco.mj_forward(self._model, self._data)
            mujoco.mjv_updateScene(
                self._model,
                self._data,
                self._option,
                None,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            mujoco.mjr_render(viewport, self._scene, self._context)
            mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return pictures[:, ::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the OpenGL context."""
        self._context.free()
        self._gl.free()


class LazyFrames:
    """A FrameRenderer that is made at the first picture, or never where OpenGL is missing."""

    def __init__(self, model: mujoco.MjModel, camera: str) -> None:
        """For pictures of `model` from `camera`; see `FrameRenderer`."""
        self._model = model
        self._camera = camera
        self._renderer: FrameRenderer | None = None
        self._is_missing = False

    def frames(self, positions: Floats) -> NDArray[np.uint8] | None:
        """A picture of each row of joint positions, or None if there is no OpenGL."""
        if self._renderer is None and not self._is_missing:
            try:
                self._renderer = FrameRenderer(self._model, self._camera)
            # The platforms raise AttributeError, ImportError, OSError, FatalError and exceptions of
            # PyOpenGL, which must not be imported before the platform is chosen. A picture is an
            # extra, so its absence is logged and the run goes on.
            except Exception as error:
                self._is_missing = True
                _log.warning(
                    "No pictures: OpenGL cannot be used (%s: %s). Install libegl1 or libosmesa6 "
                    "and set MUJOCO_GL to egl or osmesa.",
                    type(error).__name__,
                    error,
                )
        return None if self._renderer is None else self._renderer.frames(positions)

    def close(self) -> None:
        """Free the OpenGL context if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
