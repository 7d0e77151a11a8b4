"""SwAV (arXiv:2006.09882), as SEER scales it to RegNets and images as they come (2202.08360).

Two large crops of an image are assigned to prototypes, evenly over the images of all workers; every
other crop of the same image must predict the assignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.learn.collectives import gathered, workers
from farreach.learn.keeping import as_tensors
from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup import assignments, heads
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import Encoder, Seen, make_encoder
from farreach_workloads.vision.selfsup.method import Method, Span, view_major
from farreach_workloads.vision.selfsup.method_configs import SwavConfig

# Large crops whose assignments the others predict.
ASSIGNED = 2


class Student(nn.Module):
    """Encoder, head and prototypes; the head sees the crops of all sizes in one pass."""

    def __init__(self, config: PretrainConfig, swav: SwavConfig) -> None:
        """Raises ConfigError; see `make_encoder`."""
        super().__init__()
        self.encoder = make_encoder(config.backbone, config.views.size)
        widths = [self.encoder.width, *swav.hidden, swav.dim]
        self.head = heads.projector(widths, nn.ReLU, normalised=swav.normalised, init_std=None)
        start = torch.randn(swav.prototypes, swav.dim)
        self.prototypes = nn.Parameter(F.normalize(start, dim=1))

    def forward(self, views: Sequence[Seen]) -> tuple[Tensor, Tensor]:
        """Embeddings of norm 1 of all crops, (n, d), and their scores, (n, k); both float32."""
        embedded = F.normalize(self.head(torch.cat(self.encoder(views))).float(), dim=1)
        return embedded, heads.product(embedded, self.prototypes.float())


class Swav(Method):
    """See `farreach_workloads.vision.selfsup.method.Method`."""

    def __init__(self, config: PretrainConfig, span: Span) -> None:
        """Make the network; raises ConfigError as `make_encoder` does."""
        assert isinstance(config.method, SwavConfig)
        self._span, self._swav = span, config.method
        self.model: Student = Student(config, config.method)
        self._prior = assignments.prior_of(config.method.prior, config.method.prototypes)
        # Earlier embeddings of each assigned crop, of all workers, the newest first.
        self._queue = torch.zeros(ASSIGNED, 0, config.method.dim)

    @property
    def encoder(self) -> Encoder:
        """The one that learns."""
        return self.model.encoder

    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over both assigned crops of how ill the other crops predict their codes."""
        swav, images = self._swav, len(views["large"])
        self._prior = self._prior.to(views["large"].device)
        embedded, scores = model([Seen(view_major(view)) for view in views.values()])
        of_crops = scores.unflatten(0, (-1, images))  # (crops, images, k)
        earlier = self._earlier(embedded.detach()[: ASSIGNED * images], step, rank)
        parts, used = [], {}
        log_p = (of_crops / swav.temperature).log_softmax(dim=2)
        for assigned in range(ASSIGNED):
            rows = torch.cat([of_crops[assigned].detach(), earlier[assigned]])
            code = assignments.codes(rows, self._prior, swav.epsilon, swav.iterations)[:images]
            used = assignments.use_of_prototypes(code)
            others = [crop for crop in range(len(of_crops)) if crop != assigned]
            parts.append(-(code * log_p[others]).sum(2).mean())
        return torch.stack(parts).mean(), used

    @torch.no_grad()
    def _earlier(self, embedded: Tensor, step: int, rank: int) -> Tensor:
        """Scores of this worker's part of the queue, (2, m, k), which then takes in the new ones.

        Args:
            embedded: of the assigned crops, (2 × images, d).
            step: number of the update.
            rank: of this worker.
        """
        swav = self._swav
        prototypes = heads.whole(self.model.prototypes)
        if not swav.queue or step < swav.queue_after_epochs * self._span.per_epoch:
            return prototypes.new_zeros(ASSIGNED, 0, swav.prototypes)
        queue = self._queue = self._queue.to(embedded.device)
        # As many on every worker.
        own = queue[:, : queue.shape[1] // workers() * workers()][:, rank :: workers()]
        scores = heads.product(own, prototypes)
        new = gathered(embedded.unflatten(0, (ASSIGNED, -1)).transpose(0, 1)).transpose(0, 1)
        self._queue = torch.cat([new, queue], dim=1)[:, : swav.queue]
        return scores

    def scores(self, images: Tensor) -> Tensor:
        """Cosines."""
        scores: Tensor = self.model.eval()([Seen(images)])[1]
        return scores

    def before_update(self, step: int) -> None:
        """Prototypes stay for some updates: without a gradient nothing moves them."""
        if step < self._swav.frozen_updates:
            self.model.prototypes.grad = None

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Prototypes have norm 1 again."""
        prototypes = self.model.prototypes
        prototypes.copy_(F.normalize(prototypes, dim=1))

    def state(self) -> dict[str, Any]:
        """The queue."""
        return {"queue": self._queue.cpu()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the queue over."""
        self._queue = as_tensors(state["queue"]).clone()
