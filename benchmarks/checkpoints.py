"""How long a checkpoint holds training up, and how long it takes until it is on the disk.

A network of 22 million parameters with its optimizer's state, 264 MB, as of a ViT-S with AdamW.
`stall` is the time until training may go on, with `torch.save` and fsync as the peer, as most loops
have it. `stall_async` is the same against `torch.distributed.checkpoint.async_save`, which copies
first and writes beside training as we do. `complete` is the time until the checkpoint is on the
disk, with its checksums and a look at the ones before, against `torch.save` and fsync, which has
neither. The ratio is the peer's time over ours. `python benchmarks/checkpoints.py` prints one JSON
line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict

from farreach.checkpoint import CheckpointStore
from farreach.saver import Saver

LAYERS, WIDTH, ROUNDS = 21, 1024, 7
# Seconds until training goes on, and until all is on the disk.
Times = tuple[float, float]


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network after one update."""
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, WIDTH)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def timed(begin: Callable[[], Callable[[], object]]) -> Times:
    """Begin a checkpoint, then call what `begin` returns to wait for it."""
    started = time.perf_counter()
    wait = begin()
    held_up = time.perf_counter() - started
    wait()
    return held_up, time.perf_counter() - started


def main() -> None:
    """Measure in turns."""
    measure.rows_asked(__doc__)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="checkpoints"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    model, optimizer = trained()
    store = CheckpointStore(folder / "ours", keep=2)
    saver = Saver(store)

    def ours(step: int) -> Callable[[], object]:
        learner = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        saver.begin({"learner": learner}, step=step, info={})
        return saver.wait

    def plain(step: int) -> Callable[[], object]:
        path = folder / f"plain-{step}.pt"
        state: Any = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with open(path.with_suffix(".tmp"), "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path.with_suffix(".tmp"), path)
        return path.unlink

    def peer(step: int) -> Callable[[], object]:
        path = folder / f"dcp-{step}"
        weights, moments = get_state_dict(model, optimizer)
        writing: Any = dcp.async_save({"model": weights, "optim": moments}, checkpoint_id=path)

        def wait() -> None:
            writing.result()
            shutil.rmtree(path)

        return wait

    found: dict[str, list[Times]] = {}
    try:
        for step in range(ROUNDS + 1):
            for way in (ours, plain, peer):
                times = timed(lambda way=way, step=step: way(step))  # type: ignore[misc]
                if step:
                    found.setdefault(way.__name__, []).append(times)
    finally:
        saver.close()
        dist.destroy_process_group()
        shutil.rmtree(folder)
    held, done = (
        {name: 1000 * statistics.median(pair[i] for pair in pairs) for name, pairs in found.items()}
        for i in (0, 1)
    )
    for name, mine, other in (
        ("stall", held["ours"], held["plain"]),
        ("stall_async", held["ours"], held["peer"]),
        ("complete", done["ours"], done["plain"]),
    ):
        measure.row(name, mine, other, "ms of a checkpoint of 264 MB", other / mine)


if __name__ == "__main__":
    main()
