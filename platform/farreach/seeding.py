"""One root seed → named child seeds, the same in one process or in many."""

from __future__ import annotations

import hashlib

import numpy as np


def child_seed(root: int, name: str, index: int = 0) -> int:
    """A 63-bit seed that depends on all three arguments and on nothing else.

    Args:
        root: the run's seed.
        name: what the stream is for, such as `"rollout"`.
        index: which of several equal parts, such as the actor's number.
    """
    digest = hashlib.sha256(f"{root}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(root: int, name: str, index: int = 0) -> np.random.Generator:
    """A NumPy generator on its own stream; see `child_seed`."""
    return np.random.default_rng(child_seed(root, name, index))
