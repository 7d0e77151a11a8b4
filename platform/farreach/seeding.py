"""One root seed → named child seeds, the same in one process or in many."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


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


def mixed(words: Words) -> Words:
    """Each word's 64 bits well mixed: the finaliser of SplitMix64 (Steele et al., 2014), (…)."""
    x = words + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_words: Words = x ^ (x >> np.uint64(31))
    return mixed_words


def uniform(root: int, name: str, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each position, the same whenever it is asked for again, (…)."""
    key = np.uint64(child_seed(root, name))
    with np.errstate(over="ignore"):
        words = mixed(mixed(positions.astype(np.uint64)) ^ key)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64)
