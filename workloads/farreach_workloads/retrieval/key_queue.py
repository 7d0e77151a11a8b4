"""The queue of MoCo's keys, whole on every worker or in shares, and the loss against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from farreach.learn.collectives import gathered_unequal, highest, rank, total, workers
from farreach.linear import linear, product

CONVERTED = 1 << 12  # keys of lower precision that are converted at a time


class KeyQueue:
    """The last keys, first in first out; no part of a module, so that nothing copies it.

    Of a queue in shares, place p is with worker p modulo their number.

    Attributes:
        keys: of the places that are here, in their order, (any, width).
        written: update after which each place was written, (size,); -1: never.
    """

    def __init__(
        self,
        size: int,
        width: int,
        dtype: torch.dtype,
        generator: torch.Generator,
        sharded: bool = False,
    ) -> None:
        """Random vectors of length 1, which count only where nothing is masked; shares have none.

        Args:
            size: keys, of all workers together.
            width: of a key.
            dtype: of the keys.
            generator: of the vectors.
            sharded: whether each worker keeps a share alone.
        """
        self._first, self._every = (rank(), workers()) if sharded else (0, 1)
        if sharded:
            own = len(range(self._first, size, self._every))
            self.keys = torch.zeros(own, width, dtype=dtype)
        else:
            noise = torch.randn(size, width, generator=generator)
            self.keys = F.normalize(noise, dim=-1).to(dtype)
        self.written = torch.full((size,), -1, dtype=torch.int64)
        self._next = 0

    @property
    def filled(self) -> int:
        """Places that hold keys; the first ones, until all do."""
        return int((self.written >= 0).sum())

    @property
    def usable(self) -> Tensor:
        """The keys that are here, (any, width), without the places that hold none."""
        return self.keys[: len(range(self._first, self.filled, self._every))]

    def add(self, keys: Tensor, step: int) -> None:
        """Put keys (n, width) in the place of the oldest; of too many the last."""
        size = len(self.written)
        first = max(0, len(keys) - size)
        places = (self._next + torch.arange(first, len(keys))) % size
        self.written[places] = step
        here = places % self._every == self._first
        into, chosen = places[here] // self._every, first + here.nonzero()[:, 0]
        device = self.keys.device
        self.keys[into.to(device)] = keys[chosen.to(keys.device)].to(device, self.keys.dtype)
        self._next = (self._next + len(keys)) % size

    def to(self, device: torch.device) -> None:
        """Move the keys."""
        if self.keys.device != device:
            self.keys = self.keys.to(device)

    def state(self) -> dict[str, Any]:
        """All of it, whoever has it; bfloat16 as the bits of int16, which NumPy knows.

        Of shares, all workers call it together.
        """
        keys = self.keys
        if self._every > 1:
            shares, counts = gathered_unequal(keys)
            keys = keys.new_empty(len(self.written), keys.shape[1])
            for worker, share in enumerate(shares.split(counts)):
                keys[worker :: self._every] = share
        keys = keys.cpu()
        is_short = keys.dtype == torch.bfloat16
        return {
            "keys": (keys.view(torch.int16) if is_short else keys).numpy(),
            "written": self.written.numpy(),
            "next": self._next,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a `state` over; raises ValueError if it is of another size."""
        keys = torch.from_numpy(state["keys"].copy())
        if self.keys.dtype == torch.bfloat16:
            keys = keys.view(torch.bfloat16)
        expected = (len(self.written), self.keys.shape[1])
        if keys.shape != expected or keys.dtype != self.keys.dtype:
            raise ValueError("contrast.queue")
        self.keys = keys[self._first :: self._every].to(self.keys.device).clone()
        self.written = torch.from_numpy(state["written"].copy())
        self._next = int(state["next"])


