"""What workers compute together inside of a loss; alone each returns its argument."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def workers() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum over workers, of a tensor of the same shape everywhere, with its gradient.

    The gradient of what all workers' losses depend on is the sum of theirs. The loop averages the
    gradients of parameters over workers: so a mean over workers, `summed(x) / workers()`, gives
    exactly the gradient of the mean of their losses.
    """
    if workers() == 1:
        return x
    result: Tensor = _Summed.apply(x)
    return result


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """The sum over workers, without a gradient; a new tensor."""
    x = x.detach().clone()
    if workers() > 1:
        dist.all_reduce(x)
    return x


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation over the rows of all workers, on any device.

    PyTorch's own, `nn.SyncBatchNorm`, has no CPU version.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.BatchNorm1d calls it that)
        """(n, c) → (n, c)."""
        if not self.training or workers() == 1:
            normal: Tensor = super().forward(input)
            return normal
        x = input.float()
        sums = summed(torch.cat([x.sum(0), x.new_tensor([float(len(x))])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        variance = summed((x - mean).square().sum(0)) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 0.1 if self.momentum is None else self.momentum
            for running, value in (
                (self.running_mean, mean),
                (self.running_var, variance * count / (count - 1)),
            ):
                assert running is not None
                running.lerp_(value.to(running.dtype), momentum)
        normal = (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
        return normal.to(input.dtype)
