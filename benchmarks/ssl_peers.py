"""Peers of our pretraining: MSN's step written down plainly, and lightly's MSN and SwAV.

Lightly's transformer, heads and losses are put together as its examples do it.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.learn.task import Batch
from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.selfsup.method import view_major

try:
    from lightly import loss as lightly_losses
    from lightly.models import modules as lightly_modules
    from lightly.models import utils as lightly_utils
    from lightly.models.modules.heads import MSNProjectionHead
except ModuleNotFoundError:
    lightly_losses = None

BATCH, SIDE, FOCAL_SIDE, FOCAL = 16, 64, 32, 10
VIT = {"img_size": SIDE, "patch_size": 8}
WIDTH, DEPTH, HEADS = 192, 12, 3
HIDDEN, DIM, PROTOTYPES, MASK = 2048, 256, 1024, 0.15
TEMPERATURE, SHARPENING, MOMENTUM, MAX_NORM = 0.1, 0.25, 0.996, 3.0
RATE = 1e-4


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
