"""Which window of which corpus comes next: a pure function of the number of the sample.

Nothing is kept and nothing is written down, so that any worker of any number finds the same sample
at the same place, also after a restart. Source of the mixture: Contriever, arXiv:2112.09118, and
its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from farreach import seeding
from farreach.config import Config
from farreach.errors import ConfigError, DataError
from farreach.learn.order import Rows, permuted
from farreach.learn.task import Batch
from farreach_workloads.retrieval.packed import even_cuts
from farreach_workloads.retrieval.spans import (
    Counts,
    SpansConfig,
    Tokens,
    Vocabulary,
    check,
    outputs,
    pairs,
    streams,
    uniforms,
)

BLOCK = 1024
# Windows in which word pieces are counted.
RARITY_WINDOWS = 40_000


class MixConfig(Config):
    """How corpora are mixed, sample by sample."""

    alpha: float = Field(0.0, ge=0)
    """Of n windows a corpus is drawn with a probability ∝ n^alpha: 0 is uniform, 1 by size."""
    replacement: bool = True
    """Each window is drawn alone; otherwise all windows of a corpus come before any comes again."""


class Store(Protocol):
    """What is read of a `farreach.data.tokens.TokenStore`."""

    @property
    def tokens(self) -> int:
        """How many it holds."""

    @property
    def size(self) -> int:
        """How many tokens the vocabulary has."""

    @property
    def vocabulary(self) -> str:
        """Fingerprint of the tokenizer."""

    def windows(self, starts: NDArray[np.int64], length: int) -> Tokens:
        """The tokens from each start on, (n, length)."""

    def bounds(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin and end of the document at each position, each (n,)."""


