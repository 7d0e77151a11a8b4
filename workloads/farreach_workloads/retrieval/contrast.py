"""Contrastive losses of Contriever (arXiv:2112.09118): against a queue, or within the batch.

Scores are inner products; the loss is in float32 whatever the encoder computes in.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from farreach import seeding
from farreach.config import Config
from farreach.learn.collectives import (
    collected,
    gathered_unequal,
    rank,
)
from farreach.learn.momentum import follow
from farreach.learn.task import Batch
from farreach.linear import linear
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.key_queue import KeyQueue, queue_loss, shared_queue_loss
from farreach_workloads.retrieval.packed import even_cuts, exact

if TYPE_CHECKING:
    from farreach_workloads.retrieval.keys_ahead import KeysAhead

MOST_SCORES = 1 << 22  # of a block of queries with all keys


class MocoConfig(Config):
    """Keys of earlier updates are the negatives, encoded by a moving average of the encoder."""

    kind: Literal["moco"] = "moco"
    temperature: float = Field(0.05, gt=0)
    queue: int = Field(131_072, ge=1)
    """Keys that are kept."""
    momentum: float = Field(0.9995, ge=0, lt=1)
    """Of the moving average."""
    key_dropout: bool = True
    """Whether the moving average drops anything, as it does in the released code."""
    masked: bool = True
    """Leave places that no key has come to yet out of the loss; otherwise they hold random vectors
    of length 1, as in the released code."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the keys that are kept."""
    sharded: bool = False
    """Each worker keeps a share of the keys alone, and all together compute what every query scores
    with all of them: for queues of millions."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    saved: bool = True
    """Whether checkpoints hold the keys: 400 MB of a paper-sized queue. Otherwise a run that is
    resumed begins with none, and is not to the bit what it would have been."""
    ahead: int = Field(0, ge=0, le=32)
    """Above 0: keys of so many updates in a row are encoded with the moving average as it was when
    the updates before them began, so that `runtime.key_encoders` can do it meanwhile."""

    @model_validator(mode="after")
    def _fits_shares(self) -> MocoConfig:
        if not (self.saved or self.masked):
            raise ValueError(
                "saved: a queue that is not saved begins anew with places that no key has come to, "
                "which must not count. Set masked=true"
            )
        if self.sharded and (self.label_smoothing or not self.masked):
            raise ValueError(
                "sharded: shares of a queue have no label_smoothing, and places that no key has "
                "come to are left out. Set label_smoothing=0 and masked=true"
            )
        return self


class InBatchConfig(Config):
    """The keys of all other pairs of a batch, on all workers, are the negatives."""

    kind: Literal["in_batch"] = "in_batch"
    temperature: float = Field(0.05, gt=0)
    chunk: int | None = Field(None, ge=1)
    """Pairs that are encoded at a time, for batches that memory could not hold: each pair is
    encoded twice (GradCache, arXiv:2101.06983). None: all at once."""


ContrastConfig = Annotated[MocoConfig | InBatchConfig, Field(discriminator="kind")]


class Pair(nn.Module):
    """The encoder as the loop calls it: once per batch, for all that needs a gradient."""

    def __init__(self, encoder: TextEncoder) -> None:
        """Of one encoder for queries and keys."""
        super().__init__()
        self.encoder = encoder

    def forward(
        self, texts: Sequence[tuple[Tensor, Tensor]], chunk: int | None = None
    ) -> list[Tensor]:
        """Vectors of several lists of texts, each (ids, lengths); see `TextEncoder`.

        Args:
            texts: the lists.
            chunk: texts that are encoded at a time, and once more in the backward pass, dropout
                included; None: all at once, all lists in one piece.
        """
        if chunk is None:
            counts = [len(lengths) for _, lengths in texts]
            # Copies: FSDP2 does not want views of one tensor.
            return [part.clone() for part in self.encoder(*_joined(texts)).split(counts)]
        return [self._in_chunks(ids, lengths, chunk) for ids, lengths in texts]

    def _in_chunks(self, ids: Tensor, lengths: Tensor, chunk: int) -> Tensor:
        order = lengths.argsort(stable=True)
        parts = [
            checkpoint(
                self.encoder,
                ids[some, : int(lengths[some].max())],
                lengths[some],
                use_reentrant=False,
            )
            for some in order.split(even_cuts(lengths[order], chunk))
        ]
        vectors: Tensor = torch.cat(parts)
        return torch.empty_like(vectors).index_copy(0, order, vectors)


def _joined(texts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Several lists of texts as one, padded to the longest."""
    longest = max(ids.shape[1] for ids, _ in texts)
    padded = [F.pad(ids, (0, longest - ids.shape[1])) for ids, _ in texts]
    return torch.cat(padded), torch.cat([lengths for _, lengths in texts])


