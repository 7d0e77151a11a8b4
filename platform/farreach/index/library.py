"""The one place that imports FAISS."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

with warnings.catch_warnings():
    # From Python 3.12 on, the types that SWIG makes while it is imported cause this.
    warnings.filterwarnings(
        "ignore", r"builtin type \w+ has no __module__ attribute", DeprecationWarning
    )
    faiss: Any = importlib.import_module("faiss")
