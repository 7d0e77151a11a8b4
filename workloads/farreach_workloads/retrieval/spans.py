"""Positive pairs without labels: two texts made of one window of tokens, a whole batch at once.

All random numbers are outputs of SplitMix64, one stream for every sample: a pair depends on the
seed and the number of its sample, whatever batch it is in. Sources: Contriever, arXiv:2112.09118
(independent cropping, and its ablations); the inverse cloze task, arXiv:1906.00300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from farreach import seeding
from farreach.config import Config
from farreach.errors import ConfigError

Tokens = NDArray[np.unsignedinteger]
Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]
Words = NDArray[np.uint64]
Levels = NDArray[np.uint16]

# Every text has a stream of its own: numbers for its span, then 16 bits for each token of the
# window, of which four are a word, and at last a word for each.
NEXT = np.uint64(0x9E3779B97F4A7C15)
LONGEST = 32768
FOR_SPANS = 2
FOR_LEVELS = FOR_SPANS + LONGEST // 4


class SpansConfig(Config):
    """How a window of tokens becomes a query and a key that belong together."""

    kind: Literal["crop", "ict"] = "crop"
    """Two spans, each drawn alone; or a span and what is left of the window."""
    chunk: int = Field(256, ge=2, le=LONGEST)
    """Tokens of a window."""
    ratio: tuple[float, float] = (0.05, 0.5)
    """Least and greatest share of the window that a span takes."""
    augmentation: Literal["none", "delete", "replace", "mask", "shuffle"] = "delete"
    """What happens to some tokens of both texts: they go, become any word or the mask, or change
    places with one another."""
    probability: float = Field(0.1, ge=0, lt=1)
    """That a token is augmented."""
    keep_span: float = Field(0.1, ge=0, le=1)
    """Of ict: probability that the span stays in the key."""
    lead: float = Field(0.0, ge=0, le=1)
    """Probability that the query is the beginning of the window: texts often say first what they
    are about, and questions are like that."""
    respect_documents: bool = False
    """Windows end where the document does; otherwise they run on into the next one."""

    @model_validator(mode="after")
    def _is_sound(self) -> SpansConfig:
        least, most = self.ratio
        if not 0 < least <= most <= 1:
            raise ValueError(
                f"ratio: [{least}, {most}] is no range of shares. Take two that rise, above 0 and "
                "not above 1"
            )
        return self

    @property
    def longest(self) -> int:
        """Tokens of the longest text that training sees, with [CLS] and [SEP]."""
        return 2 + math.ceil(self._most)

    @property
    def positions(self) -> int:
        """Tokens that an encoder must have positions for: a span has whole ones alone."""
        return 2 + int(self._most)

    @property
    def _most(self) -> float:
        return self.chunk * (1.0 if self.kind == "ict" else self.ratio[1])


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that have a meaning of their own.

    Attributes:
        cls: id of what begins a text.
        sep: id of what ends it.
        pad: id of what fills a batch.
        mask: id of what stands for a hidden token; below 0: there is none.
        first_word: from this id on all are words.
        size: number of tokens.
        fingerprint: of the tokenizer; empty if that is not known.
    """

    cls: int
    sep: int
    pad: int
    mask: int
    first_word: int
    size: int
    fingerprint: str = ""


@dataclass(frozen=True)
class Pairs:
    """Texts with [CLS] and [SEP], padded on the right to the longest of the batch.

    Attributes:
        query: (n, longest query).
        query_lengths: tokens with [CLS] and [SEP], (n,).
        key: (n, longest key).
        key_lengths: as of the queries.
    """

    query: NDArray[np.int32]
    query_lengths: Counts
    key: NDArray[np.int32]
    key_lengths: Counts


