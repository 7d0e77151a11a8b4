"""Imports of what takes seconds: PyTorch, Ray Train, workloads."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def imported(module: str) -> ModuleType:
    """Import a module while the garbage collector rests.

    What modules make is there to stay, and for every few hundred objects of it the collector would
    look through all of them again: a fifth of the time, and more.
    """
    with _without_collector():
        return importlib.import_module(module)


@contextmanager
def _without_collector() -> Iterator[None]:
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
