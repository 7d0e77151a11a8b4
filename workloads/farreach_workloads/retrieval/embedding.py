"""Vectors of many texts: longest first, as many at a time as a budget of tokens holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from farreach.data.wordpieces import WordPieces
from farreach_workloads.retrieval.encoder import TextEncoder

Ids = NDArray[np.int32]
Vectors = NDArray[np.float32]

BUDGET = 8192
# On a CPU so many tokens fit its cache: BERTs are about a quarter faster than with more.
MOST_ON_CPU = 2048


def framed(text: Ids, words: WordPieces, longest: int) -> Ids:
    """[CLS] text [SEP], cut to `longest` tokens."""
    return np.concatenate([[words.cls], text[: longest - 2], [words.sep]]).astype(np.int32)


def tokenised(texts: Sequence[str], words: WordPieces, longest: int) -> list[Ids]:
    """Framed word pieces of texts."""
    return [framed(ids, words, longest) for ids in words.encode(texts)]


def bundles(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Texts that are encoded together, longest first: at most `budget` tokens each, or one text."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    begin = 0
    while begin < len(order):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield order[begin:end]
        begin = end


@torch.inference_mode()
def embedded(
    encoder: TextEncoder,
    texts: Sequence[Ids],
    *,
    device: torch.device | str = "cpu",
    autocast: bool = False,
    budget: int = BUDGET,
    done: Callable[[int], None] | None = None,
) -> Vectors:
    """Vectors of tokenised texts, in their order.

    Args:
        encoder: in evaluation mode, on `device`.
        texts: see `framed`.
        device: where it is computed.
        autocast: compute in bfloat16.
        budget: tokens at a time; on a CPU never more than `MOST_ON_CPU`.
        done: told how many more texts are ready, from time to time.

    Returns:
        (n, width) float32.
    """
    result = np.empty((len(texts), encoder.width), np.float32)
    device = torch.device(device)
    lengths = np.array([len(text) for text in texts], np.int64)
    if device.type == "cpu":
        budget = min(budget, MOST_ON_CPU)
    cast = torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext()
    with cast:
        for some in bundles(lengths, budget):
            counts = lengths[some]
            ids = np.zeros((len(some), int(counts.max())), np.int64)
            for row, text in enumerate(some.tolist()):
                ids[row, : counts[row]] = texts[text]
            padded = torch.from_numpy(ids).to(device)
            vectors = encoder(padded, torch.from_numpy(counts).to(device))
            result[some] = vectors.float().cpu().numpy()
            if done is not None:
                done(len(some))
    return result
