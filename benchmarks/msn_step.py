"""Steps of pretraining against the papers' written down plainly, and against lightly's.

`python benchmarks/msn_step.py [ROW ...]` prints one JSON line per row. A step is loss, gradients,
clipping, AdamW and the target network, of a ViT-Ti with patches of 8 pixels: 16 images, each with a
target view and a masked one (15 %) of 64 pixels and 10 focal ones of 32; the views are made
beforehand.

- `fp32`, `bf16`: against MSN view by view, with matrices of attention, ordinary linear layers and
  optimizer, and a loop for the target network, in float32. `gap` is the largest relative difference
  of the losses and of any tensor's gradients, from the same weights, views and mask;
  `against_plain_bf16` the ratio to the same under autocast.
- `vs_lightly`, `pmsn_vs_lightly_step`, `swav_vs_lightly_step`: against the steps of lightly's
  examples with its transformer, heads and losses, in float32. Its example of MSN masks focal views
  too, and counts patches without the class token; here it gets all tokens to choose from, 15 % of
  the patches of the masked view and none of the focal ones, which makes as many tokens as ours
  (`tokens`, `peer_tokens`: of a masked and of a focal view). SwAV has 2 views of 64 pixels and 6 of
  32, all prototypes learning, and AdamW on both sides.
- `mask_saving`: one masked view, no focal ones; ours with 70 % of its patches dropped, the peer
  with none. `time_ratio` is of the steps, `time_ratio_student` of all but what the target's forward
  pass takes.
- `memory`: how far a step of 32 images raises the most memory that was ever resident, each in a
  process of its own.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import measure
import numpy as np
import timm
import torch
from ssl_peers import (
    BATCH,
    DIM,
    FOCAL,
    FOCAL_SIDE,
    HIDDEN,
    MASK,
    MAX_NORM,
    PROTOTYPES,
    RATE,
    SIDE,
    VIT,
    LightlyMsn,
    LightlySwav,
    Plain,
    lightly_losses,
    standardised,
)
from torch import Tensor, nn

from farreach.learn.task import Batch
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.selfsup.config import PretrainConfig, PretrainLoopConfig, ViewsConfig
from farreach_workloads.vision.selfsup.encoder import Seen
from farreach_workloads.vision.selfsup.method_configs import MsnConfig, PriorConfig, SwavConfig
from farreach_workloads.vision.selfsup.task import PretrainTask

STATUS = Path("/proc/self/status")
UNIT = "images per CPU-second"
ROUNDS = 5
# Gradients so much smaller than the largest are zero but for rounding.
NEGLIGIBLE = 1e-4


def task_of(
    method: MsnConfig | SwavConfig, focal: int = FOCAL, batch: int = BATCH
) -> tuple[PretrainTask, Batch]:
    """Ours, always of the same weights, and a batch of views."""
    torch.manual_seed(0)
    config = PretrainConfig(
        backbone=BackboneConfig(name="vit_tiny_patch16_224", options=VIT),
        views=ViewsConfig(size=SIDE, small_size=FOCAL_SIDE, small=focal),
        method=method,
        training=PretrainLoopConfig(batch=batch),
    )
    task = PretrainTask(config)
    task.model.train()
    rows = np.arange(batch)
    return task, task.data.batch(rows, rows)


def our_step(task: PretrainTask, batch: Batch, half: bool = False) -> measure.Work:
    """An update as the loop makes it."""
    optimizer = task.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = RATE
    groups = [group for group in optimizer.param_groups if group.get("clipped", True)]
    clipped = [parameter for group in groups for parameter in group["params"]]

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, half):
            loss, _ = task.loss(task.model, batch, 0, 0)
        loss.backward()
        task.before_update(0)
        nn.utils.clip_grad_norm_(clipped, MAX_NORM)
        optimizer.step()
        task.after_update(0)

    return work


def plain_step(task: PretrainTask, batch: Batch, half: bool = False) -> measure.Work:
    """The same update, plainly, from the task's weights and with its mask."""
    plain, kept = Plain(task.model), kept_of(task)
    return lambda: plain.step(batch, kept, half)


def kept_of(task: PretrainTask) -> Tensor:
    """The patches that stay in our first update."""
    return task.method.kept(0, 0, 1)


def gap() -> float:
    """The largest relative difference of the loss and of the gradients of any tensor."""
    task, batch = task_of(MsnConfig())
    plain = Plain(task.model)
    ours, _ = task.loss(task.model, batch, 0, 0)
    theirs = plain.loss(batch, kept_of(task))
    ours.backward()
    theirs.backward()
    gradients = [_gradients(task.model.parameters())]
    gradients.append([plain.prototypes.grad, *_gradients(plain.branch.parameters())])
    largest = max(float(gradient.norm()) for gradient in gradients[0])
    gaps = [
        float((own - other).norm() / own.norm())
        for own, other in zip(*gradients, strict=True)
        if own.norm() > NEGLIGIBLE * largest
    ]
    return max(*gaps, abs(float(ours.detach() / theirs.detach()) - 1))


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters]


