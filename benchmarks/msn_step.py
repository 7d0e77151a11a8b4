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

import copy
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import measure
import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.learn.task import Batch
from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.selfsup.config import PretrainConfig, PretrainLoopConfig, ViewsConfig
from farreach_workloads.vision.selfsup.encoder import Seen
from farreach_workloads.vision.selfsup.method import view_major
from farreach_workloads.vision.selfsup.method_configs import MsnConfig, PriorConfig, SwavConfig
from farreach_workloads.vision.selfsup.task import PretrainTask

try:
    from lightly import loss as lightly_losses
    from lightly.models import modules as lightly_modules
    from lightly.models import utils as lightly_utils
    from lightly.models.modules.heads import MSNProjectionHead
except ModuleNotFoundError:
    lightly_losses = None

STATUS = Path("/proc/self/status")
UNIT = "images per CPU-second"
ROUNDS = 5
BATCH, SIDE, FOCAL_SIDE, FOCAL = 16, 64, 32, 10
VIT = {"img_size": SIDE, "patch_size": 8}
WIDTH, DEPTH, HEADS = 192, 12, 3
HIDDEN, DIM, PROTOTYPES, MASK = 2048, 256, 1024, 0.15
TEMPERATURE, SHARPENING, MOMENTUM, MAX_NORM = 0.1, 0.25, 0.996, 3.0
RATE = 1e-4
# Gradients so much smaller than the largest are zero but for rounding.
NEGLIGIBLE = 1e-4


class PlainBlock(nn.Module):
    """A block of a vision transformer, its parameters in timm's order."""

    def __init__(self) -> None:
        """Of the ViT-Ti."""
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, width) → the same."""
        batch, count, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, count, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(dim=3)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(batch, count, WIDTH))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PlainBranch(nn.Module):
    """Transformer and head, their parameters in the order of ours."""

    def __init__(self, ours: nn.Module) -> None:
        """With the weights of our branch."""
        super().__init__()
        patch = VIT["patch_size"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (SIDE // patch) ** 2, WIDTH))
        self.patch = nn.Conv2d(3, WIDTH, patch, patch)
        self.blocks = nn.Sequential(*[PlainBlock() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, DIM),
        )  # fmt: skip
        with torch.no_grad():
            for own, theirs in zip(self.parameters(), ours.parameters(), strict=True):
                own.copy_(theirs)

    def features(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """(b, 3, side, side) → (b, width)."""
        x = self.patch(images)
        places = self.pos_embed[:, 1:]
        if images.shape[3] != SIDE:
            side = SIDE // VIT["patch_size"]
            grid = places.transpose(1, 2).unflatten(2, (side, side))
            places = F.interpolate(grid, x.shape[2:], mode="bicubic", align_corners=False)
            places = places.flatten(2).transpose(1, 2)
        x = x.flatten(2).transpose(1, 2) + places
        if kept is not None:
            x = x[:, kept]
        own = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.blocks(torch.cat([own, x], dim=1)))[:, 0]


class Plain:
    """A step of MSN as its paper and code describe it (arXiv:2204.07141, section 4)."""

    def __init__(self, ours: nn.Module) -> None:
        """With the weights of our student."""
        self.branch = PlainBranch(ours.branch)
        self.target = copy.deepcopy(self.branch).requires_grad_(False)
        self.prototypes = nn.Parameter(ours.prototypes.detach().clone())
        everything = [self.prototypes, *self.branch.parameters()]
        self._optimizer = torch.optim.AdamW(everything, lr=RATE)

    def loss(self, batch: Batch, kept: Tensor) -> Tensor:
        """Of uint8 views of which the second large one keeps some patches."""
        large, small = standardised(batch["large"]), standardised(batch["small"])
        masked = self.branch.head(self.branch.features(large[:, 1], kept))
        focal = [self.branch.features(small[:, view]) for view in range(small.shape[1])]
        anchors = torch.cat([masked, self.branch.head(torch.cat(focal))]).float()
        prototypes = F.normalize(self.prototypes)
        p = (F.normalize(anchors) @ prototypes.t() / TEMPERATURE).softmax(dim=1)
        with torch.no_grad():
            embedded = self.target.head(self.target.features(large[:, 0])).float()
            t = (F.normalize(embedded) @ prototypes.t() / TEMPERATURE).softmax(dim=1)
            t = t ** (1 / SHARPENING)
            t = sinkhorn(t / t.sum(dim=1, keepdim=True)).repeat(1 + small.shape[1], 1)
        mean = p.mean(dim=0)
        agreement = -(t * torch.log(p)).sum(dim=1).mean()
        return agreement + math.log(PROTOTYPES) + (mean * torch.log(mean)).sum()

    def step(self, batch: Batch, kept: Tensor, half: bool = False) -> None:
        """One update."""
        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, half):
            loss = self.loss(batch, kept)
        loss.backward()
        nn.utils.clip_grad_norm_(self.branch.parameters(), MAX_NORM)
        self._optimizer.step()
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.branch.parameters(), strict=True)
            for behind, ahead in pairs:
                behind.mul_(MOMENTUM).add_((1 - MOMENTUM) * ahead)


def standardised(views: Tensor) -> Tensor:
    """(…, 3, s, s) uint8 → float32."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    return (views / 255 - mean) / std


