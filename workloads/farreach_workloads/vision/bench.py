"""How fast backbones are here: inference and train steps, beside timm's model of the same name."""

from __future__ import annotations

import fnmatch
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from farreach.config import Config
from farreach.errors import ConfigError
from farreach.figures import new_figure, save
from farreach.registry import near_match
from farreach_workloads.vision.backbones import FAMILIES
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.models import make_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "ours"
CLASSES = 1000

# Top-1 on ImageNet-1k at 224 pixels, without distillation or more data: XCiT's repository; ResMLP,
# arXiv:2105.03404, tables 1 and 3; PatchConvNet's repository.
PUBLISHED_TOP1 = {
    "xcit_nano_12_p16": 69.9,
    "xcit_tiny_12_p16": 77.1,
    "xcit_tiny_24_p16": 79.4,
    "xcit_small_12_p16": 82.0,
    "xcit_small_24_p16": 82.6,
    "xcit_medium_24_p16": 82.7,
    "xcit_large_24_p16": 82.9,
    "xcit_nano_12_p8": 73.8,
    "xcit_tiny_12_p8": 79.7,
    "xcit_tiny_24_p8": 81.9,
    "xcit_small_12_p8": 83.4,
    "xcit_small_24_p8": 83.9,
    "xcit_medium_24_p8": 83.7,
    "xcit_large_24_p8": 84.4,
    "resmlp_s12": 76.6,
    "resmlp_s24": 79.4,
    "resmlp_s36": 79.7,
    "resmlp_b24": 81.0,
    "resmlp_b24_p8": 81.0,
    "patchconvnet_s60": 82.1,
    "patchconvnet_s120": 83.2,
    "patchconvnet_b60": 83.5,
    "patchconvnet_b120": 84.1,
    "patchconvnet_s60_multi": 81.1,
}


class BenchConfig(Config):
    """What is timed, and how."""

    backbone: str = "xcit_nano_12_p8"
    """A name, a pattern such as xcit_*_p16, or `ours` for all of ours."""
    size: int = Field(224, ge=8)
    batch: int = Field(8, ge=2)
    rounds: int = Field(3, ge=1)
    """Timed steps of each kind, of which the median counts; one more is to warm up."""
    train: bool = True
    """Time train steps too."""
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False
    """Ours by torch.compile; the peer stays as it is."""
    gpu: bool = False
    threads: int = Field(1, ge=1)
    """Torch threads, on a CPU."""


@dataclass(frozen=True)
class Timing:
    """One line of a benchmark.

    Attributes:
        name: of the backbone.
        kind: `infer` or `train`.
        ours: images per second, of CPU time unless a GPU computes.
        peer: of timm's; None where it has no such model.
        million_parameters: of the model.
        gmacs: multiplications with additions of an image, in 10⁹, as ours computes them.
        megabytes: what a train step keeps of an image for its backward pass; 0 for inference.
    """

    name: str
    kind: str
    ours: float
    peer: float | None
    million_parameters: float
    gmacs: float
    megabytes: float

    def as_row(self, unit: str) -> dict[str, Any]:
        """In the form of the scripts in `benchmarks/`."""
        ratio = None if self.peer is None else round(self.ours / self.peer, 4)
        return {
            "name": f"{self.name}_{self.kind}",
            "ours": round(self.ours, 3),
            "peer": None if self.peer is None else round(self.peer, 3),
            "ratio": ratio,
            "unit": unit,
            "million_parameters": round(self.million_parameters, 3),
            "gmacs": round(self.gmacs, 3),
            "megabytes_per_image": round(self.megabytes, 2),
        }


def names(pattern: str) -> list[str]:
    """The backbones that are meant; raises ConfigError if there are none."""
    own = [name for family in FAMILIES for name in family.default_cfgs]
    if pattern == OURS:
        return own
    every = timm.list_models()
    found = fnmatch.filter(own, pattern) or fnmatch.filter(every, pattern)
    if not found:
        raise ConfigError(
            f"backbone: timm knows no {pattern!r}. {near_match(pattern, every)[:300]}"
        )
    return found


def unit(config: BenchConfig) -> str:
    """Of the rates."""
    return "images per second" if config.gpu else "images per CPU-second"


def timings(config: BenchConfig) -> Iterator[Timing]:
    """One after the other; raises ConfigError if a model does not take the size, or has no GPU."""
    if config.gpu and not torch.cuda.is_available():
        raise ConfigError("gpu: PyTorch sees no GPU here. Leave it out.")
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if config.gpu else "cpu")
    for name in names(config.backbone):
        model = make_model(BackboneConfig(name=name), config.size, CLASSES)
        peer_name = peer_of(name)
        peer = None
        if peer_name is not None:
            peer = _plain(peer_name, config.size)
            peer.load_state_dict(model.state_dict())
        facts = {
            "million_parameters": sum(p.numel() for p in model.parameters()) / 1e6,
            "gmacs": gmacs(name, config.size),
        }
        works = [m.to(device) for m in (model, peer) if m is not None]
        if config.compiled:
            works[0].compile()
        for kind in ("infer", "train") if config.train else ("infer",):
            steps = [_step(m, kind, config, device) for m in works]
            rates = [config.batch / seconds for seconds in _medians(steps, config)]
            saved = _saved_megabytes(model, config, device) if kind == "train" else 0.0
            second = rates[1] if len(rates) > 1 else None
            yield Timing(name, kind, rates[0], second, megabytes=saved, **facts)


