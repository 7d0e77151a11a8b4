"""SimCLR (arXiv:2002.05709): of all views, the other one of the same image is to be found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farreach.learn.collectives import gathered
from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup import heads
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import Encoder, Seen, make_encoder
from farreach_workloads.vision.selfsup.method import Method, Span, view_major
from farreach_workloads.vision.selfsup.method_configs import SimclrConfig, VicregConfig


class Student(nn.Module):
    """Encoder and projector."""

    def __init__(
        self, config: PretrainConfig, method: SimclrConfig | VicregConfig, hidden: Sequence[int]
    ) -> None:
        """Raises ConfigError; see `make_encoder`."""
        super().__init__()
        self.encoder = make_encoder(config.backbone, config.views.size)
        widths = [self.encoder.width, *hidden, method.dim]
        self.head = heads.projector(widths, nn.ReLU, init_std=None)

    def forward(self, views: Sequence[Seen]) -> Tensor:
        """Embeddings of all views, (n, dim) float32."""
        embedded: Tensor = self.head(torch.cat(self.encoder(views)))
        return embedded.float()


def contrast(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """NT-Xent, equation 1: the cross-entropy of finding each view's partner among all others.

    Args:
        one: embeddings of one view of each image, (b, d).
        other: of the other view, (b, d).
        temperature: of the cosines.

    Returns:
        (), the same on all workers, of the images of all of them.
    """
    own = torch.cat([F.normalize(gathered(x), dim=1) for x in (one, other)])
    cosines = heads.product(own, own) / temperature
    itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
    partners = torch.arange(len(own), device=own.device).roll(len(own) // 2)
    return F.cross_entropy(cosines.masked_fill(itself, -torch.inf), partners)


class Simclr(Method):
    """See `farreach_workloads.vision.selfsup.method.Method`."""

    def __init__(self, config: PretrainConfig, span: Span) -> None:
        """Make the network; raises ConfigError as `make_encoder` does."""
        assert isinstance(config.method, SimclrConfig)
        self._simclr = config.method
        self.model: Student = Student(config, config.method, [config.method.hidden])

    @property
    def encoder(self) -> Encoder:
        """The one that learns."""
        return self.model.encoder

    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of both views."""
        one, other = model([Seen(view_major(views["large"]))]).chunk(2)
        agreement = F.cosine_similarity(one, other, dim=1).mean().detach()
        return contrast(one, other, self._simclr.temperature), {"learner/agreement": agreement}
