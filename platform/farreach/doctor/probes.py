"""Checks that need imports: two processes do them side by side, see `probe.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import farreach
from farreach.doctor.finding import Finding, fault, ok, warning
from farreach.doctor.probe import MODULES

TIMEOUT_S = 60.0
TORCH, RENDERING = "torch at work", "mujoco at work"
OPENGL = "install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa"


class Probed(NamedTuple):
    """What the processes have told.

    Attributes:
        errors: module → why it cannot be imported, or what its exercise raised.
        found: exercise → what it found.
        done: modules that were imported.
        died: what a process was doing when it ended → how it ended.
    """

    errors: Mapping[str, str]
    found: Mapping[str, Mapping[str, Any]]
    done: tuple[str, ...]
    died: Mapping[str, str]


def probe() -> Probed:
    """Run both processes; some seconds."""
    with ThreadPoolExecutor(len(MODULES)) as pool:
        outputs = list(pool.map(_run, MODULES))
    errors: dict[str, str] = {}
    found: dict[str, Mapping[str, Any]] = {}
    done: list[str] = []
    died: dict[str, str] = {}
    for text, ending in outputs:
        begun = read(text, errors, found, done)
        if ending:
            died[begun or "Python"] = ending
    return Probed(errors, found, tuple(done), died)


def read(
    text: str, errors: dict[str, str], found: dict[str, Mapping[str, Any]], done: list[str]
) -> str:
    """Sort the lines of a process into three collections; what it had begun last, "" if nothing."""
    begun = ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # what a module prints while it is imported
        if "begin" in record:
            begun = record["begin"]
            continue
        begun, name = "", record["done"]
        if "error" in record:
            errors[name] = record["error"]
        elif "found" in record:
            found[name] = record["found"]
        else:
            done.append(name)
    return begun


def _run(group: str) -> tuple[str, str]:
    """Output of one process, and how it ended: "" if well."""
    root = str(Path(farreach.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "farreach.doctor.probe", group]
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=os.path.expanduser("~"),  # a fault of this folder is another check's business
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return text, f"was not done after {TIMEOUT_S:g} s"
    if ended.returncode < 0:
        return ended.stdout, f"ended with {signal.Signals(-ended.returncode).name}"
    if ended.returncode > 0:
        last = (ended.stderr.strip().splitlines() or ["no reason"])[-1]
        return ended.stdout, f"ended with {last}"
    return ended.stdout, ""


def imports(probed: Probed) -> list[Finding]:
    """Whether all modules can be imported; rendering and PyTorch have lines of their own."""
    wrong = [
        fault(
            f"import {name}: {probed.errors[name]}",
            f"install it again: pip install --force-reinstall --no-deps {name}",
        )
        for names in MODULES.values()
        for name in names
        if name in probed.errors
    ]
    wrong += [
        fault(
            f"{name}: the process {ending}",
            "reinstall that package in a fresh virtual environment; two builds of one library "
            "may be mixed",
        )
        for name, ending in probed.died.items()
        if name != RENDERING
    ]
    return wrong or [ok(f"{len(probed.done)} of the largest packages can be imported")]


def torch_at_work(probed: Probed) -> Finding:
    """Whether PyTorch computes, and whether its build fits the GPU's driver."""
    if TORCH not in probed.found:
        return fault(
            f"PyTorch does not work: {_why(probed, 'torch', TORCH)}", "pip install torch again"
        )
    facts = probed.found[TORCH]
    name, built, driver = f"PyTorch {facts['version']}", facts["built_for"], facts["driver"]
    if not facts["is_right"]:
        return fault(f"{name} multiplies wrongly on this CPU", "install another version of PyTorch")
    if driver is None:
        return ok(f"{name} computes; no GPU driver here, so on CPUs")
    if built is None:
        return warning(
            f"{name} is built for CPUs, and a driver for CUDA {driver} is here",
            "install a PyTorch for CUDA (pytorch.org says which index) to use the GPU",
        )
    if driver != "unknown" and _number(driver) < _number(built):
        return warning(
            f"{name} is built for CUDA {built}, and the driver runs CUDA up to {driver}: no GPU",
            "update the driver, or install a PyTorch for an older CUDA",
        )
    if facts["error"] or not facts["gpus"]:
        return warning(
            f"{name}: the driver is here, but no GPU computes: {facts['error'] or 'none is seen'}",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, start it with GPUs",
        )
    return ok(f"{name} computes on {facts['gpus']} GPUs, CUDA {built}, driver for {driver}")


def rendering(probed: Probed, chosen: str | None) -> Finding:
    """Whether MuJoCo draws; `chosen` is MUJOCO_GL."""
    if chosen == "disabled":
        return ok("switched off by MUJOCO_GL=disabled: no pictures of MuJoCo worlds")
    said = f"MUJOCO_GL={chosen}" if chosen else "MUJOCO_GL unset"
    facts = probed.found.get(RENDERING)
    if facts is None:
        why = _why(probed, "mujoco", RENDERING)
        return warning(f"{said}: MuJoCo draws no pictures ({why}); training does", OPENGL)
    if not facts["is_drawn"]:
        return warning(f"{said}: MuJoCo draws black pictures", OPENGL)
    return ok(f"MuJoCo draws with {facts['platform']}, {said}")


def _why(probed: Probed, *names: str) -> str:
    for name in names:
        reason = probed.errors.get(name) or probed.died.get(name)
        if reason:
            return reason
    return next(iter(probed.died.values()), "it was not reached")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