def peer_of(name: str) -> str | None:
    """The name of timm's model of the same weights; None if there is none."""
    if not any(name in family.default_cfgs for family in FAMILIES):
        return name  # as timm makes it; here its linear layers are faster
    if name.startswith("xcit_"):
        peer = f"{name}_224"
    elif name.startswith("resmlp_"):
        size, _, patch = name.removeprefix("resmlp_").partition("_p")
        letters = {"s12": "12", "s24": "24", "s36": "36", "b24": "big_24"}
        # timm's big one has patches of 8 pixels, and no other.
        is_there = size != "b24" or patch == "8"
        peer = f"resmlp_{letters.get(size, size)}_224" if is_there else ""
    else:
        peer = ""
    return peer if peer in timm.list_models() else None


def gmacs(name: str, size: int) -> float:
    """Multiply-accumulates of an image, in 10⁹, counted on the shapes alone."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = _plain(name, size).eval()
        model(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops() / 2e9)


def speed_accuracy(rows: Sequence[Timing], config: BenchConfig) -> Figure:
    """Published accuracy over inference speed here, a line per family; the area shows parameters.

    Raises:
        ConfigError: none of them has a published accuracy that is known.
    """
    shown = [row for row in rows if row.kind == "infer" and row.name in PUBLISHED_TOP1]
    if not shown:
        raise ConfigError(
            "--out: no accuracy is known of these. Measure ours: `farreach bench backbone=ours`."
        )
    figure = new_figure(8.5, 5.5)
    axes = figure.subplots()
    families: dict[str, list[Timing]] = {}
    for row in shown:
        first, patch = row.name.partition("_")[0], row.name.rpartition("_")[2]
        family = f"{first} {patch}" if first == "xcit" else first
        families.setdefault(family, []).append(row)
    for family, members in families.items():
        ordered = sorted(members, key=lambda row: row.ours)
        x = [row.ours for row in ordered]
        y = [PUBLISHED_TOP1[row.name] for row in ordered]
        (line,) = axes.plot(x, y, alpha=0.5, linewidth=1)
        area = [4 + 2.5 * row.million_parameters for row in ordered]
        axes.scatter(x, y, s=area, color=line.get_color(), alpha=0.6, label=family)
        for row, rate, accuracy in zip(ordered, x, y, strict=True):
            short, place = row.name.partition("_")[2], (rate, accuracy)
            axes.annotate(short, place, fontsize=6, xytext=(4, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel(f"{unit(config)}, {config.size} pixels, {config.precision}")
    axes.set_ylabel("ImageNet-1k top-1, % (published)")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", markerscale=0.5)
    return figure


def draw(rows: Sequence[Timing], config: BenchConfig, file: Path) -> Path:
    """`speed_accuracy`, as a file."""
    return save(speed_accuracy(rows, config), file)


def _plain(name: str, size: int) -> nn.Module:
    """As timm makes it."""
    cfg = timm.get_pretrained_cfg(name)
    fixed = {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}
    model: nn.Module = timm.create_model(name, **fixed)
    return model


def _step(
    model: nn.Module, kind: str, config: BenchConfig, device: torch.device
) -> Callable[[], None]:
    x = _images(config, device)
    labels = torch.arange(config.batch, device=device) % CLASSES
    half = config.precision == "bfloat16"
    if kind == "infer":

        def infer() -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, half):
                model.eval()(x)

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, half):
            logits = model.train()(x)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return train


def _images(config: BenchConfig, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(config.batch, 3, config.size, config.size, generator=generator).to(device)


def _medians(steps: Sequence[Callable[[], None]], config: BenchConfig) -> list[float]:
    """Seconds of each; they take turns, so that a slow spell of the machine meets all of them."""
    taken: list[list[float]] = [[] for _ in steps]
    clock = time.perf_counter if config.gpu else time.process_time
    for number in range(config.rounds + 1):
        for step, seconds in zip(steps, taken, strict=True):
            begun = clock()
            step()
            if config.gpu:
                torch.cuda.synchronize()
            if number:
                seconds.append(clock() - begun)
    return [statistics.median(seconds) for seconds in taken]


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x)
    total = sum(kept.values())
    del output  # memory that is kept is not used again before it was counted
    return total


def _saved_megabytes(model: nn.Module, config: BenchConfig, device: torch.device) -> float:
    """What autograd keeps of an image in training, parameters apart."""
    with torch.autocast(device.type, torch.bfloat16, config.precision == "bfloat16"):
        return saved_bytes(model.train(), _images(config, device)) / 1e6 / config.batch
