"""Where a worker stands among the others, and what they do together; alone it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Place:
    """One worker of a group.

    Attributes:
        rank: its number.
        world: how many there are.
        device: where it computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, of a tensor of the same shape everywhere."""
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def agree(self, flag: bool) -> bool:
        """What the first worker says, at the same time on all of them."""
        if self.world == 1:
            return flag
        answer = torch.tensor(int(flag), device=self.device)
        dist.broadcast(answer, src=0)
        return bool(answer)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are the mean over the workers."""
        if self.world == 1:
            return model
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)
