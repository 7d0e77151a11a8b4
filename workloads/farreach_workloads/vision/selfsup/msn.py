"""Masked Siamese networks (MSN, arXiv:2204.07141), and with another prior PMSN (2210.07277).

The target network sees one view of an image, the one that learns sees others of which patches are
dropped. Both assign them to prototypes; the assignments must agree, and on average use the
prototypes as the prior says.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import normalize

from farreach import seeding
from farreach.data.images import ImageSet
from farreach.learn.collectives import total
from farreach.learn.loop import as_tensors
from farreach.learn.place import Place
from farreach.learn.task import Batch, Pixels
from farreach_workloads.vision import attention, pictures
from farreach_workloads.vision.augment import evaluation_transform
from farreach_workloads.vision.image_sets import images_of
from farreach_workloads.vision.models import make_model
from farreach_workloads.vision.selfsup import assignments
from farreach_workloads.vision.selfsup.config import PretrainConfig, total_length
from farreach_workloads.vision.selfsup.encoder import Encoder, Head, kept_patches
from farreach_workloads.vision.selfsup.neighbours import effective_rank, knn_labels
from farreach_workloads.vision.selfsup.views import MultiView

EMBEDDED_TOGETHER = 128
# Features whose effective rank is measured.
RANKED = 2048
# Of the pictures: images with so many neighbours each, and images that are looked at.
PICTURED, NEAREST, ATTENDED = 8, 7, 6


class Branch(nn.Module):
    """Encoder and head."""

    def __init__(self, config: PretrainConfig) -> None:
        """Raises ConfigError; see `Encoder`."""
        super().__init__()
        self.encoder = Encoder(make_model(config.backbone, config.views.size, 0))
        self.head = Head(self.encoder.width, config.msn.hidden, config.msn.dim)
        self.encoder.start()

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """(b, 3, h, w) → (b, dim)."""
        embedded: Tensor = self.head(self.encoder(images, kept))
        return embedded


class Student(nn.Module):
    """What learns: a branch and the prototypes, which both sides are compared with."""

    def __init__(self, config: PretrainConfig) -> None:
        """Raises ConfigError; see `Encoder`."""
        super().__init__()
        self.branch = Branch(config)
        bound = 1 / math.sqrt(config.msn.dim)
        self.prototypes = nn.Parameter(
            torch.empty(config.msn.prototypes, config.msn.dim).uniform_(-bound, bound)
        )

    def forward(self, random: Tensor, focal: Tensor | None, kept: Tensor) -> Tensor:
        """Cosines of all views with the prototypes.

        Args:
            random: large views, (r × b, 3, size, size), view by view.
            focal: small ones, (f × b, 3, s, s), view by view; None: there are none.
            kept: patches of the large views that are seen.

        Returns:
            ((r + f) × b, k) float32.
        """
        embedded = [self.branch(random, kept)]
        if focal is not None:
            embedded.append(self.branch(focal))
        return assignments.cosines(torch.cat([z.float() for z in embedded]), self.prototypes)


class MsnTask:
    """Pretrains an encoder; see `farreach.learn.task.Task`."""

    score = "evaluation/knn_top1"

    def __init__(self, config: PretrainConfig) -> None:
        """Open the images and make both networks; raises as `check` does."""
        self._config = config
        train, self._held_out = images_of(config.data)
        self._train = train
        self.classes = len(train.classes)
        self.data = MultiView(train, config.views, config.seed)
        self.model = Student(config)
        self.target = copy.deepcopy(self.model.branch).requires_grad_(False)
        msn = config.msn
        exponent = msn.prior.exponent if msn.prior.kind == "power" else 0.0
        self._prior = assignments.power_law(msn.prototypes, exponent)
        per_epoch = len(train) / config.training.batch
        self._length = total_length(config.training, per_epoch)
        self._patches = self.model.branch.encoder.patches(config.views.size)
        self._optimizer: torch.optim.Optimizer | None = None
        # References of the last evaluation, their features, and those of the held-out images.
        self._seen: tuple[ImageSet, Tensor, Tensor] | None = None

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; norms, biases and prototypes are not decayed, prototypes not clipped."""
        device = next(self.model.parameters()).device
        self.target.to(device)
        self._prior = self._prior.to(device)
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter in self.model.branch.parameters():
            (plain if parameter.ndim == 1 else decayed).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self._config.optimizer.weight_decay},
            {"params": plain, "weight_decay": 0.0},
            {"params": [self.model.prototypes], "weight_decay": 0.0, "clipped": False},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=1.0)
        return self._optimizer

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the assignments, and the distance of their mean from the prior."""
        msn = self._config.msn
        assert self._optimizer is not None
        self._optimizer.param_groups[0]["weight_decay"] = self.weight_decay(step)
        # The same patches on every worker.
        generator = torch.Generator().manual_seed(
            seeding.child_seed(self._config.seed, "mask", step)
        )
        kept = kept_patches(self._patches, msn.mask, generator).to(batch["target"].device)
        logits = model(_view_major(batch["random"]), _view_major(batch.get("focal")), kept)
        with torch.no_grad():
            self.target.train()  # it normalises by its own batch
            embedded = self.target(batch["target"])
            reached = assignments.cosines(embedded, self.model.prototypes)
            target = assignments.targets(reached, msn.target_temperature)
            if msn.sinkhorn != "none":
                uniform = torch.full_like(self._prior, 1 / len(self._prior))
                prior = self._prior if msn.sinkhorn == "prior" else uniform
                target = assignments.balanced(target, prior)
        agreement = assignments.cross_entropy(target, logits, msn.temperature)
        spread = assignments.divergence(logits, msn.temperature, self._prior)
        used = torch.bincount(target.argmax(1), minlength=msn.prototypes).float()
        return agreement + msn.weight * spread, {
            "learner/cross_entropy": agreement.detach(),
            "learner/prior_divergence": spread.detach(),
            "learner/target_confidence": target.max(1).values.mean(),
            "learner/prototypes_used": (total(used) > 0).sum().float(),
        }

    def weight_decay(self, step: int) -> float:
        """Of the update after `step` others: half a cosine upwards."""
        settings = self._config.optimizer
        done = min(1.0, (step + 1) / max(1.0, self._length))
        first, last = settings.weight_decay, settings.last_weight_decay
        return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * done))

    def momentum(self, step: int) -> float:
        """Of the target network after the update that follows `step` others."""
        first = self._config.msn.momentum
        return first + (1.0 - first) * min(1.0, step / max(1.0, self._length))

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """The target network follows; its statistics of normalisation are its own."""
        theirs: list[Tensor] = list(self.target.parameters())
        ours: list[Tensor] = [p.detach() for p in self.model.branch.parameters()]
        torch._foreach_lerp_(theirs, ours, 1 - self.momentum(step))

    def evaluate(self, place: Place) -> dict[str, float]:
        """The labels of the nearest neighbours of the held-out images, by the target network."""
        probe = self._config.probe
        references = self._train.subset(_spread(len(self._train), probe.references))
        known = self.features(references, place)
        asked = self.features(self._held_out, place)
        found = knn_labels(
            known,
            torch.from_numpy(references.labels),
            asked,
            self.classes,
            probe.neighbours,
            probe.temperature,
        )
        self._seen = (references, known, asked)
        labels = torch.from_numpy(self._held_out.labels)
        right = (found == labels).float()
        per_class = torch.stack([right[labels == c].mean() for c in labels.unique()])
        return {
            "evaluation/knn_top1": float(right.mean()),
            "evaluation/knn_balanced": float(per_class.mean()),
            "evaluation/effective_rank": effective_rank(asked[:RANKED]),
            "evaluation/images": float(len(asked)),
        }

    def features(self, images: ImageSet, place: Place) -> Tensor:
        """Class tokens of the target network, each worker computing a share: (n, width) float32."""
        config = self._config.data
        transform = evaluation_transform(config.size, config.crop_ratio)
        encoder = self.target.encoder.eval()
        result = torch.zeros(len(images), encoder.width)
        rows = np.arange(len(images))[place.rank :: place.world]
        for begin in range(0, len(rows), EMBEDDED_TOGETHER):
            some = rows[begin : begin + EMBEDDED_TOGETHER]
            batch = torch.stack([transform(images.load(int(row))) for row in some])
            result[some] = encoder(batch.to(place.device)).float().cpu()
        return place.sum(result).cpu()

    def only(self, count: int) -> None:
        """Evaluate on `count` of the held-out images alone, spread evenly."""
        self._held_out = self._held_out.subset(_spread(len(self._held_out), count))

    def pictures(self) -> dict[str, Pixels]:
        """Held-out images with their nearest neighbours, of the last evaluation."""
        return {"evaluation/neighbours": pictures.rendered(self._neighbours())}

    def draw(self, folder: Path) -> list[Path]:
        """Write the pictures of the nearest neighbours and of what the encoder looks at."""
        with torch.no_grad():
            self.evaluate(Place())
        files = [pictures.save(self._neighbours(), folder / "neighbours.png")]
        config = self._config.data
        transform = evaluation_transform(config.size, config.crop_ratio)
        some = self._held_out.subset(_spread(len(self._held_out), ATTENDED))
        images = torch.stack([transform(some.load(row)) for row in range(len(some))])
        looked = attention.draw(self.target.encoder.vit.eval(), images, images[:, :1, 0, 0], ["-"])
        if looked is not None:
            files.append(pictures.save(looked, folder / "attention.png"))
        return files

    def _neighbours(self) -> Figure:
        assert self._seen is not None
        references, known, asked = self._seen
        rows = _spread(len(asked), PICTURED)
        near = (normalize(asked[rows]) @ normalize(known).t()).topk(NEAREST, dim=1).indices
        lines = [
            [self._held_out.load(int(row)), *[references.load(int(n)) for n in found]]
            for row, found in zip(rows, near, strict=True)
        ]
        names = [
            [
                self._held_out.classes[self._held_out.labels[row]],
                *[references.classes[references.labels[n]] for n in found],
            ]
            for row, found in zip(rows, near.tolist(), strict=True)
        ]
        return pictures.neighbours(lines, names)

    def state(self) -> dict[str, Any]:
        """The target network, with its statistics of normalisation."""
        return {"target": self.target.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the target network over."""
        self.target.load_state_dict(as_tensors(state["target"]))


def _view_major(views: Tensor | None) -> Any:
    """(b, v, 3, h, w) → (v × b, 3, h, w): all images of the first view, then of the second."""
    return None if views is None else views.transpose(0, 1).flatten(0, 1)


def _spread(count: int, most: int) -> Any:
    """At most so many rows of `count`, evenly over all of them."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