def batch_loss(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor,
    temperature: float,
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query's scores with all keys, of which one is its own.

    Many scores are computed in blocks of queries, and once more in the backward pass, so that never
    more than `MOST_SCORES` are kept.

    Args:
        queries: (n, width).
        keys: (m, width).
        targets: number of each query's key, (n,) int64.
        temperature: by which scores are divided.
        excluded: keys that are no negatives of a query, such as another part of the same text,
            (n, m) bool.

    Returns:
        The mean loss (), and the share of queries whose key has the highest score ().
    """

    def of_rows(some: slice, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = linear(queries[some] / temperature, keys)
        if excluded is not None:
            logits = logits.masked_fill(excluded[some], float("-inf"))
        loss = F.cross_entropy(logits, targets[some], reduction="sum")
        return loss, (logits.argmax(1) == targets[some]).float().sum()

    rows = max(1, MOST_SCORES // len(keys))
    if rows >= len(queries):
        loss, right = of_rows(slice(None), queries, keys)
    else:
        blocks = [
            checkpoint(
                of_rows,
                slice(first, first + rows),
                queries,
                keys,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for first in range(0, len(queries), rows)
        ]
        loss, right = (torch.stack(parts).sum() for parts in zip(*blocks, strict=True))
    return loss / len(queries), right / len(queries)


class Moco:
    """Momentum contrast (He et al., 2020) as Contriever has it (§3.2)."""

    def __init__(self, encoder: TextEncoder, config: MocoConfig, seed: int) -> None:
        """Copy the encoder for the keys."""
        self._config = config
        self.model = Pair(encoder)
        self.follower = copy.deepcopy(encoder).requires_grad_(False)
        self.companions: Sequence[nn.Module] = (self.follower,)
        dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
        generator = torch.Generator().manual_seed(seed)
        self.queue = KeyQueue(config.queue, encoder.width, dtype, generator, config.sharded)
        self._keys: list[Tensor] = []
        self._places: list[Tensor] = []
        self.ahead: KeysAhead | None = None

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the queries with their keys, against the queue as it is before the update."""
        config = self._config
        (queries,) = model([(batch["query"], batch["query_length"])])
        self.queue.to(queries.device)
        keys = self._keys_of(batch, step)
        filled = self.queue.filled
        negatives = self.queue.usable if config.masked else self.queue.keys
        pairs = exact(queries), exact(keys)
        with torch.autocast(queries.device.type, enabled=False):
            loss, accuracy = (
                shared_queue_loss(*pairs, negatives, config.temperature)
                if config.sharded
                else queue_loss(*pairs, negatives, config.temperature, config.label_smoothing)
            )
        ages = step - self.queue.written[self.queue.written >= 0]
        return loss, {
            "learner/accuracy": accuracy,
            **spreads(queries, keys),
            "learner/queue_filled": torch.tensor(filled / config.queue, device=loss.device),
            "learner/queue_age": ages.float().mean().to(loss.device)
            if filled
            else loss.new_zeros(()),
            **({} if self.ahead is None else self.ahead.metrics(loss.device)),
        }

    @torch.no_grad()
    def _keys_of(self, batch: Batch, step: int) -> Tensor:
        """Of this worker's pairs, of which those of a batch may come in parts."""
        if self.ahead is not None:
            return self.ahead.keys(step, batch["place"])
        self.follower.train(self._config.key_dropout)
        keys: Tensor = self.follower(batch["key"], batch["key_length"])
        self._keys.append(keys)
        self._places.append(batch["place"])
        return keys

    def after_update(self, step: int) -> None:
        """All workers' keys join the queue; the moving average follows.

        The paper moves it before it encodes keys, here it moves after the update: the same weights.
        """
        if self.ahead is None:
            order = torch.cat(self._places).argsort()  # that of the samples, whatever the parts
            keys = collected(torch.cat(self._keys)[order])
            self._keys.clear()
            self._places.clear()
        else:
            keys = self.ahead.everyones
        self.queue.add(keys, step)
        follow(self.follower, self.model.encoder, self._config.momentum)
        if self.ahead is not None:
            self.ahead.advance(step + 1)

    def state(self) -> dict[str, Any]:
        """The queue's; and by which weights keys are encoded, if they are ahead of time."""
        ahead = {} if self.ahead is None else {"ahead": self.ahead.state()}
        return ({"queue": self.queue.state()} if self._config.saved else {}) | ahead

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the queue's state over."""
        if "queue" in state:
            self.queue.restore(state["queue"])


class InBatch:
    """Negatives of the same batch, of all workers, with their gradients (§6.1)."""

    companions: Sequence[nn.Module] = ()

    def __init__(self, encoder: TextEncoder, config: InBatchConfig) -> None:
        """One encoder for queries and keys."""
        self._config = config
        self.model = Pair(encoder)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the queries with all workers' keys.

        No negatives are other parts of the same document, texts that are the key word for word, and
        keys of queries that are the same: large parts of many corpora are there several times.
        """
        config = self._config
        texts = [(batch["query"], batch["query_length"]), (batch["key"], batch["key_length"])]
        queries, keys = model(texts, config.chunk)
        with torch.autocast(queries.device.type, enabled=False):
            everyones, counts = gathered_unequal(exact(keys))
            marks = _marks(batch)
            own = torch.arange(len(queries), device=keys.device) + sum(counts[: rank()])
            excluded = torch.zeros(
                len(queries), len(everyones), dtype=torch.bool, device=own.device
            )
            for mine, theirs in zip(marks.t(), collected(marks).t(), strict=True):
                excluded |= mine[:, None] == theirs[None]
            excluded[torch.arange(len(own), device=keys.device), own] = False
            loss, accuracy = batch_loss(
                exact(queries),
                everyones,
                own,
                config.temperature,
                excluded,
            )
        return loss, {"learner/accuracy": accuracy, **spreads(queries, keys)}

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def state(self) -> dict[str, Any]:
        """None."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """None."""


def _marks(batch: Batch) -> Tensor:
    """What pairs may have in common: document, query and key, as numbers, (n, 3) int64."""
    texts = [_mark(batch[side], batch[f"{side}_length"]) for side in ("query", "key")]
    return torch.stack([batch["source"], *texts], 1)


def _mark(ids: Tensor, lengths: Tensor) -> Tensor:
    """A number of each text, other texts have others: (n, l), (n,) → (n,) int64.

    A sum of products with random numbers, modulo 2^64 (Carter and Wegman, 1979).
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    factors = torch.from_numpy(seeding.mixed(np.arange(ids.shape[1], dtype=np.uint64)).view("i8"))
    return ((ids + 1) * factors.to(ids.device) * (columns < lengths[:, None])).sum(1)


@torch.no_grad()
def spreads(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """Standard deviation over the batch, mean over dimensions: near 0 all vectors are the same."""
    return {
        "learner/query_std": queries.float().std(0, correction=0).mean(),
        "learner/key_std": keys.float().std(0, correction=0).mean(),
    }


def make_method(
    encoder: TextEncoder, config: MocoConfig | InBatchConfig, seed: int
) -> Moco | InBatch:
    """The method that a config asks for."""
    if isinstance(config, MocoConfig):
        return Moco(encoder, config, seed)
    return InBatch(encoder, config)
