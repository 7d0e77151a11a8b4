"""XCiT against timm's, with the same weights: whole models, and the two kinds of attention alone.

`python benchmarks/xcit.py` prints one JSON line per row; `gap` is the largest difference of the
logits in units of the largest logit.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import math

import backbones
import measure
import timm
import torch
from timm.layers import Attention
from timm.models.cait import ClassAttn
from timm.models.xcit import XCA
from torch import Tensor, nn

from farreach.linear import use_fast_linear
from farreach_workloads.vision.backbones.class_attention import attend
from farreach_workloads.vision.backbones.xcit import Xca

ROUNDS = 5
WIDTH, HEADS, TOKENS = 192, 4, 2304
# Calls of class attention in a row.
CALLS = 10


def pair(size: str) -> tuple[nn.Module, nn.Module]:
    """Ours and timm's, with the same weights."""
    peer = backbones.scatter(timm.create_model(f"xcit_{size}_224"))
    ours = timm.create_model(f"xcit_{size}")
    ours.load_state_dict(peer.state_dict())
    return ours, peer


def xca_layer() -> None:
    """The attention between channels of a tiny model at 384 pixels, forward and train step."""
    peer = XCA(WIDTH, HEADS, qkv_bias=True)
    ours = Xca(WIDTH, HEADS, qkv_bias=True)
    ours.load_state_dict(peer.state_dict())
    use_fast_linear(ours)
    x = torch.randn(2, TOKENS, WIDTH)

    @torch.inference_mode()
    def forward(layer: nn.Module) -> Tensor:
        return layer(x)

    def train(layer: nn.Module) -> None:
        inputs = x.clone().requires_grad_()
        layer(inputs).square().mean().backward()

    times = measure.medians(
        [lambda: forward(ours), lambda: forward(peer), lambda: train(ours), lambda: train(peer)],
        ROUNDS,
    )
    rates = [len(x) / seconds for seconds in times]
    measure.row(
        "xca_layer",
        rates[0],
        rates[1],
        backbones.UNIT,
        rates[0] / rates[1],
        train_ratio=round(rates[2] / rates[3], 3),
        tokens=TOKENS,
        gap=float((forward(ours) - forward(peer)).abs().max()),
    )


def xca_slope() -> None:
    """How a layer's time grows with the tokens, as a power, beside attention between tokens."""
    layers = Xca(WIDTH, HEADS, qkv_bias=True), Attention(WIDTH, HEADS, qkv_bias=True)

    def train(layer: nn.Module, tokens: int) -> measure.Work:
        x = torch.randn(2, tokens, WIDTH, requires_grad=True)
        return lambda: layer(x).square().mean().backward()

    few, many = 784, 3136
    for layer in layers:
        use_fast_linear(layer)
    works = [train(layer, tokens) for layer in layers for tokens in (few, many)]
    times = measure.medians(works, ROUNDS)
    slopes = [math.log(times[i + 1] / times[i]) / math.log(many / few) for i in (0, 2)]
    measure.row("xca_slope", *slopes, "power of the tokens", slopes[0] / slopes[1])


def class_attention() -> None:
    """One class token over 785 tokens, called as in the network: right after the tokens' norm.

    Beside it, what calls gain right after one of the peer's (`cold`), and some in a row (`warm`).
    """
    layer = ClassAttn(WIDTH, HEADS, qkv_bias=True).eval()
    own = copy.deepcopy(layer)
    use_fast_linear(own)
    norm = nn.LayerNorm(WIDTH)
    x = torch.randn(8, 785, WIDTH)

    @torch.inference_mode()
    def ours() -> Tensor:
        query = (own.q(x[:, 0]) * own.scale).unflatten(1, (HEADS, 1, -1))
        result = attend(query, x, own.k, own.v)
        return own.proj(result.flatten(1))[:, None]

    @torch.inference_mode()
    def peer() -> Tensor:
        return layer(x)

    @torch.inference_mode()
    def write_tokens() -> None:
        x.copy_(norm(x))

    def in_a_row(attention: measure.Work) -> measure.Work:
        return lambda: [attention() for _ in range(CALLS)]

    gap = float((ours() - peer()).abs().max())
    cold = measure.medians([ours, peer], ROUNDS)
    warm = measure.medians([in_a_row(ours), in_a_row(peer)], ROUNDS)
    _, ours_s, _, peer_s = measure.medians([write_tokens, ours, write_tokens, peer], ROUNDS)
    measure.row(
        "class_attention",
        len(x) / ours_s,
        len(x) / peer_s,
        backbones.UNIT,
        peer_s / ours_s,
        cold=round(cold[1] / cold[0], 2),
        warm=round(warm[1] / warm[0], 2),
        gap=gap,
    )


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    for size, batch in (("nano_12_p8", 4), ("tiny_12_p8", 4), ("small_12_p16", 8)):
        ours, peer = pair(size)
        for kind in ("infer", "train"):
            backbones.compare(f"xcit_{size}_{kind}", kind, ours, peer, batch)
    xca_layer()
    xca_slope()
    class_attention()
    for size, batch in (("tiny_12_p8", 4), ("small_12_p16", 8)):
        model = timm.create_model(f"xcit_{size}")
        backbones.compare_precision(f"xcit_{size}_bf16", model, batch)


if __name__ == "__main__":
    main()
