"""What workers compute together inside of a loss; alone each returns its argument."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def workers() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this one."""
    return dist.get_rank() if dist.is_initialized() else 0


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


def gathered(x: Tensor) -> Tensor:
    """All workers' rows one below the other, of as many on each, with their gradient.

    As with `summed`, the gradient is that of the sum of all workers' losses.
    """
    if workers() == 1:
        return x
    result: Tensor = _Gathered.apply(x.contiguous())
    return result


def gathered_unequal(x: Tensor) -> tuple[Tensor, list[int]]:
    """As `gathered`, of any number of rows on each; and how many each worker has, by rank."""
    if workers() == 1:
        return x, [len(x)]
    counts = _counts(x)
    longest = max(1, *counts)  # of no rows at all there is one, which counts for nobody
    padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = gathered(padded).split(longest)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]), counts


@torch.no_grad()
def collected(x: Tensor) -> Tensor:
    """All workers' rows one below the other, of any number on each, without a gradient."""
    return gathered_unequal(x.detach())[0]


def spread(x: Tensor) -> Tensor:
    """The first worker's tensor, put into one of the same shape that each has."""
    if workers() > 1:
        dist.broadcast(x, src=0)
    return x


def _counts(x: Tensor) -> list[int]:
    """Rows of each worker, by rank."""
    own = torch.tensor([len(x)], device=x.device)
    parts = [torch.empty_like(own) for _ in range(workers())]
    dist.all_gather(parts, own)
    return [int(part) for part in parts]


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """The sum over workers, without a gradient; a new tensor."""
    x = x.detach().clone()
    if workers() > 1:
        dist.all_reduce(x)
    return x


def largest(x: Tensor) -> Tensor:
    """The largest number of all workers, ()."""
    return highest(x.max())


@torch.no_grad()
def highest(x: Tensor) -> Tensor:
    """The largest of all workers' numbers at each place; a new tensor."""
    x = x.detach().clone()
    if workers() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(workers())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient).chunk(workers())[dist.get_rank()]


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation over the rows of all workers, on any device.

    PyTorch's own, `nn.SyncBatchNorm`, has no CPU version.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.BatchNorm1d calls it that)
        """(n, c) → (n, c)."""
        if not self.training or workers() == 1:
            alone: Tensor = super().forward(input)
            return alone
        return normal(self, input)


class BatchNorm2d(nn.BatchNorm2d):
    """The same over the pixels of images."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.BatchNorm2d calls it that)
        """(n, c, h, w) → (n, c, h, w)."""
        if not self.training or workers() == 1:
            alone: Tensor = super().forward(input)
            return alone
        return normal(self, input)


def join_batch_norms(model: nn.Module) -> None:
    """Let every batch normalisation in it be over all workers; parameters and names stay."""
    joined: dict[type, type] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}
    if "timm" in sys.modules:  # else the model has no layer of it
        from timm.layers import BatchNormAct2d

        from farreach.learn.timm_norms import JoinedBatchNormAct2d

        joined[BatchNormAct2d] = JoinedBatchNormAct2d
    for module in model.modules():
        if type(module) in joined:
            module.__class__ = joined[type(module)]


def count_statistics_once(model: nn.Module) -> None:
    """Of activations that are computed again in the backward pass, running statistics learn once.

    To be called for a model that recomputes; what its batch normalisations give stays the same.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            _count_once(module)


def synchronise_batch_norms(model: nn.Module) -> None:
    """As `join_batch_norms` on GPUs, by PyTorch's own; what counts once goes on to do so."""
    from timm.layers import convert_sync_batchnorm  # takes seconds

    # New layers take the place of the old ones, and have no hooks.
    once = [name for name, part in model.named_modules() if _counts_once(part)]
    convert_sync_batchnorm(model)
    for name in once:
        _count_once(model.get_submodule(name))


def _count_once(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(_hold_statistics)
    layer.register_forward_hook(_release_statistics, always_call=True)


def _counts_once(layer: nn.Module) -> bool:
    return _hold_statistics in layer._forward_pre_hooks.values()


def _hold_statistics(layer: Any, inputs: Any) -> None:
    if layer.training and torch._C._current_graph_task_id() != -1:  # a backward pass runs
        layer.held = layer.momentum, layer.num_batches_tracked.clone()
        layer.momentum = 0.0


def _release_statistics(layer: Any, inputs: Any, output: Any) -> None:
    if held := layer.__dict__.pop("held", None):
        layer.momentum, batches = held
        layer.num_batches_tracked.copy_(batches)


def normal(layer: Any, x: Tensor) -> Tensor:
    """Batch normalisation over all dimensions but the second, and all workers."""
    dtype, x = x.dtype, x.float()
    others = [0, *range(2, x.ndim)]
    here = x.numel() // x.shape[1]
    sums = summed(torch.cat([x.sum(others), x.new_tensor([float(here)])]))
    count = sums[-1].detach()
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean = sums[:-1] / count
    centred = x - mean.view(shape)
    variance = summed(centred.square().sum(others)) / count
    with torch.no_grad():
        layer.num_batches_tracked += 1
        momentum = 0.1 if layer.momentum is None else layer.momentum
        for running, value in (
            (layer.running_mean, mean),
            (layer.running_var, variance * count / (count - 1)),
        ):
            running.lerp_(value.to(running.dtype), momentum)
    scale = (variance + layer.eps).rsqrt() * layer.weight
    return (centred * scale.view(shape) + layer.bias.view(shape)).to(dtype)
