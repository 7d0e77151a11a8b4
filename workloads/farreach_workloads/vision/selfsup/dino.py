"""Self-distillation without labels (DINO, arXiv:2104.14294), as XCiT and ResMLP report it.

The target network sees the large views, the one that learns sees all; each view must name what the
target says of every other one. The target's answers are centred and sharpened.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from farreach.learn.collectives import total
from farreach.learn.keeping import as_tensors
from farreach.learn.momentum import follow
from farreach.learn.schedules import cosine
from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup import assignments, heads
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import Encoder, Seen, make_encoder, steady
from farreach_workloads.vision.selfsup.method import Method, Span, view_major
from farreach_workloads.vision.selfsup.method_configs import DinoConfig


class Branch(nn.Module):
    """Encoder, head, and a last layer whose weights count by their direction alone."""

    def __init__(self, config: PretrainConfig, dino: DinoConfig) -> None:
        """Raises ConfigError; see `make_encoder`."""
        super().__init__()
        self.encoder = make_encoder(config.backbone, config.views.size)
        widths = [self.encoder.width, dino.hidden, dino.hidden, dino.dim]
        self.head = heads.projector(widths, normalised=dino.normalised)
        self.prototypes = heads.prototypes(dino.prototypes, dino.dim)

    def forward(self, views: Sequence[Seen]) -> Tensor:
        """Cosines of all views, group by group, with the prototypes, (n, k) float32."""
        embedded = self.head(torch.cat(self.encoder(views)))
        return assignments.cosines(embedded, self.prototypes)


class Dino(Method):
    """See `farreach_workloads.vision.selfsup.method.Method`."""

    def __init__(self, config: PretrainConfig, span: Span) -> None:
        """Make both networks; raises ConfigError as `make_encoder` does."""
        assert isinstance(config.method, DinoConfig)
        self._span, self._dino = span, config.method
        self.model: Branch = Branch(config, config.method)
        self.target = steady(copy.deepcopy(self.model))
        self.companions = (self.target,)
        self._center = torch.zeros(config.method.prototypes)

    @property
    def encoder(self) -> Encoder:
        """The target network's."""
        return self.target.encoder

    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over all pairs of a large view and another view."""
        dino, large = self._dino, views["large"]
        images, count = large.shape[:2]
        center = self._center = self._center.to(large.device)
        logits = model([Seen(view_major(view)) for view in views.values()])
        log_p = (logits / dino.temperature).log_softmax(dim=1).unflatten(0, (-1, images))
        with torch.no_grad():
            self.target.train()
            reached = self.target([Seen(view_major(large))])
            target = assignments.targets(reached - center, self.target_temperature(step))
            everyone = total(torch.tensor(float(len(reached)), device=reached.device))
            mean = total(reached.sum(0)) / everyone
            self._center = torch.lerp(mean, center, dino.center_momentum)
        of_views = target.unflatten(0, (count, images))
        pairs = [
            -(of_views[theirs] * log_p[ours]).sum(1).mean()
            for theirs in range(count)
            for ours in range(len(log_p))
            if ours != theirs
        ]
        return torch.stack(pairs).mean(), assignments.use_of_prototypes(target)

    def scores(self, images: Tensor) -> Tensor:
        """Of the target network, less their centre."""
        reached: Tensor = self.target.eval()([Seen(images)])
        return reached - self._center

    def target_temperature(self, step: int) -> float:
        """Of the targets of an update."""
        dino = self._dino
        rise = max(1.0, dino.target_warmup_epochs * self._span.per_epoch)
        done = min(1.0, step / rise) if dino.target_warmup_epochs else 1.0
        first, last = dino.first_target_temperature, dino.target_temperature
        return first + (last - first) * done

    def before_update(self, step: int) -> None:
        """The last layer stays at first: without a gradient nothing moves it."""
        if step < self._dino.frozen_epochs * self._span.per_epoch:
            self.model.prototypes.grad = None

    def momentum(self, step: int) -> float:
        """Of the target network after the update that follows `step` others."""
        return cosine(self._span.done(step), self._dino.momentum, 1.0)

    def after_update(self, step: int) -> None:
        """The target network follows; its statistics of normalisation are its own."""
        follow(self.target, self.model, self.momentum(step))

    def state(self) -> dict[str, Any]:
        """The centre of the targets."""
        return {"center": self._center.cpu()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the centre over."""
        self._center = as_tensors(state["center"]).clone()