class _Products(torch.autograd.Function):
    """Inner products with keys of lower precision, of which few are converted at a time."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        """(n, width) and (k, width) to (n, k), in the precision of the queries."""
        ctx.save_for_backward(keys)
        result = queries.new_empty(len(queries), len(keys))
        for some, into in zip(keys.split(CONVERTED), result.split(CONVERTED, 1), strict=True):
            into.copy_(product(queries, some.to(queries.dtype)))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """That of the queries."""
        (keys,), (grad,) = ctx.saved_tensors, grads
        result = grad.new_zeros(len(grad), keys.shape[1])
        for some, of_some in zip(keys.split(CONVERTED), grad.split(CONVERTED, 1), strict=True):
            result.addmm_(of_some, some.to(grad.dtype))
        return result, None


def queue_loss(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of each query with its key against other keys (§3, equation 1; with the logarithm).

    Args:
        queries: (n, width).
        keys: of the same pairs, (n, width).
        negatives: (k, width), which get no gradient; may be of lower precision than the queries.
        temperature: by which scores are divided.
        label_smoothing: of the cross-entropy.

    Returns:
        The mean loss (), and the share of queries whose key has the highest score ().
    """
    own = (queries * keys).sum(-1, keepdim=True)
    others: Tensor = (
        linear(queries, negatives)
        if negatives.dtype == queries.dtype
        else _Products.apply(queries, negatives)
    )
    logits = torch.cat([own, others], 1) / temperature
    labels = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return loss, (logits.argmax(1) == 0).float().mean()


class _LogSumExp(torch.autograd.Function):
    """Of each query's scores with the keys of all workers, each of which has a share of them.

    Every worker scores everyone's queries with its keys, once: what the gradient needs, the mean of
    the keys by their weights, comes along (arXiv:2112.09118 has one queue for each worker; the sums
    are those of a softmax in parts, Milakov and Gimelshein, arXiv:1805.02867).
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """(n, width), (k, width) → the logarithm and the highest score, (n,) each."""
        everyones, counts = gathered_unequal(queries)
        highest_score = everyones.new_full((len(everyones),), float("-inf"))
        weights = everyones.new_zeros(len(everyones))
        weighted = torch.zeros_like(everyones)
        for some in keys.split(CONVERTED) if len(keys) else ():
            converted = some.to(queries.dtype)
            scores = product(everyones, converted) / temperature
            now = torch.maximum(highest_score, scores.amax(1))
            shrink, shares = (highest_score - now).exp(), (scores - now[:, None]).exp()
            weights = weights * shrink + shares.sum(1)
            weighted = weighted * shrink[:, None] + shares @ converted
            highest_score = now
        overall = highest(highest_score)
        # Where nobody has a key both are -∞, and their difference is no number.
        shrink = (highest_score - overall).exp().nan_to_num(0)
        weights, weighted = total(weights * shrink), total(weighted * shrink[:, None])
        begin = sum(counts[: rank()])
        own = slice(begin, begin + len(queries))
        mean_key = (weighted[own] / weights[own, None]).nan_to_num(0)
        ctx.save_for_backward(mean_key / temperature)
        ctx.mark_non_differentiable(overall_own := overall[own].clone())
        return overall[own] + weights[own].log(), overall_own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """That of the queries."""
        (slope,) = ctx.saved_tensors
        return grads[0][:, None] * slope, None, None


def shared_queue_loss(
    queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """`queue_loss` against the keys of all workers, of which each gives its own share.

    All workers call it together, with any number of queries.

    Args:
        queries: (n, width), of this worker.
        keys: of the same pairs, (n, width).
        negatives: this worker's share, (any, width), which get no gradient.
        temperature: by which scores are divided.

    Returns:
        As `queue_loss`, of this worker's queries.
    """
    own = (queries * keys).sum(-1) / temperature
    others, hardest = _LogSumExp.apply(queries, negatives, temperature)
    loss = (torch.logaddexp(own, others) - own).mean()
    return loss, (own >= hardest).float().mean()
