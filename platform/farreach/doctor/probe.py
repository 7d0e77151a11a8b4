"""Imports what farreach needs, in a process of its own: what crashes there does no harm here.

Run as `python -m farreach.doctor.probe learning | worlds`; prints one JSON object a line, before
and after each import, so that whoever reads them knows what a process that died was doing.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# In an order in which each comes after what it is made of.
MODULES = {
    "learning": ("numpy", "torch", "torchvision", "timm", "tensorboard"),
    "worlds": ("pyarrow", "faiss", "tokenizers", "mujoco", "gymnasium", "dm_control", "ray"),
}


def main(group: str) -> None:
    """Import the modules of a group and try those that have an exercise."""
    for name in MODULES[group]:
        _tell(begin=name)
        try:
            module = importlib.import_module(name)
        except Exception as error:
            _tell(done=name, error=f"{type(error).__name__}: {error}")
            continue
        _tell(done=name)
        if name in EXERCISES:
            _tell(begin=f"{name} at work")
            try:
                _tell(done=f"{name} at work", found=EXERCISES[name](module))
            except Exception as error:
                _tell(done=f"{name} at work", error=f"{type(error).__name__}: {error}")


def _tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _torch_at_work(torch: Any) -> dict[str, Any]:
    """A product and its gradient; what PyTorch was built for and finds."""
    ones = torch.ones(64, 64, requires_grad=True)
    (ones @ ones).sum().backward()
    found = {
        "version": torch.__version__,
        "is_right": bool((ones.grad == 128).all()),
        "built_for": torch.version.cuda or torch.version.hip,
        "driver": _cuda_of_driver(),
        "gpus": torch.cuda.device_count(),
        "threads": torch.get_num_threads(),
        "error": "",
    }
    if found["gpus"]:
        try:
            torch.ones(64, 64, device="cuda").sum().item()
        except Exception as error:
            found["error"] = str(error).splitlines()[0]
    return found


def _cuda_of_driver() -> str | None:
    """Newest CUDA that the NVIDIA driver runs, None without a driver."""
    number = ctypes.c_int()
    with suppress(OSError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return "unknown" if Path("/proc/driver/nvidia/version").exists() else None


def _mujoco_at_work(mujoco: Any) -> dict[str, Any]:
    """One picture of a white box, as `goals` and `vision` draw them."""
    chosen = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform == "linux" else "glfw")
    platform = importlib.import_module(f"mujoco.{chosen}")
    context = platform.GLContext(64, 64)
    context.make_current()
    world = '<light pos="0 0 3"/><geom type="box" size="1 1 1"/>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{world}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    scene, camera = mujoco.MjvScene(model, 10), mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    options, there = mujoco.MjvOption(), mujoco.mjtCatBit.mjCAT_ALL
    mujoco.mjv_updateScene(model, data, options, None, camera, there, scene)
    target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, target)
    view = mujoco.MjrRect(0, 0, 64, 64)
    mujoco.mjr_render(view, scene, target)
    numpy = importlib.import_module("numpy")
    pixels = numpy.zeros((64, 64, 3), numpy.uint8)
    mujoco.mjr_readPixels(pixels, None, view, target)
    return {"platform": chosen, "is_drawn": bool(pixels.max() > 0)}


EXERCISES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _torch_at_work,
    "mujoco": _mujoco_at_work,
}

if __name__ == "__main__":
    main(sys.argv[1])