def sinkhorn(rows: Tensor) -> Tensor:
    """Three rounds towards equal use of all prototypes, (b, k) → (b, k)."""
    q = rows.t() / rows.sum()
    for _ in range(3):
        q = q / q.sum(dim=1, keepdim=True) / PROTOTYPES
        q = q / q.sum(dim=0, keepdim=True) / len(rows)
    return (q * len(rows)).t()


def wrapped(vit: nn.Module) -> nn.Module:
    """Lightly's transformer with the weights of timm's."""
    skip = {"weight_initialization": "skip", "pos_embed_initialization": "skip"}
    return lightly_modules.MaskedVisionTransformerTIMM(vit, **skip)


class LightlyMsn(nn.Module):
    """Networks and step of lightly's example of MSN, with another backbone.

    Attributes:
        backbone: the target's.
    """

    def __init__(
        self,
        vit: nn.Module,
        head: tuple[int, int],
        prototypes: int,
        loss: nn.Module,
        momentum: float = MOMENTUM,
    ) -> None:
        """With the weights of `vit`; `head`: widths of what is hidden and of embeddings."""
        super().__init__()
        self.anchor_backbone = wrapped(vit)
        self.anchor_head = MSNProjectionHead(vit.embed_dim, *head)
        self.backbone = copy.deepcopy(self.anchor_backbone).requires_grad_(False)
        self.head = copy.deepcopy(self.anchor_head).requires_grad_(False)
        self.prototypes = nn.Linear(head[1], prototypes, bias=False).weight
        self._loss, self._momentum = loss, momentum
        learning = [*self.anchor_backbone.parameters(), *self.anchor_head.parameters()]
        self.optimizer = torch.optim.AdamW([*learning, self.prototypes], lr=RATE)
        self.tokens: dict[int, int] = {}

    def masked(self, images: Tensor, ratio: float, prefix: int) -> Tensor:
        """Embeddings of images of whose patches, and `prefix` more, a share is dropped."""
        patch = self.anchor_backbone.vit.patch_embed.patch_size[0]
        size = len(images), (images.shape[3] // patch) ** 2 + prefix
        kept, _ = lightly_utils.random_token_mask(size, ratio)
        self.tokens[images.shape[3]] = kept.shape[1]
        return self.anchor_head(self.anchor_backbone(images, idx_keep=kept))

    def step(self, large: Tensor, small: Tensor, ratios: tuple[float, float], prefix: int) -> None:
        """One update on normalised views, of which large and small ones lose such shares."""
        lightly_utils.update_momentum(self.anchor_backbone, self.backbone, self._momentum)
        lightly_utils.update_momentum(self.anchor_head, self.head, self._momentum)
        target = self.head(self.backbone(large[:, 0]))
        anchors = [self.masked(large[:, 1], ratios[0], prefix)]
        anchors.append(self.masked(view_major(small), ratios[1], prefix))
        self._loss(torch.cat(anchors), target, self.prototypes.data).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class LightlySwav(nn.Module):
    """Network and step of lightly's example of SwAV, with another backbone."""

    def __init__(self, vit: nn.Module) -> None:
        """With the weights of `vit`."""
        super().__init__()
        self.backbone = wrapped(vit)
        self.head = lightly_modules.SwaVProjectionHead(WIDTH, HIDDEN, 128)
        self.prototypes = lightly_modules.SwaVPrototypes(128, PROTOTYPES)
        self._loss = lightly_losses.SwaVLoss()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=RATE)

    def step(self, batch: Batch) -> None:
        """One update on uint8 views."""
        kinds = standardised(batch["large"]), standardised(batch["small"])
        views = [view for kind in kinds for view in kind.unbind(1)]
        self.prototypes.normalize()
        scores = [
            self.prototypes(F.normalize(self.head(self.backbone(view)), dim=1)) for view in views
        ]
        self._loss(scores[:2], scores[2:]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


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
    return task.method._kept(0, 0, BATCH, 1)


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
    names = sys.argv[1:] or list(ROWS)
    for unknown in [name for name in names if name not in ROWS]:
        sys.exit(f"there is no row {unknown}; there are {', '.join(ROWS)}.")
    for name in names:
        ROWS[name]()


if __name__ == "__main__":
    main()
