"""A transformer over texts of unequal length without padding: linear layers see real tokens alone.

The tokens of all texts follow one another. Only attention is padded, within groups of texts that
are about as long as one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.linear import gelu_linear, linear

# A group ends where a text is shorter than this share of the group's longest, if the group is large
# enough to be worth a product of its own. That is soon on a CPU where there are no gradients.
LEAST_FILLED, LEAST_TOKENS = 0.85, 256
LEAST_FILLED_CPU, LEAST_TOKENS_CPU = 1.0, 64
# On a CPU numbers of tokens from this one on are rounded up to multiples: see `spare_rows`.
LEAST_ROUNDED, ROUNDED = 2048, 128


@dataclass(frozen=True)
class Group:
    """Texts that attend together.

    Attributes:
        texts: how many.
        longest: tokens of the longest.
        begin: where their tokens begin among all.
        end: where they end.
        slots: place of each token in (texts, longest), counted through, (tokens,); None if all
            places are taken.
        empty: of each place, whether it has no token, (texts, longest) bool; None as above.
    """

    texts: int
    longest: int
    begin: int
    end: int
    slots: Tensor | None
    empty: Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where the tokens of texts are, longest text first.

    Attributes:
        order: the texts from the longest to the shortest, (n,).
        lengths: their tokens in that order, (n,).
        places: where each token is in the padded (n, longest), counted through, (tokens,).
        positions: of each token within its text, (tokens,).
        texts: of each token, in that order, (tokens,).
        groups: of texts that attend together.
    """

    order: Tensor
    lengths: Tensor
    places: Tensor
    positions: Tensor
    texts: Tensor
    groups: tuple[Group, ...]


def layout_of(lengths: Tensor, width: int) -> Layout:
    """Of texts with some numbers of tokens.

    Args:
        lengths: each at least 1, (n,).
        width: of the padded rows.
    """
    device = lengths.device
    counts = lengths.detach().cpu().numpy().astype(np.int64)
    order = np.argsort(-counts, kind="stable")
    ordered = counts[order]
    begins = np.concatenate([[0], np.cumsum(ordered)])
    texts = np.repeat(np.arange(len(ordered)), ordered)
    positions = np.arange(begins[-1]) - begins[texts]
    groups = []
    filled, tokens = LEAST_FILLED, LEAST_TOKENS
    if device.type == "cpu" and not torch.is_grad_enabled():
        filled, tokens = LEAST_FILLED_CPU, LEAST_TOKENS_CPU
    for first, last in _cuts(ordered, filled, tokens):
        longest = int(ordered[first])
        begin, end = int(begins[first]), int(begins[last])
        slots = empty = None
        if end - begin < (last - first) * longest:
            inside = (texts[begin:end] - first) * longest + positions[begin:end]
            taken = np.arange(longest) >= ordered[first:last, None]
            slots = torch.from_numpy(inside).to(device)
            empty = torch.from_numpy(taken).to(device)
        groups.append(Group(last - first, longest, begin, end, slots, empty))
    arrays = (order, ordered, order[texts] * width + positions, positions, texts)
    order_, lengths_, places, positions_, texts_ = (
        torch.from_numpy(array).to(device) for array in arrays
    )
    return Layout(order_, lengths_, places, positions_, texts_, tuple(groups))


