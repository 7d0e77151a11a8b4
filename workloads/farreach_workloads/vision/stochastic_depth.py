"""Stochastic depth that skips what it drops, for many architectures.

Stochastic depth (arXiv:1603.09382) leaves out residual branches at random, sample by sample. The
usual way computes all of them and multiplies by 0 or 1 / (1 - p). Here a branch sees only the rows
of the batch that keep it, as cosub (arXiv:2212.04884) needs: it costs 1 - p of what it did, in time
and in memory.

```
depth = install(model, rate=0.3)
loss = criterion(model(images), labels)     # draws anew at every forward pass in training
```

Per branch k rows of b are kept, drawn without replacement, and their results count b / k times, so
that the mean is right for every k; k is b (1 - p), rounded up or down at random so that it is right
on average. Batch statistics inside a branch are those of its k rows. Evaluation is untouched.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import DropPath
from timm.models import convnext, mlp_mixer, regnet, swin_transformer, vision_transformer, xcit
from torch import Tensor, nn

from farreach import seeding
from farreach_workloads.vision.backbones import patchconvnet, resmlp
from farreach_workloads.vision.backbones.xcit import XcaBlock
from farreach_workloads.vision.lean import gated, joined, parted, rectified, rows_of, strided

Mode = Literal["subset", "mask"]
Schedule = Literal["constant", "ramp"]


@dataclass(frozen=True)
class Step:
    """x ← post(shortcut(x) + branch(x)); no shortcut or post: nothing is done there."""

    branch: Callable[[Tensor], Tensor]
    shortcut: Callable[[Tensor], Tensor] | None = None
    post: nn.Module | None = None


# block, its other arguments → its steps
Adapter = Callable[..., list[Step]]


def _vit(block: Any, attn_mask: Tensor | None = None, is_causal: bool = False) -> list[Step]:
    if attn_mask is not None and attn_mask.ndim > 2:
        raise ValueError("stochastic depth: an attention mask per sample cannot be subset")

    def attend(x: Tensor) -> Tensor:
        z = block.attn(block.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        attended: Tensor = block.ls1(z)
        return attended

    return [Step(attend), Step(lambda x: block.ls2(block.mlp(block.norm2(x))))]


def _xcit(block: Any, height: int, width: int) -> list[Step]:
    return [
        Step(lambda x: block.gamma1 * block.attn(block.norm1(x))),
        Step(lambda x: block.gamma3 * block.local_mp(block.norm3(x), height, width)),
        Step(lambda x: block.gamma2 * block.mlp(block.norm2(x))),
    ]


def _swin(block: Any) -> list[Step]:
    return [
        Step(lambda x: block._attn(block.norm1(x))),
        Step(lambda x: block.mlp(block.norm2(x))),
    ]


def _convnext(block: Any) -> list[Step]:
    def branch(x: Tensor) -> Tensor:
        x = block.conv_dw(x)
        if block.use_conv_mlp:
            x = block.mlp(block.norm(x))
        else:
            x = block.mlp(block.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x if block.gamma is None else x * block.gamma[:, None, None]

    return [Step(branch, block.shortcut)]


def _regnet(block: Any) -> list[Step]:
    def branch(x: Tensor) -> Tensor:
        z: Tensor = gated(block.se, block.conv3, block.conv2(block.conv1(x)))
        return z

    return [Step(branch, lambda x: strided(block.downsample, x), block.act3)]


def _resmlp(block: Any) -> list[Step]:
    def mix(x: Tensor) -> Tensor:
        mixed: Tensor = block.linear_tokens(block.norm1(x).transpose(1, 2)).transpose(1, 2)
        return block.ls1 * mixed

    return [Step(mix), Step(lambda x: block.ls2 * block.mlp_channels(block.norm2(x)))]


def _patchconvnet(block: Any, rows: int, columns: int) -> list[Step]:
    return [Step(lambda x: block.gamma_1 * block.attn(block.norm1(x), rows, columns))]


# Block class → how many steps it has, and what they are.
ADAPTERS: dict[type[nn.Module], tuple[int, Adapter]] = {
    vision_transformer.Block: (2, _vit),
    xcit.XCABlock: (3, _xcit),
    XcaBlock: (3, _xcit),
    swin_transformer.SwinTransformerBlock: (2, _swin),
    convnext.ConvNeXtBlock: (1, _convnext),
    regnet.Bottleneck: (1, _regnet),
    mlp_mixer.ResBlock: (2, _resmlp),
    resmlp.ResBlock: (2, _resmlp),
    patchconvnet.ConvBlock: (1, _patchconvnet),
}


@dataclass(frozen=True)
class Plan:
    """Which rows keep which branch.

    Attributes:
        rows: per step (k,) int64, or None where all rows keep it.
        scales: per step b / k.
        batch: b.
    """

    rows: list[Tensor | None]
    scales: list[float]
    batch: int

    def realised(self) -> list[float]:
        """Share of the rows that each step drops."""
        return [1.0 - 1.0 / scale for scale in self.scales]


class StochasticDepth:
    """What `install` returns: draws plans, and takes itself off again.

    Attributes:
        rates: per step, the probability that a row drops it.
        halves: the batch is so many equal parts, each of which keeps as many rows as the others.
        mode: `subset`, or `mask`: compute all rows and multiply; the same plan, the same result.
        left: names of modules that drop paths the ordinary way, since their block is not known.
        plan: the one in use.
    """

    def __init__(
        self, model: nn.Module, rate: float, schedule: Schedule, mode: Mode, seed: int, rank: int
    ) -> None:
        """See `install`."""
        self.mode, self.halves = mode, 1
        self._is_whole = False
        self.plan: Plan | None = None
        self._seed = seed
        # How many rows: the same on all ranks, which would wait for one another. Which: their own.
        self._counts, self._choices = torch.Generator(), torch.Generator()
        self.reseed(0, rank)
        self._blocks = list(_known_blocks(model))
        known = {id(part) for _, block in self._blocks for part in block.modules()}
        self.left = [
            name
            for name, part in model.named_modules()
            if isinstance(part, DropPath) and id(part) not in known
        ]
        steps = [ADAPTERS[type(block)][0] for _, block in self._blocks]
        last = max(1, len(steps) - 1)
        by_block = [rate * (i / last if schedule == "ramp" else 1.0) for i in range(len(steps))]
        self.rates = [by_block[i] for i, count in enumerate(steps) for _ in range(count)]
        first = 0
        for (_, block), count in zip(self._blocks, steps, strict=True):
            # On the block, so that a copy of the model has a copy of this.
            block.stochastic_depth = (self, first)  # type: ignore[assignment]
            block.forward = types.MethodType(_forward, block)
            first += count
        self._hook = model.register_forward_pre_hook(self._before)

    def _before(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._is_whole:
            self.plan = None
        elif model.training:
            self.draw(len(inputs[0]), inputs[0].device)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Forward passes in here keep every branch."""
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False

    def draw(self, batch: int, device: torch.device | str = "cpu") -> Plan:
        """A new plan for a batch; every forward pass in training makes one by itself."""
        if batch % self.halves:
            raise ValueError(f"a batch of {batch} has no {self.halves} equal parts")
        part = batch // self.halves
        steps = len(self.rates)
        chance = torch.rand(steps, generator=self._counts).tolist()
        order = torch.rand(steps, self.halves, part, generator=self._choices).argsort(2)
        order += part * torch.arange(self.halves)[:, None]
        order = order.to(device)
        rows: list[Tensor | None] = []
        scales = []
        for step, (rate, u) in enumerate(zip(self.rates, chance, strict=True)):
            kept = min(part, max(1, int(part * (1.0 - rate) + u)))
            rows.append(None if kept == part else order[step, :, :kept].reshape(-1))
            scales.append(part / kept)
        self.plan = Plan(rows, scales, batch)
        return self.plan

    def reseed(self, counts: int, rows: int) -> None:
        """Make what is drawn next follow from two numbers alone.

        Args:
            counts: decides how many rows; the same on all ranks, such as the number of the update.
            rows: decides which; this rank's own.
        """
        self._counts.manual_seed(seeding.child_seed(self._seed, "depth/counts", counts))
        self._choices.manual_seed(seeding.child_seed(self._seed, "depth/rows", rows))

    def remove(self) -> None:
        """Give every block its own forward pass back."""
        for _, block in self._blocks:
            del block.forward, block.stochastic_depth
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to draw on as before."""
        return {"counts": self._counts.get_state(), "choices": self._choices.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._counts.set_state(torch.as_tensor(state["counts"]))
        self._choices.set_state(torch.as_tensor(state["choices"]))


def install(
    model: nn.Module,
    rate: float,
    schedule: Schedule = "constant",
    mode: Mode = "subset",
    seed: int = 0,
    rank: int = 0,
) -> StochasticDepth:
    """Drop residual branches of all blocks that are known, in place of what they do about it.

    Modules, names and weights stay as they are.

    Args:
        model: with blocks of ADAPTERS' classes.
        rate: probability that a row drops a branch.
        schedule: the same everywhere, or rising from 0 in the first block to `rate` in the last.
        mode: see `StochasticDepth`.
        seed: of the drawing.
        rank: of this worker; ranks keep as many rows as one another, but not the same ones.

    Raises:
        ValueError: the rate is not in [0, 1), or no block is known.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop rate {rate} must be at least 0 and below 1")
    if not any(True for _ in _known_blocks(model)):
        known = ", ".join(sorted({cls.__name__ for cls in ADAPTERS}))
        raise ValueError(
            f"{type(model).__name__} has no block that stochastic depth knows. Known: {known}."
        )
    return StochasticDepth(model, rate, schedule, mode, seed, rank)