class Chunks:
    """Windows of some corpora, mixed.

    A pass over a corpus begins at a random token, so that windows are not cut at the same places
    again; it leaves out less than two windows at the ends together.
    """

    def __init__(
        self, stores: Mapping[str, Store], config: MixConfig, chunk: int, seed: int
    ) -> None:
        """Of windows of `chunk` tokens.

        Raises:
            DataError: there is no corpus, or one is shorter than a window.
            ConfigError: there are more corpora than a block of the schedule has places.
        """
        for name, store in stores.items():
            if store.tokens < chunk:
                raise DataError(
                    f"corpus {name}: its {store.tokens} tokens are fewer than the {chunk} of a "
                    "chunk. Leave it out, add to it, or lower spans.chunk."
                )
        if not stores:
            raise DataError("corpora: there are none to draw from. Name at least one.")
        self.stores, self.chunk = dict(stores), chunk
        self._config, self._seed = config, seed
        self._names = list(stores)
        self._tokens = np.array([store.tokens for store in stores.values()], np.int64)
        self._counts = np.maximum((self._tokens - chunk + 1) // chunk, 1)
        weights = (self._counts / self._counts.sum()) ** config.alpha
        self.probabilities: NDArray[np.float64] = weights / weights.sum()
        self._until = np.cumsum(self.probabilities)[:-1]
        if not config.replacement:
            self._schedule, self._shares, self._before = _schedule(self.probabilities, seed)

    @property
    def count(self) -> int:
        """Windows that a pass over every corpus has."""
        return int(self._counts.sum())

    def draw(self, samples: Rows) -> tuple[Rows, Rows]:
        """Corpus and position of the first token of each sample.

        Args:
            samples: number of each in the whole run, (n,).

        Returns:
            Index into the corpora and position in the corpus, each (n,).
        """
        if self._config.replacement:
            which, where = uniforms(outputs(streams(samples, self._seed, "windows"), 0, 2)).T
            corpora = np.searchsorted(self._until, which, side="right")
            return corpora, (where * (self._tokens[corpora] - self.chunk + 1)).astype(np.int64)
        blocks, slots = np.divmod(samples, BLOCK)
        corpora = self._schedule[slots]
        shown = blocks * self._shares[corpora] + self._before[slots]
        passes, places = np.divmod(shown, self._counts[corpora])
        return corpora, self._starts(corpora, passes, places)

    def windows(self, corpora: Rows, starts: Rows) -> Tokens:
        """The tokens from some starts on, (n, chunk)."""
        parts = [store.windows(starts[rows], self.chunk) for store, rows in self._each(corpora)]
        if len(parts) == 1:
            return parts[0]
        result = np.empty((len(starts), self.chunk), parts[0].dtype)
        result[np.argsort(corpora, kind="stable")] = np.concatenate(parts)
        return result

    def inside_documents(self, corpora: Rows, starts: Rows) -> tuple[Rows, tuple[Counts, Counts]]:
        """Windows moved as little as it takes to lie in the document in which they start.

        Args:
            corpora: (n,).
            starts: (n,).

        Returns:
            Starts from which a window can be read, and begin and end (exclusive) of the document
            in it, each (n,); both are nearer than a window where the document is shorter.
        """
        begins, ends = np.empty_like(starts), np.empty_like(starts)
        for store, rows in self._each(corpora):
            begins[rows], ends[rows] = store.bounds(starts[rows])
        begins = np.maximum(begins, np.minimum(starts, ends - self.chunk))
        ends = np.minimum(ends, begins + self.chunk)
        starts = np.minimum(begins, self._tokens[corpora] - self.chunk)
        return starts, (begins - starts, ends - starts)

    def documents(self, corpora: Rows, starts: Rows) -> Rows:
        """The document in which each window starts: its begin, counted over all corpora, (n,)."""
        begins = np.empty_like(starts)
        for store, rows in self._each(corpora):
            begins[rows] = store.bounds(starts[rows])[0]
        return begins + (np.cumsum(self._tokens) - self._tokens)[corpora]

    def _each(self, corpora: Rows) -> Iterator[tuple[Store, Rows]]:
        """Each corpus that comes up, and where."""
        for index, store in enumerate(self.stores.values()):
            rows = np.flatnonzero(corpora == index)
            if len(rows):
                yield store, rows

    def _starts(self, corpora: Rows, passes: Rows, places: Rows) -> Rows:
        """First tokens of the windows that some places of passes show, (n,)."""
        starts = np.empty_like(places)
        for index, number in sorted(set(zip(corpora.tolist(), passes.tolist(), strict=True))):
            rows = (corpora == index) & (passes == number)
            key = seeding.child_seed(self._seed, f"pass/{self._names[index]}", number)
            count = int(self._counts[index])
            spare = int(self._tokens[index]) - count * self.chunk
            shown = permuted(places[rows], count, key)
            starts[rows] = key % (spare + 1) + shown * self.chunk
        return starts


class PairData:
    """Pairs of texts for `farreach.learn.task.Task`; see `farreach.learn.task.Data`."""

    def __init__(
        self,
        chunks: Chunks,
        config: SpansConfig,
        vocabulary: Vocabulary,
        seed: int,
        samples_per_epoch: int | None = None,
    ) -> None:
        """An epoch has as many samples as the corpora have windows, unless it is said.

        Raises:
            DataError: a corpus was written with another vocabulary.
            ConfigError: the vocabulary lacks what the augmentation puts in.
        """
        check(config, vocabulary)
        for name, store in chunks.stores.items():
            known = vocabulary.fingerprint or store.vocabulary
            if (store.size, store.vocabulary) != (vocabulary.size, known):
                raise DataError(
                    f"corpus {name}: its vocabulary of {store.size} tokens is not the model's of "
                    f"{vocabulary.size}, or not the same tokens. Build it with the model's."
                )
        self._chunks, self._config, self._vocabulary = chunks, config, vocabulary
        self._seed, self._samples = seed, samples_per_epoch or chunks.count

    def __len__(self) -> int:
        """How many samples an epoch has."""
        return self._samples

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """The pairs at some positions of the run; `rows` do not count.

        Returns:
            `query` and `key`: ids with [CLS] and [SEP], padded on the right, (n, longest);
            `query_length` and `key_length`: (n,); `source`: the document in which a pair's
            window starts, (n,); `place`: of a pair among these, (n,). All int64.
        """
        corpora, starts = self._chunks.draw(positions)
        documents = self._chunks.documents(corpora, starts)
        used = None
        if self._config.respect_documents:
            starts, used = self._chunks.inside_documents(corpora, starts)
        windows = self._chunks.windows(corpora, starts)
        made = pairs(windows, positions, self._seed, self._config, self._vocabulary, used)
        return {
            "query": torch.from_numpy(made.query).long(),
            "query_length": torch.from_numpy(made.query_lengths),
            "key": torch.from_numpy(made.key).long(),
            "key_length": torch.from_numpy(made.key_lengths),
            "source": torch.from_numpy(documents),
            "place": torch.arange(len(positions)),
        }

    def parts(self, rows: Rows, positions: Rows, size: int) -> list[Batch]:
        """Pairs whose queries are of like length, and have as many tokens in every part.

        See `farreach.learn.task.PartedData`.
        """
        whole = self.batch(rows, positions)
        order = whole["query_length"].argsort(stable=True)
        return [
            {name: _of_some(whole, name, some) for name in whole}
            for some in order.split(even_cuts(whole["query_length"][order], size))
        ]


def _of_some(whole: Batch, name: str, some: Tensor) -> Tensor:
    """Some rows, texts as wide as the longest of them."""
    if f"{name}_length" in whole:
        return whole[name][some, : int(whole[f"{name}_length"][some].max())]
    return whole[name][some]


def rarity(stores: Mapping[str, Store], chunk: int) -> NDArray[np.float32]:
    """How rare each word piece is: log(windows / windows that have it), 1 on average over pieces.

    Windows lie side by side, at most some ten thousand of all corpora together.
    """
    size = max(store.size for store in stores.values())
    found = np.zeros(size, np.int64)
    count = 0
    for store in stores.values():
        whole = max(1, store.tokens // chunk)
        most = min(whole, RARITY_WINDOWS // len(stores))
        numbers = np.linspace(0, whole - 1, most).astype(np.int64)
        windows = np.sort(store.windows(numbers * chunk, chunk), axis=1)
        first = np.ones(windows.shape, np.bool_)
        first[:, 1:] = windows[:, 1:] != windows[:, :-1]
        found += np.bincount(windows[first], minlength=size)
        count += len(windows)
    rare = np.log(count / (found + 1.0)).clip(min=0.05)
    return (rare / rare.mean()).astype(np.float32)


def _schedule(probabilities: NDArray[np.float64], seed: int) -> tuple[Rows, Rows, Rows]:
    """Which corpora a block of samples shows, in the proportions that come nearest.

    Every corpus has a place, and the others go where they are missed most (Webster, Sainte-Laguë).

    Returns:
        Corpus of each place, (1024,); places of each corpus, (corpora,); how many places of its
        corpus come before each, (1024,).

    Raises:
        ConfigError: there are more corpora than places.
    """
    count = len(probabilities)
    if count > BLOCK:
        raise ConfigError(
            f"replacement: {count} corpora are more than the {BLOCK} that a schedule has places "
            "for. Join some, or draw with replacement."
        )
    shares = np.ones(count, np.int64)
    for _ in range(BLOCK - count):
        shares[np.argmax(probabilities / (shares + 0.5))] += 1
    key = seeding.child_seed(seed, "schedule")
    corpora = np.repeat(np.arange(count), shares)[permuted(np.arange(BLOCK), BLOCK, key)]
    before = np.empty(BLOCK, np.int64)
    before[np.argsort(corpora, kind="stable")] = np.concatenate([np.arange(n) for n in shares])
    return corpora, shares, before
