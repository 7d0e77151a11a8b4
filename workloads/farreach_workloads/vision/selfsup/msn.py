"""Masked Siamese networks (MSN, arXiv:2204.07141), and with another prior PMSN (2210.07277).

The target network sees one view of an image, the one that learns sees others of which patches are
dropped. Both assign them to prototypes; the assignments must agree, and on average use the
prototypes as the prior says.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from farreach import seeding
from farreach.learn.collectives import workers
from farreach.learn.momentum import follow
from farreach.learn.order import share
from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup import assignments, heads
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import (
    Encoder,
    Seen,
    kept_of_each,
    kept_patches,
    make_encoder,
    make_vit,
    steady,
)
from farreach_workloads.vision.selfsup.method import Method, Span, view_major
from farreach_workloads.vision.selfsup.method_configs import MsnConfig


class Branch(nn.Module):
    """Encoder and head; the head runs once per group of views."""

    def __init__(self, config: PretrainConfig, msn: MsnConfig) -> None:
        """Raises ConfigError; see `make_vit`."""
        super().__init__()
        make = make_vit if msn.mask > 0 else make_encoder
        self.encoder: Encoder = make(config.backbone, config.views.size)
        self.head = heads.projector([self.encoder.width, msn.hidden, msn.hidden, msn.dim])

    def forward(self, views: Sequence[Seen]) -> Tensor:
        """Embeddings of all views, group by group, (n, dim) float32."""
        return torch.cat([self.head(features).float() for features in self.encoder(views)])


class Student(nn.Module):
    """What learns: a branch and the prototypes, which both sides are compared with."""

    def __init__(self, config: PretrainConfig, msn: MsnConfig) -> None:
        """Raises ConfigError; see `make_vit`."""
        super().__init__()
        self.branch = Branch(config, msn)
        self.prototypes = heads.prototypes(msn.prototypes, msn.dim)

    def forward(self, views: Sequence[Seen]) -> Tensor:
        """Cosines of all views with the prototypes, (n, k) float32."""
        return assignments.cosines(self.branch(views), self.prototypes)


class Msn(Method):
    """See `farreach_workloads.vision.selfsup.method.Method`."""

    def __init__(self, config: PretrainConfig, span: Span) -> None:
        """Make both networks; raises ConfigError if the backbone cannot drop patches."""
        assert isinstance(config.method, MsnConfig)
        self._config, self._span, self._msn = config, span, config.method
        self.model: Student = Student(config, config.method)
        self.target = steady(copy.deepcopy(self.model.branch))
        self.companions = (self.target,)
        self._prior = assignments.prior_of(config.method.prior, config.method.prototypes)

    @property
    def encoder(self) -> Encoder:
        """The target network's."""
        return self.target.encoder

    @property
    def free(self) -> Sequence[nn.Parameter]:
        """The prototypes."""
        return [self.model.prototypes]

    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the assignments, and the distance of their mean from the prior."""
        msn, large = self._msn, views["large"]
        self._prior = self._prior.to(large.device)
        logits = model(self._seen(views, step, rank))
        with torch.no_grad():
            self.target.train()  # it normalises by its own batch
            embedded = self.target([Seen(large[:, 0])])
            reached = assignments.cosines(embedded, heads.whole(self.model.prototypes))
            target = assignments.targets(reached, msn.target_temperature)
            if msn.sinkhorn != "none":
                uniform = torch.full_like(self._prior, 1 / len(self._prior))
                prior = self._prior if msn.sinkhorn == "prior" else uniform
                target = assignments.balanced(target, prior)
        agreement = assignments.cross_entropy(target, logits, msn.temperature)
        spread = assignments.divergence(logits, msn.temperature, self._prior)
        return agreement + msn.weight * spread, {
            "learner/cross_entropy": agreement.detach(),
            "learner/prior_divergence": spread.detach(),
            **assignments.use_of_prototypes(target),
        }

    def _seen(self, views: Batch, step: int, rank: int) -> list[Seen]:
        """Large views but for the first, with the patches that are kept, and small ones."""
        anchors = views["large"][:, 1:]
        kept = None
        if self._msn.mask > 0:
            kept = self.kept(step, rank, anchors.shape[1]).to(anchors.device)
        seen = [Seen(view_major(anchors), kept)]
        if "small" in views:
            seen.append(Seen(view_major(views["small"])))
        return seen

    def kept(self, step: int, rank: int, views: int) -> Tensor:
        """Numbers of the patches that are kept in an update, on this worker.

        Args:
            step: number of the update.
            rank: of this worker.
            views: masked views of each image.

        Returns:
            (m,), the same on every worker; or with `mask_sharing: sample` (views × images, m), each
            image's own whichever worker it is on.
        """
        config, encoder = self._config, self.model.branch.encoder
        count = encoder.patches(config.views.size)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(seeding.child_seed(config.seed, "mask", step))
        if self._msn.mask_sharing == "batch":
            return kept_patches(count, self._msn.mask, generator)
        batch = config.training.batch
        drawn = kept_of_each(count, self._msn.mask, batch * views, generator)
        own = drawn.unflatten(0, (views, batch))[:, share(batch, rank, workers())]
        return own.flatten(0, 1)

    def scores(self, images: Tensor) -> Tensor:
        """Of the target network."""
        embedded = self.target.eval()([Seen(images)])
        return assignments.cosines(embedded, heads.whole(self.model.prototypes))

    def momentum(self, step: int) -> float:
        """Of the target network after the update that follows `step` others."""
        first = self._msn.momentum
        return first + (1.0 - first) * self._span.done(step)

    def after_update(self, step: int) -> None:
        """The target network follows; its statistics of normalisation are its own."""
        follow(self.target, self.model.branch, self.momentum(step))
