"""Several workers on one machine, each a process of its own, to see that they are as one.

```
if __name__ == "__main__":
    as_rank(lambda rank, world, words: gradients_of(Place(rank, world), *words))

found = several(Path(__file__), world=3, folder=tmp_path, words=["…"])   # elsewhere; by rank
```
"""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT_S = 240
# Until a worker that waits for another gives up.
PATIENCE_S = 120


def several(program: Path, world: int, folder: Path, words: Sequence[object] = ()) -> list[Any]:
    """Run a program once per rank; what `as_rank` has made of each, by rank.

    Args:
        program: a file that calls `as_rank`.
        world: how many ranks.
        folder: where results lie on their way.
        words: further arguments, as text.

    Raises:
        RuntimeError: a rank failed.
        subprocess.TimeoutExpired: one took too long; all are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, (program, rank, world, port, folder, *words))],
            env=environment,
        )
        for rank in range(world)
    ]
    try:
        codes = [rank.wait(LIMIT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise RuntimeError(f"{program.name}: the ranks ended with {codes}; what they said is above")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]


def as_rank(work: Callable[[int, int, list[str]], Any]) -> None:
    """Be one of the ranks that `several` starts; ends the process.

    Args:
        work: (rank, world, words) → what `several` returns for this rank.
    """
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{sys.argv[3]}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=PATIENCE_S),
    )
    torch.save(work(rank, world, sys.argv[5:]), Path(sys.argv[4]) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may hold the interpreter up
