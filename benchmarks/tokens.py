"""Pairs of texts from a stream of tokens, against a loader that makes them one by one.

`python benchmarks/tokens.py` prints one JSON line, `loader`: batches of 64 pairs, cropped and with
a tenth of the tokens deleted, padded, from 5 million tokens of a Zipf distribution, on one thread.
The peer is written from the description of Contriever's loader (arXiv:2112.09118): it walks through
tensors element by element. `peer_masks` is the rate of the same loader if it deletes by a mask per
text instead, and `ours_by_epochs`, `ours_by_documents` and `ours_2048` are ours without
replacement, inside documents of 20 to 400 tokens, and in batches of 2,048.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farreach_workloads.retrieval.sampler import Chunks, MixConfig, PairData
from farreach_workloads.retrieval.spans import SpansConfig, Vocabulary

UNIT = "pairs per CPU-second"
ROUNDS = 9
TOKENS, CHUNK, BATCH = 5_000_000, 256, 64
RATIO, DELETED = (0.05, 0.5), 0.1
WORDS = Vocabulary(cls=101, sep=102, pad=0, mask=103, first_word=999, size=30522)
Rule = Callable[[Tensor], Tensor]


class Stream:
    """A memory-mapped file of tokens, as `farreach_workloads.retrieval.sampler.Store` has them."""

    tokens, size, vocabulary = TOKENS, WORDS.size, ""

    def __init__(self, path: Path, rng: np.random.Generator) -> None:
        """Draws and writes them."""
        shares = 1 / np.arange(1.0, WORDS.size - WORDS.first_word + 1)
        drawn = np.searchsorted(np.cumsum(shares) / shares.sum(), rng.random(TOKENS))
        (drawn + WORDS.first_word).astype(np.uint16).tofile(path)
        self._ids = np.memmap(path, np.uint16, "r")
        starts = np.cumsum(rng.integers(20, 400, TOKENS // 200))
        self._starts = np.concatenate([[0], starts[starts < TOKENS], [TOKENS]])

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.uint16]:
        """The tokens from each start on, (n, length)."""
        shape = TOKENS - length + 1, length
        return np.ndarray(shape, np.uint16, self._ids, strides=(2, 2))[starts]

    def bounds(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin and end of the document at each position, each (n,)."""
        after = np.searchsorted(self._starts, positions, side="right")
        return self._starts[after - 1], self._starts[after]


class OneByOne:
    """A loader of items, each a tensor of its own."""

    def __init__(self, path: Path, deleted: Rule) -> None:
        """All tokens in memory, as 32-bit integers."""
        self._ids = torch.from_numpy(np.fromfile(path, np.uint16).astype(np.int32))
        self._deleted = deleted

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and their mask, keys and theirs, each (64, longest)."""
        items = [self._item() for _ in range(BATCH)]
        return (*padded([query for query, _ in items]), *padded([key for _, key in items]))

    def _item(self) -> tuple[Tensor, Tensor]:
        start = random.randrange(TOKENS // CHUNK) * CHUNK
        chunk = self._ids[start : start + CHUNK]
        return self._text(chunk), self._text(chunk)

    def _text(self, chunk: Tensor) -> Tensor:
        length = int(CHUNK * random.uniform(*RATIO))
        start = random.randint(0, CHUNK - length)
        left = self._deleted(chunk[start : start + length])
        return torch.cat([torch.tensor([WORDS.cls]), left, torch.tensor([WORDS.sep])])


def deleted_by_elements(text: Tensor) -> Tensor:
    """A list of what is left, made a tensor again."""
    numbers = np.random.uniform(size=len(text))  # noqa: NPY002 (what such loaders call)
    return torch.tensor(
        [token for token, number in zip(text, numbers, strict=True) if number > DELETED]
    )


def deleted_by_mask(text: Tensor) -> Tensor:
    """What is left, in one step."""
    return text[torch.rand(len(text)) > DELETED]


def padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids, (n, longest), and where they are tokens."""
    longest = max(len(text) for text in texts)
    ids = torch.full((len(texts), longest), WORDS.pad, dtype=torch.int64)
    mask = torch.zeros((len(texts), longest), dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = True
    return ids, mask


def ours(store: Stream, batch: int, count: int, **settings: bool) -> measure.Work:
    """Some batches of our loader; settings of the mix or of the spans."""
    spans = SpansConfig(
        ratio=RATIO, probability=DELETED, respect_documents=settings.get("documents", False)
    )
    mix = MixConfig(replacement=not settings.get("epochs", False))
    data = PairData(Chunks({"zipf": store}, mix, CHUNK, seed=0), spans, WORDS, seed=0)

    def work() -> None:
        for first in range(0, count, batch):
            positions = np.arange(first, first + batch)
            data.batch(positions, positions)

    return work


def theirs(path: Path, deleted: Rule, batches: int) -> measure.Work:
    """Some batches of the other loader."""
    loader = OneByOne(path, deleted)

    def work() -> None:
        for _ in range(batches):
            loader.batch()

    return work


def main() -> None:
    """Print the row."""
    measure.rows_asked(__doc__)
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        store = Stream(path, np.random.default_rng(0))
        pairs, few, some = 512 * BATCH, 4, 16
        others = {
            "ours_2048": (ours(store, 2048, pairs), pairs),
            "ours_by_epochs": (ours(store, BATCH, pairs, epochs=True), pairs),
            "ours_by_documents": (ours(store, BATCH, pairs, documents=True), pairs),
            "peer_masks": (theirs(path, deleted_by_mask, some), some * BATCH),
        }
        seconds = measure.medians([work for work, _ in others.values()], ROUNDS)
        extra = {
            name: round(count / spent)
            for (name, (_, count)), spent in zip(others.items(), seconds, strict=True)
        }
        works = (
            (ours(store, BATCH, pairs), pairs),
            (theirs(path, deleted_by_elements, few), few * BATCH),
        )
        measure.compare_rates("loader", UNIT, *works, ROUNDS, **extra)


if __name__ == "__main__":
    main()
