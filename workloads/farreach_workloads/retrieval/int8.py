"""Text encoders on CPUs with weights and activations of 8 bits, for inference.

In each layer the products before the GELU are of bytes. Activations are quantised with one step and
one zero for each column, which the norm before them and the weights take over (SmoothQuant, Xiao et
al., arXiv:2211.10438 §4); weights with one step for each output. After the GELU single columns are
far larger than all others, which 8 bits cannot hold: the product there, and attention, are in
bfloat16 if the CPU multiplies that, else in float32. Steps are found once, on texts of random
tokens, so that a text's vector does not depend on what is encoded with it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach import cpu
from farreach.errors import ConfigError
from farreach.linear import activated_linear, linear
from farreach_workloads.retrieval.encoder import Bert, TextEncoder
from farreach_workloads.retrieval.packed import (
    Block,
    Group,
    Layout,
    first_tokens,
    layout_of,
    pooled,
)

# Random texts by which steps are found. They begin and end with the first so many ids, among which
# vocabularies have [CLS] and [SEP].
TEXTS, TOGETHER, SHORTEST, LONGEST = 128, 8, 2, 256
# How much wider the range of bytes is than what was found, and how much of the unevenness of the
# columns weights take over: measured with MiniLM on package descriptions.
MARGIN, SMOOTHING = 1.1, 0.75
# Scores of attention that are computed at a time: they fit the cache.
SCORES = 1 << 18
# Between these a sum of exponentials is neither too large nor too small for its parts.
LEAST_SUM, MOST_SUM = 2.0**-60, 2.0**100
LOG2_E = 1.4426950408889634


# What is not multiplied as bytes.
KIND = torch.bfloat16 if cpu.has("avx512_bf16", "amx_bf16") else torch.float32
# Without these instructions sums of two products of 8 bits may overflow.
LEVELS = 255 if cpu.has("avx512_vnni", "avx_vnni") else 127


def quantised(encoder: TextEncoder) -> TextEncoder:
    """A copy with linear layers of 8 bits, in evaluation mode, for CPUs and without gradients.

    Args:
        encoder: a BERT on the CPU.

    Raises:
        ConfigError: it is another encoder, on another device, or PyTorch lacks what is needed.
    """
    if not isinstance(encoder, Bert):
        raise ConfigError(
            f"int8: this encoder, a {type(encoder).__name__.lower()}, has no linear layers to "
            "quantise. Leave int8 out."
        )
    if encoder.words.weight.device.type != "cpu":
        raise ConfigError(
            f"int8: is for CPUs, and the encoder is on {encoder.words.weight.device}. Move it to "
            "the CPU, or leave int8 out."
        )
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    ):
        raise ConfigError(
            "int8: this PyTorch was built without oneDNN. Install an ordinary one for x86, or "
            "leave int8 out."
        )
    with torch.no_grad():
        return QuantisedBert(copy.deepcopy(encoder).float().eval()).eval()


class QuantisedBert(TextEncoder):
    """What `quantised` makes of a `Bert`."""

    def __init__(self, source: Bert) -> None:
        """Takes over the embeddings and norms of the source."""
        super().__init__()
        self.width, self.longest = source.width, source.longest
        self.pooling, self.normalised = source.pooling, source.normalised
        self.word, self.norm = source.word, source.norm
        self._position = _positions(source)
        self._blocks = []
        norm = source.norm
        for block, seen in zip(_blocks(source), _ranges(source), strict=True):
            self._blocks.append(_QuantisedBlock(block, norm, seen))
            norm = block.norm2

    @property
    def words(self) -> nn.Embedding:
        """Vectors of the word pieces."""
        return self.word

    @torch.no_grad()
    def vectors(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(n, l) → (n, width); see `TextEncoder`."""
        layout = layout_of(lengths, ids.shape[1])
        x = _embedded(ids, layout, self.word.weight, self._position)
        norm = self.norm
        for block in self._blocks:
            x = block(x, norm, layout)
            norm = block.norm2
        x = norm(x)
        return pooled(x, layout) if self.pooling == "average" else first_tokens(x, layout)


