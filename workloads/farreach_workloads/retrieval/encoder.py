"""Text encoders: BERT and bags of word pieces, each a vector per text, queries and documents alike.

Weights are kept by our own names; `farreach_workloads.retrieval.hub` reads and writes the layout of
Hugging Face.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.config import Config
from farreach.data.fetched import absolute
from farreach.errors import ConfigError
from farreach_workloads.retrieval.packed import (
    Block,
    exact,
    first_tokens,
    layout_of,
    pooled,
    spare_rows,
)

Pooling = Literal["average", "cls"]


def whole_path(path: str | None) -> str | None:
    """A path from the root on, since workers begin in other folders; `latest` is none."""
    return path if path in (None, "latest") else absolute(path or "")


class EncoderConfig(Config):
    """What turns a text into a vector; the defaults are BERT-base, as Contriever has it."""

    kind: Literal["bert", "bag"] = "bert"
    """A transformer; the mean of the vectors of a text's word pieces."""
    path: str | None = None
    """Folder in the layout of Hugging Face to begin with: its sizes and weights count, and its
    vocabulary if `data.words` names none. None: random weights."""
    embeddings: str | None = None
    """Exported encoder whose vectors of word pieces to begin with, of its vocabulary and width."""
    width: int = Field(768, ge=1)
    depth: int = Field(12, ge=1)
    heads: int = Field(12, ge=1)
    hidden: int = Field(3072, ge=1)
    positions: int = Field(512, ge=3)
    """Tokens of the longest text."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of tokens, and of attention."""
    pooling: Pooling = "average"
    """All tokens, [CLS] and [SEP] among them; the first alone."""
    normalised: bool = False
    """Divide vectors by their lengths."""

    _whole = field_validator("path", "embeddings")(whole_path)


class TextEncoder(nn.Module, ABC):
    """A vector per text.

    Attributes:
        width: of a vector.
        longest: tokens of the longest text that it was trained for, specials included.
        pooling: how tokens become one vector.
        normalised: whether vectors have length 1.
    """

    width: int
    longest: int
    pooling: Pooling
    normalised: bool

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Vectors of texts.

        Args:
            ids: of tokens, [CLS] and [SEP] included, on the right padded, (n, l) int64.
            lengths: how many count, each at least 1, (n,).

        Returns:
            (n, width) float32.
        """
        vectors = self.vectors(ids, lengths)
        return F.normalize(vectors, dim=-1) if self.normalised else vectors

    @abstractmethod
    def vectors(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """As `forward`, of any length."""

    @property
    @abstractmethod
    def words(self) -> nn.Embedding:
        """Vectors of the word pieces."""


class Bert(TextEncoder):
    """BERT without its pooler (Devlin et al., 2018; Contriever, arXiv:2112.09118 §3)."""

    def __init__(
        self,
        vocabulary: int,
        config: EncoderConfig,
        *,
        types: int = 2,
        first_position: int = 0,
        epsilon: float = 1e-12,
    ) -> None:
        """Random weights, as BERT's are: a normal distribution of 0.02.

        Args:
            vocabulary: how many word pieces there are.
            config: its sizes.
            types: kinds of segments, of which the first alone is used.
            first_position: number of the first position (2 in RoBERTa and what follows it).
            epsilon: of the norms.

        Raises:
            ConfigError: the width is no multiple of the heads.
        """
        super().__init__()
        if config.width % config.heads:
            raise ConfigError(
                f"encoder.width: {config.width} is no multiple of encoder.heads, {config.heads}."
            )
        self.width, self.longest = config.width, config.positions - first_position
        self.pooling, self.normalised = config.pooling, config.normalised
        self.first_position, self.dropout = first_position, config.dropout
        self.word = nn.Embedding(vocabulary, config.width)
        self.position = nn.Embedding(config.positions, config.width)
        self.segment = nn.Embedding(types, config.width)
        self.norm = nn.LayerNorm(config.width, eps=epsilon)
        dropout = (config.dropout, config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.hidden, dropout, epsilon)
            for _ in range(config.depth)
        )
        self.apply(_as_bert)

    @property
    def words(self) -> nn.Embedding:
        """Vectors of the word pieces."""
        return self.word

    @property
    def positions(self) -> int:
        """Tokens of the longest text that it has positions for."""
        return self.position.num_embeddings - self.first_position

    def train_up_to(self, longest: int) -> None:
        """Have longer texts cut there, since none of them trains it.

        Vectors of later positions stay as they were drawn, where nobody has trained them before.
        """
        self.longest = min(longest, self.positions)

    def tokens(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        """The last layer's tokens, one text below the other, and where they are."""
        layout = layout_of(lengths, ids.shape[1])
        packed = ids.reshape(-1)[layout.places]
        x = F.embedding(packed, self.word.weight) + self.segment.weight[0]
        x = x + F.embedding(layout.positions + self.first_position, self.position.weight)
        x = self.norm(x)
        if self.training and self.dropout > 0:
            x = F.dropout(x, self.dropout)
        tokens = len(x)
        x = F.pad(x, (0, 0, 0, spare_rows(x)))
        for block in self.blocks:
            x = block(x, layout)
        return x[:tokens], layout

    def vectors(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(n, l) → (n, width); see `TextEncoder`."""
        x, layout = self.tokens(ids, lengths)
        return pooled(x, layout) if self.pooling == "average" else first_tokens(x, layout)


class Bag(TextEncoder):
    """The mean of the vectors of a text's word pieces; [CLS] and [SEP] do not count.

    A piece that comes n times counts 1 + log n, as in lexical search (Salton and Buckley, 1988).
    """

    def __init__(self, vocabulary: int, config: EncoderConfig) -> None:
        """Random vectors, of length about 1."""
        super().__init__()
        self.width, self.longest = config.width, config.positions
        self.pooling, self.normalised = "average", config.normalised
        self.word = nn.Embedding(vocabulary, config.width)
        nn.init.normal_(self.word.weight, std=config.width**-0.5)

    @property
    def words(self) -> nn.Embedding:
        """Vectors of the word pieces."""
        return self.word

    def vectors(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(n, l) → (n, width); a text without a word is the zero vector."""
        counted = (lengths - 2).clamp(min=0)
        columns = torch.arange(ids.shape[1], device=ids.device)
        texts = torch.arange(len(ids), device=ids.device)
        size = len(self.word.weight)
        pieces = (texts[:, None] * size + ids)[(columns >= 1) & (columns <= counted[:, None])]
        distinct, times = pieces.unique(return_counts=True)  # text by text
        owners = distinct // size
        weights = 1.0 + times.to(self.word.weight.dtype).log()
        sums = F.embedding_bag(
            distinct % size,
            self.word.weight,
            torch.searchsorted(owners, texts),
            mode="sum",
            per_sample_weights=weights,
        )
        totals = weights.new_zeros(len(ids)).index_add(0, owners, weights)
        return exact(sums / totals.clamp(min=1.0)[:, None])

    @torch.no_grad()
    def weigh(self, rarity: Tensor) -> None:
        """Make the vectors of some pieces longer than others', by factors (pieces,)."""
        self.word.weight.mul_(rarity[:, None].to(self.word.weight))


def _as_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
