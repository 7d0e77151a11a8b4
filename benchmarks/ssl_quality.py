"""What MSN and PMSN learn in the same updates, ours against lightly's: k-NN accuracy in percent.

`python benchmarks/ssl_quality.py [--fashion FOLDER] [--minutes M]` prints one JSON line per row,
`msn_vs_lightly` and `pmsn_vs_lightly`. Images are the shipped clip arts at 32 pixels, or
Fashion-MNIST at 28; `M` minutes, at most 10, are for everything.

All networks take their updates in turn, on the same views of 32 images (a target view, a masked one
and 2 focal ones of 16 pixels), from the same weights of the same small transformer (patches of 4
pixels, width 96, 4 blocks, 3 heads), with 64 prototypes in 64 dimensions, a head of 384 and a
momentum that begins at 0.9. The rate rises in a line in a tenth of the updates and falls along
half a cosine. Each side has three rates: `ours_by_rate` and `peer_by_rate` are what they reach, and
the best counts.

Ours: the paper's, PMSN with exponent 0.25 and, as lightly's, Sinkhorn and a weight of 1, but
Sinkhorn here brings targets to the prior. Lightly's: the steps of its example, with the defaults of
its losses and of AdamW. There patches of focal views are dropped too, prototypes stay as they
begin, gradients are not clipped, and the momentum stays.

`untrained` and `raw_pixels` are what the first weights and the pixels reach. Features are the
target networks' class tokens after the last norm.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import numpy as np
import ssl_peers
import timm
import torch
from torch import Tensor, nn

from farreach.data.images import ImageSet
from farreach.learn.order import Order
from farreach.learn.task import Batch
from farreach_workloads.vision.augment import evaluation_transform
from farreach_workloads.vision.config import SHIPPED_SET, BackboneConfig, ImagesConfig
from farreach_workloads.vision.evaluation.neighbours import knn_labels
from farreach_workloads.vision.image_sets import images_of
from farreach_workloads.vision.selfsup.config import PretrainConfig, PretrainLoopConfig, ViewsConfig
from farreach_workloads.vision.selfsup.method_configs import MsnConfig, PriorConfig
from farreach_workloads.vision.selfsup.task import PretrainTask

NAME = "vit_tiny_patch16_224"
VIT = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
BATCH, MASK = 32, 0.15
HEAD, PROTOTYPES = (384, 64), 64
# Chosen among 0.99, 0.96 and 0.9 by what ours reaches in 379 updates of Fashion-MNIST.
MOMENTUM = 0.9
RATES = (3e-4, 1e-3, 3e-3)
WARMUP, MAX_NORM, SEED = 0.1, 3.0, 0
NEIGHBOURS, TEMPERATURE, REFERENCES, ASKED = 20, 0.07, 2000, 1200
# Updates that tell how long one takes, and the share of the time that is then planned for.
REHEARSED, PLANNED = 4, 0.93

COMMON: dict[str, Any] = {
    "mask": MASK,
    "hidden": HEAD[0],
    "dim": HEAD[1],
    "prototypes": PROTOTYPES,
    "momentum": MOMENTUM,
}
# Row → our method, and the name of lightly's loss.
ROWS = {
    "msn_vs_lightly": (MsnConfig(**COMMON), "MSNLoss"),
    "pmsn_vs_lightly": (
        MsnConfig(**COMMON, prior=PriorConfig(kind="power"), sinkhorn="prior", weight=1.0),
        "PMSNLoss",
    ),
}

# Views and the number of the update.
Step = Callable[[Batch, int], None]


class Learner(NamedTuple):
    """A network that learns, one of several at a row's side.

    Attributes:
        row: its row.
        is_ours: its side.
        rate: the highest learning rate.
        step: one update.
        trunk: the target network's transformer.
    """

    row: str
    is_ours: bool
    rate: float
    step: Step
    trunk: nn.Module


class Labelled(NamedTuple):
    """Images as they are looked at, (n, 3, s, s) float32, and their labels, (n,)."""

    images: Tensor
    labels: Tensor


def config_of(data: ImagesConfig, method: MsnConfig, updates: int) -> PretrainConfig:
    """A run of ours with so many updates."""
    train, _ = images_of(data)
    loop = PretrainLoopConfig(batch=BATCH, epochs=updates * BATCH / len(train))
    return PretrainConfig(
        seed=SEED,
        backbone=BackboneConfig(name=NAME, options=VIT | {"img_size": data.size}),
        data=data,
        views=ViewsConfig(size=data.size, small_size=16, small=2, blur=None),
        method=method,
        training=loop,
    )


def task_of(config: PretrainConfig) -> PretrainTask:
    """Ours, always of the same weights."""
    torch.manual_seed(SEED)
    return PretrainTask(config)


def rate_at(step: int, updates: int, highest: float) -> float:
    """The learning rate of an update."""
    rise = WARMUP * updates
    if step < rise:
        return highest * (step + 1) / (rise + 1)
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rise) / (updates - rise)))


def our_learner(row: str, config: PretrainConfig, rate: float, updates: int) -> Learner:
    """Ours, updated as the loop does it."""
    task = task_of(config)
    task.model.train()
    optimizer = task.optimizer()
    groups = [group for group in optimizer.param_groups if group.get("clipped", True)]
    clipped = [parameter for group in groups for parameter in group["params"]]

    def step(batch: Batch, number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(number, updates, rate)
        optimizer.zero_grad(set_to_none=True)
        loss, _ = task.loss(task.model, batch, number, 0)
        loss.backward()
        task.before_update(number)
        nn.utils.clip_grad_norm_(clipped, MAX_NORM)
        optimizer.step()
        task.after_update(number)

    return Learner(row, True, rate, step, task.encoder.trunk)


def their_learner(row: str, trunk: nn.Module, size: int, rate: float, updates: int) -> Learner:
    """Lightly's, from the weights of `trunk`."""
    options = VIT | {"img_size": size}
    vit = timm.create_model(NAME, num_classes=0, dynamic_img_size=True, **options)
    vit.load_state_dict(trunk.state_dict())
    torch.manual_seed(SEED)
    loss = getattr(ssl_peers.lightly_losses, ROWS[row][1])()
    peer = ssl_peers.LightlyMsn(vit, HEAD, PROTOTYPES, loss, MOMENTUM)

    def step(batch: Batch, number: int) -> None:
        for group in peer.optimizer.param_groups:
            group["lr"] = rate_at(number, updates, rate)
        torch.manual_seed(number)
        large, small = (ssl_peers.standardised(batch[kind]) for kind in ("large", "small"))
        peer.step(large, small, (MASK, MASK), 0)

    return Learner(row, False, rate, step, peer.backbone.vit)


