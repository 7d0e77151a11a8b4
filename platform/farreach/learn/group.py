"""Joins the workers of a run into PyTorch's process group; what Ray Train calls a backend.

Ray Train's own one is unpickled in its controller, where it imports PyTorch: more than a second in
which no worker begins, and a quarter of a gigabyte for as long as the run lasts. This one leaves
PyTorch to the workers.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from farreach.imports import imported

# Seconds that a worker waits for the others before it gives up.
TIMEOUT_S = 1800
LEAVE_S = 30


@dataclass
class GroupConfig(BackendConfig):
    """How workers talk to each other.

    Attributes:
        backend: `gloo`, or also `nccl` for what is on GPUs.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        """What does it."""
        return Group


class Group(Backend):
    """Has all workers join before they train, and leave afterwards; lives in the controller."""

    # Each worker sees the GPUs of all on its machine, and takes its own.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Have all workers join."""
        address, port = worker_group.execute_single(0, _free_address)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, rank, len(worker_group), address, port
                )
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Have them leave; those that hang are ended by Ray Train."""
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=LEAVE_S)


def _free_address() -> tuple[str, int]:
    """Of the machine that the first worker is on, a port that nobody uses."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind(("", 0))
        return address, found.getsockname()[1]


def _join(backend: str, rank: int, world: int, address: str, port: int) -> None:
    """In a worker: set what PyTorch's launchers set, take a GPU, and meet the others."""
    from datetime import timedelta

    imported("ray.train.torch")
    import ray.train.torch
    import torch
    from torch import distributed

    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    if "nccl" in backend:
        # A collective that hangs ends the worker, which Ray Train then replaces.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        torch.cuda.set_device(ray.train.torch.get_device())
    distributed.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))


def _leave() -> None:
    """In a worker: end what `_join` has begun."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