def pairs(
    windows: Tokens,
    samples: Counts,
    seed: int,
    config: SpansConfig,
    vocabulary: Vocabulary,
    spans_of: tuple[Counts, Counts] | None = None,
) -> Pairs:
    """A query and a key of every window.

    Args:
        windows: without special tokens, (n, chunk).
        samples: number of each in the whole run, (n,).
        seed: of the run.
        config: how.
        vocabulary: the ids of what is put in.
        spans_of: begin and end (exclusive) of the part of each window that is used, each (n,), at
            least one token; None: all of it.

    Raises:
        ConfigError: the vocabulary lacks what the augmentation puts in.
    """
    check(config, vocabulary)
    count, chunk = windows.shape
    begins, ends = spans_of or (np.zeros(count, np.int64), np.full(count, chunk))
    texts = streams(np.concatenate((2 * samples, 2 * samples + 1)), seed, "spans")
    numbers = uniforms(outputs(texts, 0, 2)).T
    numbers[1, :count] = _led(numbers[1, :count], config.lead)
    begins, used = _twice(begins), _twice(ends - begins)
    firsts, lengths = _cropped(numbers, begins, used, config.ratio)
    holes = None
    if config.kind == "ict":
        holes = _holes(firsts - begins, lengths, used, numbers[0] < config.keep_span)
        firsts[count:], lengths[count:] = begins[count:], used[count:]
    width = 4 * -(-int(lengths.max(initial=0)) // 4)
    inside = _inside(width, 0, lengths)
    if holes is not None:
        inside &= ~_inside(width, *holes)
    rows = _cut(windows, _twice(np.arange(count) * chunk) + firsts, width)
    ids, lengths = _collated(*_augmented(rows, inside, texts, config, vocabulary), vocabulary)
    query, key = lengths[:count], lengths[count:]
    return Pairs(ids[:count, : query.max(initial=0)], query, ids[count:, : key.max(initial=0)], key)


def check(config: SpansConfig, vocabulary: Vocabulary) -> None:
    """Raise ConfigError where the vocabulary lacks what the augmentation puts in."""
    if config.augmentation == "mask" and not 0 <= vocabulary.mask < vocabulary.size:
        raise ConfigError(
            "augmentation: the vocabulary has no mask token. Take another augmentation, or a "
            "vocabulary with [MASK]."
        )
    if config.augmentation == "replace" and not 0 <= vocabulary.first_word < vocabulary.size:
        raise ConfigError(
            "augmentation: the vocabulary has no words to replace others with. Take another "
            "augmentation or vocabulary."
        )


def streams(samples: Counts, seed: int, name: str) -> Words:
    """States of SplitMix64, (n, 1): for each sample one that no other sample or name comes near."""
    key = np.uint64(seeding.child_seed(seed, name))
    return seeding.mixed(key + samples.astype(np.uint64) * NEXT)[:, None]


def outputs(states: Words, first: int, count: int) -> Words:
    """Some outputs of each stream, from number `first` on, (n, count)."""
    return seeding.mixed(states + np.arange(first, first + count, dtype=np.uint64) * NEXT)


def uniforms(words: Words) -> NDArray[np.float64]:
    """Numbers in [0, 1) from 64 random bits each."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)


def _twice(values: Counts) -> Counts:
    """Of all queries and then of all keys, (2 n,)."""
    return np.concatenate((values, values))


def _cropped(
    numbers: NDArray[np.float64], begins: Counts, lengths: Counts, ratio: tuple[float, float]
) -> tuple[Counts, Counts]:
    """Begin and length of a span of ⌊r length⌋ tokens, at least 1, with r from the range.

    Args:
        numbers: in [0, 1), for length and place, (2, n).
        begins: of what it is a part of, (n,).
        lengths: of the same, (n,).
        ratio: range of r.
    """
    taken = (lengths * (ratio[0] + (ratio[1] - ratio[0]) * numbers[0])).astype(np.int64)
    taken = np.maximum(taken, 1)
    return begins + (numbers[1] * (lengths - taken + 1)).astype(np.int64), taken


def _led(places: NDArray[np.float64], lead: float) -> NDArray[np.float64]:
    """Numbers in [0, 1), of which a share becomes 0 and the rest takes the whole range again."""
    stretched = np.maximum(0.0, places - lead) / max(1 - lead, np.finfo(float).tiny)
    return np.minimum(stretched, np.nextafter(1.0, 0.0))


def _holes(firsts: Counts, lengths: Counts, used: Counts, kept: Mask) -> tuple[Counts, Counts]:
    """Begin and length of what ICT takes out of each text, (2 n,): of keys, their query's span.

    Args:
        firsts: of the spans, counted from the begin of what is used, (2 n,).
        lengths: of the spans, (2 n,).
        used: tokens of the window that are used, (2 n,).
        kept: whether the key keeps the span, (2 n,); it does where nothing else would be left.
    """
    count = len(firsts) // 2
    begins, taken = np.zeros_like(firsts), np.zeros_like(lengths)
    begins[count:] = firsts[:count]
    taken[count:] = np.where(kept[count:] | (lengths == used)[:count], 0, lengths[:count])
    return begins, taken


def _inside(width: int, begins: Counts | int, lengths: Counts) -> Mask:
    """Which columns lie in a part of each row, (n, width)."""
    # Unsigned numbers wrap around: what lies before the begin comes out large.
    columns = np.arange(width, dtype=np.uint16) - np.asarray(begins, np.uint16)[..., None]
    return columns < lengths.astype(np.uint16)[:, None]


def _cut(windows: Tokens, firsts: Counts, width: int) -> Tokens:
    """The tokens from each first on, counted over all windows, (len(firsts), width)."""
    flat = np.concatenate((windows.ravel(), np.zeros(width, windows.dtype)))
    shape, step = (windows.size + 1, width), flat.itemsize
    every: NDArray[Any] = np.ndarray(shape, flat.dtype, flat, strides=(step, step))
    return every[firsts]


def _augmented(
    rows: Tokens, inside: Mask, texts: Words, config: SpansConfig, vocabulary: Vocabulary
) -> tuple[Tokens, Counts]:
    """The tokens of all texts one after the other, and how many each has, (n,).

    Args:
        rows: the texts and what follows them, (n, width), width a multiple of 4; changed in place.
        inside: which columns are in the text, (n, width).
        texts: streams, (n, 1).
        config: how.
        vocabulary: the ids of what is put in.
    """
    if config.augmentation != "none":
        levels = outputs(texts, FOR_SPANS, inside.shape[1] // 4).view(np.uint16)
        limit = np.uint16(config.probability * 2**16)
        if config.augmentation == "delete":
            inside = _thinned(inside, levels, limit)
        else:
            _change(rows, inside & (levels < limit), texts, config.augmentation, vocabulary)
    return rows.ravel().take(np.flatnonzero(inside)), _counts(inside)


def _thinned(inside: Mask, levels: Levels, limit: np.uint16) -> Mask:
    """Texts without the tokens below a limit; of one that would be empty, the highest stays."""
    left = inside & (levels >= limit)
    empty = np.flatnonzero(_counts(left) == 0)
    if len(empty):
        left[empty, np.where(inside[empty], levels[empty] + 1.0, 0).argmax(1)] = True
    return left


def _counts(inside: Mask) -> Counts:
    """How many columns of each row, (n,)."""
    return inside.view(np.uint8).sum(1, dtype=np.uint16).astype(np.int64)


def _change(rows: Tokens, chosen: Mask, texts: Words, kind: str, vocabulary: Vocabulary) -> None:
    """Put others in the place of the chosen tokens."""
    if kind == "mask":
        rows[chosen] = vocabulary.mask
        return
    texts_of, columns = np.nonzero(chosen)
    places = (columns + FOR_LEVELS).astype(np.uint64)
    numbers = seeding.mixed(texts[texts_of, 0] + places * NEXT)
    if kind == "replace":
        count = np.uint64(vocabulary.size - vocabulary.first_word)
        drawn = (numbers >> np.uint64(32)) * count >> np.uint64(32)
        rows[texts_of, columns] = drawn + np.uint64(vocabulary.first_word)
    else:
        order = np.lexsort((numbers, texts_of))
        rows[texts_of, columns] = rows[texts_of, columns[order]]


def _collated(
    tokens: Tokens, lengths: Counts, vocabulary: Vocabulary
) -> tuple[NDArray[np.int32], Counts]:
    """Texts one after the other as rows with [CLS], [SEP] and padding, and their lengths."""
    count = len(lengths)
    ids = np.full((count, int(lengths.max(initial=0)) + 2), vocabulary.pad, np.int32)
    ids[:, 0] = vocabulary.cls
    ids[_inside(ids.shape[1], 1, lengths)] = tokens
    ids[np.arange(count), lengths + 1] = vocabulary.sep
    return ids, lengths + 2