def even_cuts(lengths: Tensor, chunk: int) -> list[int]:
    """How many texts each chunk has, so that all have about as many tokens.

    So memory is not that of the longest texts, and what one chunk gives back fits the next. How
    many chunks there are depends on the number of texts alone: with split parameters, all workers
    call the encoder equally often.

    Args:
        lengths: of the texts, in their order, (n,).
        chunk: texts of a chunk, on average.

    Returns:
        ⌈n / chunk⌉ numbers, at least 1 each, n in all.
    """
    texts = len(lengths)
    count = -(-texts // chunk)
    tokens = np.cumsum(lengths.cpu().numpy())
    wanted = np.searchsorted(tokens, tokens[-1] * np.arange(1, count) / count) + 1
    parts = np.arange(1, count)
    ends = np.maximum.accumulate(wanted - parts) + parts  # a text more than the one before
    ends = np.minimum(ends, texts - count + parts)
    sizes: list[int] = np.diff([0, *ends, texts]).tolist()
    return sizes


def attention_filled(lengths: Tensor) -> float:
    """Share of the places in which texts of these lengths (n,) attend that hold a token.

    All else is computed for tokens alone.
    """
    ordered = -np.sort(-lengths.detach().cpu().numpy().astype(np.int64))
    filled, tokens = LEAST_FILLED, LEAST_TOKENS
    if lengths.device.type == "cpu" and not torch.is_grad_enabled():
        filled, tokens = LEAST_FILLED_CPU, LEAST_TOKENS_CPU
    places = sum((last - first) * ordered[first] for first, last in _cuts(ordered, filled, tokens))
    return float(ordered.sum() / places)


def _cuts(
    ordered: np.ndarray[Any, Any], least_filled: float, least_tokens: int
) -> list[tuple[int, int]]:
    """First and last (exclusive) text of each group."""
    cuts, first, tokens = [], 0, 0
    for text, length in enumerate(ordered.tolist()):
        if length < least_filled * ordered[first] and tokens >= least_tokens:
            cuts.append((first, text))
            first, tokens = text, 0
        tokens += length
    return [*cuts, (first, len(ordered))]


def spare_rows(x: Tensor) -> int:
    """Rows that are put below packed tokens (tokens, width) on a CPU, which nothing looks at.

    There each shape of a product has code of its own, which takes time to make and stays: of all
    numbers of tokens only the multiples of some number come to a layer.
    """
    few = len(x) < LEAST_ROUNDED
    return 0 if few or x.device.type != "cpu" else -len(x) % ROUNDED


class Attention(nn.Module):
    """Every token looks at those of its own text."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Raises ValueError if the width cannot be divided by the heads."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(tokens, width) → the same."""
        return linear(self.mixed(x, layout), self.out.weight, self.out.bias)

    def mixed(self, x: Tensor, layout: Layout) -> Tensor:
        """Values of each head as each token weights them, (tokens, width) → the same."""
        qkv = linear(x, self.qkv.weight, self.qkv.bias)
        mixed = [self._of_group(qkv[group.begin : group.end], group) for group in layout.groups]
        spare = len(x) - layout.groups[-1].end
        return torch.cat([*mixed, x.new_zeros(spare, x.shape[1])] if spare else mixed)

    def _of_group(self, qkv: Tensor, group: Group) -> Tensor:
        """(tokens of the group, 3 width) → (tokens of the group, width)."""
        width = qkv.shape[1] // 3
        shape = (group.texts, group.longest)
        if group.slots is not None:
            padded = qkv.new_zeros(group.texts * group.longest, qkv.shape[1])
            qkv = padded.index_copy(0, group.slots, qkv)
        # (3, texts, heads, longest, width of a head)
        q, k, v = qkv.view(*shape, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        seen = self._attended(q, k, v, group.empty)
        flat = seen.transpose(1, 2).reshape(-1, width)
        return flat if group.slots is None else flat[group.slots]

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, empty: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        mask = None
        if empty is not None:
            mask = torch.zeros(empty.shape, dtype=q.dtype, device=q.device)
            mask = mask.masked_fill_(empty, float("-inf"))[:, None, None]
        on_cpu = q.device.type == "cpu"
        if not on_cpu or (q.dtype != torch.bfloat16 and dropout == 0.0):
            return F.scaled_dot_product_attention(q, k, v, mask, dropout)
        # PyTorch's backward pass is far slower here.
        scores = exact((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
        weights = (scores if mask is None else scores + exact(mask)).softmax(-1).to(q.dtype)
        return F.dropout(weights, dropout) @ v


class Block(nn.Module):
    """A layer of BERT (Devlin et al., 2018): norms come after what they normalise."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: tuple[float, float], epsilon: float
    ) -> None:
        """`dropout` of what is added to the tokens, and of attention."""
        super().__init__()
        self.attention = Attention(width, heads, dropout[1])
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.rise = nn.Linear(width, hidden)
        self.fall = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.dropout = dropout[0]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(tokens, width) → the same."""
        x = self.norm1(x + self._dropped(self.attention(x, layout)))
        raised = linear(x, self.rise.weight, self.rise.bias)
        fallen = gelu_linear(raised, self.fall.weight, self.fall.bias)
        normal: Tensor = self.norm2(x + self._dropped(fallen))
        return normal

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x


def exact(x: Tensor) -> Tensor:
    """In float32, or in what is more exact."""
    return x if x.dtype == torch.float64 else x.float()


def pooled(x: Tensor, layout: Layout) -> Tensor:
    """Mean of the tokens of each text, (tokens, width) → (n, width) float32, texts as given."""
    x = exact(x)
    sums = x.new_zeros(len(layout.lengths), x.shape[1]).index_add(0, layout.texts, x)
    means = sums / layout.lengths[:, None]
    return torch.empty_like(means).index_copy(0, layout.order, means)


def first_tokens(x: Tensor, layout: Layout) -> Tensor:
    """The first token of each text, (tokens, width) → (n, width) float32, texts as given."""
    begins = layout.lengths.cumsum(0) - layout.lengths
    first = exact(x[begins])
    return torch.empty_like(first).index_copy(0, layout.order, first)
