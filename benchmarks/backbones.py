"""What the benchmarks of the backbones share: an inference and a train step, peers beside us."""

from __future__ import annotations

import copy

import measure
import torch
from torch import Tensor, nn

UNIT = "images per CPU-second"
SIDE = 224


def images(batch: int, side: int = SIDE) -> Tensor:
    """(batch, 3, side, side), the same for everybody."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def scatter(model: nn.Module) -> nn.Module:
    """Move all parameters and statistics off their start, where scales hide differences."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def inference(model: nn.Module, x: Tensor) -> measure.Work:
    """Logits of `x`."""
    model = copy.deepcopy(model).eval()

    @torch.inference_mode()
    def work() -> Tensor:
        return model(x)

    return work


def train_step(model: nn.Module, x: Tensor, half: bool = False) -> measure.Work:
    """Loss, gradients and an update on `x`; `half`: products in bfloat16."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.arange(len(x)) % 10

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return work


def compare(name: str, kind: str, ours: nn.Module, peer: nn.Module, batch: int) -> None:
    """Print the row `name` for an inference or a train step (`kind`) of two equal models."""
    x = images(batch)
    make = inference if kind == "infer" else train_step
    works = [(make(model, x), batch) for model in (ours, peer)]
    rounds = 5 if kind == "infer" else 3
    measure.compare_rates(name, UNIT, *works, rounds, gap=round(gap(ours, peer, x[:2]), 9))


def compare_precision(name: str, model: nn.Module, batch: int) -> None:
    """Print the row `name` for train steps of one model in bfloat16 and in float32."""
    x = images(batch)
    works = [(train_step(model, x, half), batch) for half in (True, False)]
    measure.compare_rates(name, UNIT, *works, 3, peer_name="float32")


@torch.inference_mode()
def gap(ours: nn.Module, peer: nn.Module, x: Tensor) -> float:
    """Largest difference of the logits, in units of the largest logit."""
    a, b = (copy.deepcopy(model).eval()(x) for model in (ours, peer))
    return float((a - b).abs().max() / b.abs().max())