def learners(data: ImagesConfig, updates: int) -> list[Learner]:
    """Both sides of all rows, with all rates."""
    made = []
    for row, (method, _) in ROWS.items():
        config = config_of(data, method, updates)
        trunk = task_of(config).encoder.trunk
        for rate in RATES:
            made.append(our_learner(row, config, rate, updates))
            made.append(their_learner(row, trunk, data.size, rate, updates))
    return made


def train(data: ImagesConfig, updates: int) -> tuple[list[Learner], float]:
    """All learners after so many updates on the same views, and the seconds that one took."""
    views = task_of(config_of(data, ROWS["msn_vs_lightly"][0], updates)).data
    order = Order(len(views), SEED)
    made = learners(data, updates)
    begun = time.monotonic()
    for number in range(updates):
        first = number * BATCH
        positions = np.arange(first, first + BATCH)
        batch = views.batch(order.rows(first, BATCH), positions)
        for learner in made:
            learner.step(batch, number)
    return made, (time.monotonic() - begun) / updates


def looked_at(images: ImageSet, most: int, size: int) -> Labelled:
    """At most so many of a set, evenly over all."""
    rows = np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64)
    some = images.subset(rows)
    transform = evaluation_transform(size, 1.0)
    pixels = torch.stack([transform(some.load(row)) for row in range(len(some))])
    return Labelled(pixels, torch.from_numpy(some.labels))


@torch.no_grad()
def features(trunk: nn.Module, images: Tensor) -> Tensor:
    """Class tokens after the last norm, (n, width)."""
    trunk.eval()
    return torch.cat([trunk.forward_features(part)[:, 0] for part in images.split(BATCH)])


def accuracy(known: Tensor, asked: Tensor, labels: Tensor, right: Tensor) -> float:
    """Percent of the asked features whose neighbours' label is right."""
    classes = int(labels.max()) + 1
    found = knn_labels(known, labels, asked, classes, NEIGHBOURS, TEMPERATURE)
    return round(100 * float((found == right).float().mean()), 2)


def main() -> None:
    """Train everything and print both rows."""
    parser = measure.parser(__doc__)
    parser.add_argument("--fashion", help="folder of Fashion-MNIST's files")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, at most 10")
    arguments = parser.parse_args()
    if ssl_peers.lightly_losses is None:
        for row in ROWS:
            measure.missing(row, "lightly")
        return
    begun = time.monotonic()
    path = arguments.fashion or SHIPPED_SET
    data = ImagesConfig(path=path, size=28 if arguments.fashion else 32)
    known, asked = (
        looked_at(images, most, data.size)
        for images, most in zip(images_of(data), (REFERENCES, ASKED), strict=True)
    )

    def score(trunk: nn.Module) -> float:
        both = features(trunk, known.images), features(trunk, asked.images)
        return accuracy(*both, known.labels, asked.labels)

    rehearsed, an_update = train(data, REHEARSED)
    untrained = task_of(config_of(data, ROWS["msn_vs_lightly"][0], REHEARSED))
    measured = time.monotonic()
    untrained_score = score(untrained.encoder.trunk)
    all_scores = (time.monotonic() - measured) * len(rehearsed)
    left = 60 * min(10.0, arguments.minutes) * PLANNED - (time.monotonic() - begun) - all_scores
    updates = max(10, int(left / an_update))
    trained, _ = train(data, updates)
    pixels = known.images.flatten(1), asked.images.flatten(1)
    shared = {
        "updates": updates,
        "batch": BATCH,
        "untrained": untrained_score,
        "raw_pixels": accuracy(*pixels, known.labels, asked.labels),
    }
    for row in ROWS:
        reached: dict[bool, dict[str, float]] = {True: {}, False: {}}
        for learner in trained:
            if learner.row == row:
                reached[learner.is_ours][f"{learner.rate:g}"] = score(learner.trunk)
        ours, peer = (max(reached[side].values()) for side in (True, False))
        extra = {"ours_by_rate": reached[True], "peer_by_rate": reached[False]} | shared
        measure.row(row, ours, peer, "k-NN top-1, %", ours / peer, **extra)


if __name__ == "__main__":
    main()