class _QuantisedBlock:
    """A `Block`; what it takes and gives is before the norm, so that this can quantise it too."""

    def __init__(self, block: Block, before: nn.LayerNorm, seen: Tensor) -> None:
        """Of a layer, the norm before it, and its `_ranges`."""
        attention = block.attention
        width = attention.out.in_features
        self.heads = attention.heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        inputs, mixed, between = seen
        # Its columns differ too much from text to text to have ranges of their own.
        scales = _Scales.of(_widest(mixed), attention.out.weight)
        self.out = _Linear(attention.out.weight, attention.out.bias, scales)
        self.shift = (scales.zero + 0.5).view(self.heads, -1)
        weight, bias = _attending(attention.qkv, self.heads, scales.step)
        scales = _Scales.of(inputs, weight)
        self.qkv = _Linear(weight, bias, scales)
        self.inputs = _Bytes(before, scales)
        scales = _Scales.of(between, block.rise.weight)
        self.rise = _Linear(block.rise.weight, block.rise.bias, scales)
        self.between = _Bytes(block.norm1, scales)
        self.width = width
        self.fall, self.fall_bias = block.fall.weight.to(KIND), block.fall.bias.to(KIND)

    def __call__(self, x: Tensor, norm: nn.LayerNorm, layout: Layout) -> Tensor:
        """(tokens, width), to be put through `norm`, → the same, to be put through `norm2`."""
        qkv = self.qkv(self.inputs(x), KIND)
        after: Tensor = self.out(self._attended(qkv, layout), torch.float32).add_(norm(x))
        raised = self.rise(self.between(after), KIND, "gelu")
        return self.norm1(after).add_(linear(raised, self.fall, self.fall_bias))

    def _attended(self, qkv: Tensor, layout: Layout) -> Tensor:
        """Columns of `_attending` → (tokens, width) uint8."""
        mixed = self._mixed(qkv, layout, False)
        sums = mixed[..., -1]
        if not ((sums > LEAST_SUM) & (sums < MOST_SUM)).all():
            mixed = self._mixed(qkv, layout, True)
        seen = torch.addcdiv(self.shift, mixed[..., :-1], mixed[..., -1:])
        return _bytes(seen.reshape(-1, self.width))

    def _mixed(self, qkv: Tensor, layout: Layout, careful: bool) -> Tensor:
        """Sums of values, each by its exponential, and of these: (tokens, heads, of a head + 1)."""
        mixed = torch.empty(len(qkv), self.heads, self.width // self.heads + 1)
        for group in layout.groups:
            part, into = qkv[group.begin : group.end], mixed[group.begin : group.end]
            if group.slots is None:
                self._mix(part, group, careful, into)
                continue
            places = group.texts * group.longest
            padded = part.new_zeros(places, part.shape[1]).index_copy_(0, group.slots, part)
            whole = mixed.new_empty(places, *mixed.shape[1:])
            self._mix(padded, group, careful, whole)
            torch.index_select(whole, 0, group.slots, out=into)
        return mixed

    def _mix(self, qkv: Tensor, group: Group, careful: bool, into: Tensor) -> None:
        """Of a group, (texts · longest, …) → the same, `heads`, of a head + 1.

        Where there is no token the value is zero and so is the 1 beside it: it does not count.
        """
        length, heads = group.longest, self.heads
        parts = qkv.view(group.texts, length, -1).split(
            [self.width, self.width, heads * into.shape[2]], dim=2
        )
        into = into.view(group.texts, length, heads, -1)
        most = max(1, SCORES // (heads * length**2))
        for first in range(0, group.texts, most):
            texts = slice(first, first + most)
            q, k, v = (
                part[texts].unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
                for part in parts
            )
            scores = torch.bmm(q, k.transpose(1, 2))
            if careful:
                _lower(scores, group.empty, texts, heads)
            sums = torch.bmm(scores.exp2_(), v)
            into[texts] = sums.unflatten(0, (-1, heads)).transpose(1, 2)


def _lower(scores: Tensor, empty: Tensor | None, texts: slice, heads: int) -> None:
    """Make the largest score of each row 0."""
    if empty is not None:
        by_text = scores.unflatten(0, (-1, heads))
        by_text.masked_fill_(empty[texts, None, None], float("-inf"))
    scores -= scores.amax(-1, keepdim=True)


def _attending(qkv: nn.Linear, heads: int, step: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (2 width + width + heads, width) and biases of queries, keys and values.

    Scores are to be powers of two, so queries are multiplied with what makes them so. Values are
    divided by the steps that their mean will be quantised with, (width,), and followed, in each
    head, by a 1.
    """
    width = qkv.in_features
    scale = LOG2_E * (width // heads) ** -0.5
    factors = torch.cat([step.new_full((width,), scale), torch.ones_like(step), 1 / step])
    whole = torch.cat([qkv.weight, qkv.bias[:, None]], 1) * factors[:, None]
    values = whole[2 * width :].unflatten(0, (heads, -1))
    one = values.new_zeros(heads, 1, width + 1)
    one[..., -1] = 1
    whole = torch.cat([whole[: 2 * width], torch.cat([values, one], 1).flatten(0, 1)])
    return whole[:, :-1], whole[:, -1]


@dataclass(frozen=True)
class _Scales:
    """How numbers become bytes, column by column: number / step + zero, rounded.

    Attributes:
        step: (columns,).
        zero: (columns,), no whole numbers.
    """

    step: Tensor
    zero: Tensor

    @classmethod
    def of(cls, seen: Tensor, weight: Tensor) -> _Scales:
        """For columns in ranges, (2, columns), that a weight multiplies, (after, columns)."""
        middle, half = seen.mean(0), (seen[1] - seen[0]).clamp(min=1e-6) / 2
        weights = weight.abs().amax(0).clamp(min=1e-6)
        share = half**SMOOTHING / weights ** (1 - SMOOTHING)
        step = share * (half / share).max() * MARGIN * 2 / LEVELS
        return cls(step, LEVELS / 2 - middle / step)


class _Bytes:
    """A norm whose result is quantised."""

    def __init__(self, norm: nn.LayerNorm, scales: _Scales) -> None:
        self.shape, self.epsilon = norm.normalized_shape, norm.eps
        self.weight = norm.weight / scales.step
        self.bias = norm.bias / scales.step + scales.zero + 0.5

    def __call__(self, x: Tensor) -> Tensor:
        """(n, columns) float32 → the same, uint8."""
        return _bytes(F.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon))


def _bytes(x: Tensor) -> Tensor:
    """Whole parts, in place of which what is out of range comes to its end."""
    return x.clamp_(0, LEVELS + 0.5).to(torch.uint8)


class _Linear:
    """A linear layer of bytes."""

    def __init__(self, weight: Tensor, bias: Tensor, scales: _Scales) -> None:
        """For inputs quantised by `scales`; `weight` is (after, before)."""
        weight = weight * scales.step
        self.step = weight.abs().amax(1).clamp(min=1e-12) / 127
        whole = (weight / self.step[:, None]).round().to(torch.int8)
        self.bias = bias - (whole * self.step[:, None]) @ scales.zero
        self.zero = torch.zeros(len(bias), dtype=torch.int64)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)

    def __call__(self, x: Tensor, kind: torch.dtype, activation: str = "none") -> Tensor:
        """(n, before) uint8 → (n, after) of a kind."""
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(x, 1.0, 0), *(self.weight, self.step, self.zero), self.bias, *(1.0, 0, kind),
            *(activation, [], "none"),
        )  # fmt: skip
        return result


def _ranges(encoder: Bert) -> Tensor:
    """What random texts show in each layer: (layers, 3, 2, width).

    The three are the inputs of attention, what it gives and the inputs of the layer of the GELU;
    the two are the least and the most of each column, or zero.
    """
    ids, lengths = _texts(len(encoder.words.weight), encoder.longest)
    some = zip(ids.split(TOGETHER), lengths.split(TOGETHER), strict=True)
    parts = torch.stack([_ranges_in(encoder, *texts) for texts in some])
    return torch.stack([parts[..., 0, :].amin(0), parts[..., 1, :].amax(0)], -2)


def _ranges_in(encoder: Bert, ids: Tensor, lengths: Tensor) -> Tensor:
    """`_ranges` of some texts."""
    layout = layout_of(lengths, ids.shape[1])
    x = encoder.norm(_embedded(ids, layout, encoder.word.weight, _positions(encoder)))
    found = []
    for block in _blocks(encoder):
        inputs, out = x, block.attention.out
        mixed = block.attention.mixed(x, layout)
        x = block.norm1(x + linear(mixed, out.weight, out.bias))
        found.append(torch.stack([_range(inputs), _range(mixed), _range(x)]))
        raised = activated_linear(x, block.rise.weight, block.rise.bias, "gelu")
        x = block.norm2(x + linear(raised, block.fall.weight, block.fall.bias))
    return torch.stack(found)


def _range(x: Tensor) -> Tensor:
    """Least and most of each column, or zero: (n, columns) → (2, columns)."""
    return torch.stack([x.amin(0).clamp(max=0), x.amax(0).clamp(min=0)])


def _widest(seen: Tensor) -> Tensor:
    """The range of all columns together for each, (2, columns)."""
    return torch.stack([seen[0].min(), seen[1].max()])[:, None].expand_as(seen)


def _blocks(encoder: Bert) -> list[Block]:
    return [block for block in encoder.blocks if isinstance(block, Block)]


def _positions(encoder: Bert) -> Tensor:
    """What is added to the vector of a word piece at each place of a text, (longest, width)."""
    return encoder.position.weight[encoder.first_position :] + encoder.segment.weight[0]


def _embedded(ids: Tensor, layout: Layout, words: Tensor, positions: Tensor) -> Tensor:
    """The tokens before the first norm, (tokens, width)."""
    found = F.embedding(ids.reshape(-1)[layout.places], words)
    return found.add_(F.embedding(layout.positions, positions))


def _texts(vocabulary: int, longest: int) -> tuple[Tensor, Tensor]:
    """Random texts, (n, l) int64, and their lengths, (n,)."""
    lengths = torch.linspace(SHORTEST, LONGEST, TEXTS).long().clamp(max=longest)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (TEXTS, int(lengths.max())), generator=generator)
    numbers = torch.arange(TEXTS)
    ids[:, 0] = numbers % vocabulary
    ids[numbers, lengths - 1] = (numbers + 1) % vocabulary
    return ids, lengths