def fp32() -> None:
    """In float32."""
    works = our_step(*task_of(MsnConfig())), plain_step(*task_of(MsnConfig()))
    measure.compare_rates("fp32", UNIT, *[(work, BATCH) for work in works], ROUNDS, gap=gap())


def bf16() -> None:
    """Ours in bfloat16 against plain float32, and plain bfloat16."""
    ours = our_step(*task_of(MsnConfig()), half=True)
    peers = [plain_step(*task_of(MsnConfig()), half=half) for half in (False, True)]
    rates = [BATCH / seconds for seconds in measure.medians([ours, *peers], ROUNDS)]
    extra = {"against_plain_bf16": round(rates[0] / rates[2], 3)}
    measure.row("bf16", rates[0], rates[1], UNIT, rates[0] / rates[1], **extra)


def lightly_vit() -> nn.Module:
    """The same transformer for lightly, which takes images of other sizes if they are dynamic."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **VIT)


def compare_msn(name: str, method: MsnConfig, loss: str) -> None:
    """A row of MSN or PMSN."""
    if lightly_losses is None:
        measure.missing(name, "lightly")
        return
    task, batch = task_of(method)
    criterion = getattr(lightly_losses, loss)()
    peer = LightlyMsn(lightly_vit(), (HIDDEN, DIM), PROTOTYPES, criterion)

    def their_step() -> None:
        large, small = standardised(batch["large"]), standardised(batch["small"])
        peer.step(large, small, (MASK, 0.0), 1)

    their_step()
    small = task.encoder.tokens(Seen(torch.zeros(1, 3, FOCAL_SIDE, FOCAL_SIDE)))
    extra = {
        "tokens": [len(kept_of(task)) + 1, small.shape[1]],
        "peer_tokens": [peer.tokens[SIDE], peer.tokens[FOCAL_SIDE]],
    }
    works = (our_step(task, batch), BATCH), (their_step, BATCH)
    measure.compare_rates(name, UNIT, *works, ROUNDS, **extra)


def vs_lightly() -> None:
    """MSN."""
    compare_msn("vs_lightly", MsnConfig(), "MSNLoss")


def pmsn_vs_lightly_step() -> None:
    """PMSN."""
    method = MsnConfig(prior=PriorConfig(kind="power"), sinkhorn="none", weight=5.0)
    compare_msn("pmsn_vs_lightly_step", method, "PMSNLoss")


def swav_vs_lightly_step() -> None:
    """SwAV."""
    name = "swav_vs_lightly_step"
    if lightly_losses is None:
        measure.missing(name, "lightly")
        return
    task, batch = task_of(SwavConfig(prototypes=PROTOTYPES, frozen_updates=0), focal=6)
    peer = LightlySwav(lightly_vit())
    works = (our_step(task, batch), BATCH), (lambda: peer.step(batch), BATCH)
    measure.compare_rates(name, UNIT, *works, ROUNDS)


def mask_saving() -> None:
    """What the patches save that are dropped."""
    tasks = [task_of(MsnConfig(mask=mask), focal=0) for mask in (0.7, 0.0)]
    (task, batch), _ = tasks
    seen = [Seen(standardised(batch["large"][:, 0]))]

    @torch.no_grad()
    def target() -> None:
        task.method.target(seen)

    times = measure.medians([*[our_step(*of) for of in tasks], target], 2 * ROUNDS)
    extra = {
        "time_ratio": round(times[0] / times[1], 3),
        "time_ratio_student": round((times[0] - times[2]) / (times[1] - times[2]), 3),
    }
    rates = [BATCH / seconds for seconds in times]
    measure.row("mask_saving", rates[0], rates[1], UNIT, rates[0] / rates[1], **extra)


def growth(side: str) -> float:
    """MiB by which two steps, of which the first makes the optimizer's state, raise the peak."""
    torch.set_num_threads(1)
    make = our_step if side == "ours" else plain_step
    work = make(*task_of(MsnConfig(), batch=2 * BATCH))
    before = peak()
    work()
    work()
    return peak() - before


def peak() -> float:
    """MiB that were resident at the most in this process, and not in the one that started it.

    That is why it is not `resource.getrusage`, whose peak outlives the start of another program.
    """
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def memory() -> None:
    """The peak of each side."""
    grown = []
    for side in ("ours", "plain"):
        code = f"import msn_step; print(msn_step.growth({side!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent, check=True, capture_output=True, text=True,
        )  # fmt: skip
        grown.append(float(done.stdout))
    measure.row("memory", grown[0], grown[1], "MiB a step", grown[1] / grown[0])


ROWS = {
    row.__name__: row
    for row in (
        fp32, bf16, vs_lightly, pmsn_vs_lightly_step, swav_vs_lightly_step, mask_saving, memory
    )
}  # fmt: skip


def main() -> None:
    """Print the rows that are named, or all."""
    torch.set_num_threads(1)
    for name in measure.rows_asked(__doc__, list(ROWS)):
        ROWS[name]()


if __name__ == "__main__":
    main()
