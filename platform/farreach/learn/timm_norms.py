"""timm's layer of batch normalisation and activation, over all workers.

Apart from `collectives`, for importing timm takes seconds and text encoders need nothing of it.
"""

from __future__ import annotations

from timm.layers import BatchNormAct2d
from torch import Tensor

from farreach.learn.collectives import normal, workers


class JoinedBatchNormAct2d(BatchNormAct2d):  # type: ignore[misc]
    """The same over the pixels of all workers' images."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        if not self.training or workers() == 1:
            alone: Tensor = super().forward(x)
            return alone
        activated: Tensor = self.act(self.drop(normal(self, x)))
        return activated