def _known_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Blocks with a shortcut, in the order of the forward pass."""
    for name, part in model.named_modules():
        if type(part) not in ADAPTERS:
            continue
        if isinstance(part, regnet.Bottleneck) and part.downsample is None:
            continue  # no shortcut
        yield name, part


def _forward(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward pass of a block under a plan."""
    depth, first = block.stochastic_depth
    if not block.training or depth.plan is None:
        plain: Tensor = type(block).forward(block, x, *args, **kwargs)
        return plain
    for offset, step in enumerate(ADAPTERS[type(block)][1](block, *args, **kwargs)):
        rows, scale = depth.plan.rows[first + offset], depth.plan.scales[first + offset]
        if rows is None:
            x = _shortcut(step, x) + step.branch(x)
        elif depth.mode == "mask":
            x = _masked(step, x, rows, scale)
        else:
            x = _subset(step, x, rows, scale, mine=offset > 0)
        if step.post is not None:
            spare = depth.mode == "subset" and not torch.compiler.is_compiling()
            x = rectified(x) if spare and type(step.post) is nn.ReLU else step.post(x)
    return x


def _shortcut(step: Step, x: Tensor) -> Tensor:
    return x if step.shortcut is None else step.shortcut(x)


def _subset(step: Step, x: Tensor, rows: Tensor, scale: float, mine: bool) -> Tensor:
    """`mine`: nobody else reads x, so that the rows which drop the branch need no copy."""
    base = _shortcut(step, x)
    if base is not x:
        taken = rows_of(x, rows)
    elif torch.compiler.is_compiling():
        base, taken = x if mine else x.clone(), x[rows]
    else:
        base, taken = parted(x, rows, mine)
    if torch.compiler.is_compiling():
        return base.index_add_(0, rows, step.branch(taken).to(base.dtype), alpha=scale)
    return joined(base, rows, step.branch(taken), scale)


def _masked(step: Step, x: Tensor, rows: Tensor, scale: float) -> Tensor:
    weights = x.new_zeros(len(x)).index_fill_(0, rows, scale)
    branch = step.branch(x)
    return _shortcut(step, x) + branch * weights.view(-1, *[1] * (branch.ndim - 1))
