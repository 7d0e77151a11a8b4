"""Weights of 88 MB on their way to several actors: row `weights_88mb` of `scaling.py`.

They go as the weights of a run do: a call returns them, a board has the reference, and readers
fetch them from the store of their machine. Ours are arrays of NumPy, the peer's the same numbers as
a `state_dict` of PyTorch; the ratio is its milliseconds until they are there, over ours.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import measure
import numpy as np
import ray
import torch

from farreach.actors.services import ActorService, fetch
from farreach.actors.weights import WeightBoard

READERS, READS = 4, 15
# ViT-S: width 384, 12 blocks of 12 × width² each and 1,000 classes.
WIDTH, BLOCKS = 384, 12


class Source:
    """Has weights, and hands them out as what a call returns, as the learner does."""

    def __init__(self) -> None:
        """Random numbers."""
        rng = np.random.default_rng(0)
        shapes = [(WIDTH, 1000), (WIDTH, 768), (197, WIDTH)]
        shapes += BLOCKS * [
            (3 * WIDTH, WIDTH),
            (WIDTH, WIDTH),
            (4 * WIDTH, WIDTH),
            (WIDTH, 4 * WIDTH),
        ]
        shapes += BLOCKS * 6 * [(WIDTH,)]
        self._arrays = {
            str(i): rng.standard_normal(shape, np.float32) for i, shape in enumerate(shapes)
        }

    def weights(self) -> dict[str, np.ndarray]:
        """Arrays of NumPy."""
        return self._arrays

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The same as tensors."""
        return {name: torch.from_numpy(array.copy()) for name, array in self._arrays.items()}


class Reader:
    """Looks how long it takes until weights are there."""

    def read(self, boxed: list[Any]) -> tuple[float, int]:
        """Milliseconds, and bytes; the reference is in a list, which Ray leaves as it is."""
        begun = time.perf_counter()
        found = ray.get(boxed[0])
        taken_ms = 1e3 * (time.perf_counter() - begun)
        return taken_ms, sum(value.nbytes for value in found.values())


def weights_88mb() -> None:
    """Row `weights_88mb`."""
    source = ActorService("source", Source, (), num_cpus=0)
    readers = [ActorService(f"reader-{i}", Reader, (), num_cpus=0) for i in range(READERS)]
    for part in (source, *readers):
        part.wait_until_ready()
    board, taken = WeightBoard(), {}
    for method in ("weights", "state_dict"):
        before = store_bytes()
        begun = time.perf_counter()
        board.publish(method, source.call(method))
        ray.wait([board.newest(method).value], fetch_local=False)
        put_ms = 1e3 * (time.perf_counter() - begun)
        reads = []
        for _ in range(READS):
            calls = [reader.call("read", [board.newest(method).value]) for reader in readers]
            reads += [fetch(call) for call in calls]
        times = [ms for ms, _ in reads[READERS:]]
        taken[method] = (statistics.median(times), max(times), put_ms, store_bytes() - before)
    size = reads[0][1]
    for part in (source, *readers):
        part.stop()
    ours, theirs = taken["weights"], taken["state_dict"]
    measure.row(
        "weights_88mb",
        ours[0],
        theirs[0],
        "ms per get, median",
        theirs[0] / ours[0],
        slowest_ms=round(ours[1], 3),
        put_ms=round(ours[2], 1),
        peer_put_ms=round(theirs[2], 1),
        megabytes=round(size / 1e6, 1),
        copies_in_store=round(ours[3] / size, 2),
        actors=READERS,
    )


def store_bytes() -> float:
    """What is in Ray's object store."""
    name = "object_store_memory"
    time.sleep(1.5)  # Ray counts it now and then
    return ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)
