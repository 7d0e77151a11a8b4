"""What a method of self-supervised pretraining is to the task that trains it.

One file per method; each has its student network first, then the method with, in this order:
`loss`, `before_update`, `after_update`, `state` and `restore`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from farreach.learn.task import Batch
from farreach_workloads.vision.selfsup.encoder import Encoder


class Span(NamedTuple):
    """How long training is.

    Attributes:
        per_epoch: updates of an epoch.
        length: updates until the schedules would end; training may end before.
    """

    per_epoch: float
    length: float

    def done(self, step: int) -> float:
        """Share of the schedules after `step` updates, in [0, 1]."""
        return min(1.0, step / max(1.0, self.length))


class Method(ABC):
    """One object per worker; see `farreach.learn.task.Task` for when what is called.

    Attributes:
        model: all that learns.
        companions: networks that follow it.
    """

    model: nn.Module
    companions: Sequence[nn.Module] = ()

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """Whose features are evaluated and exported."""

    @property
    def free(self) -> Sequence[nn.Parameter]:
        """Parameters that are neither decayed nor clipped, such as prototypes."""
        return ()

    @abstractmethod
    def loss(
        self, model: nn.Module, views: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of views `large` (b, v, 3, s, s) and `small`, float32 and normalised; and metrics."""

    def scores(self, images: Tensor) -> Tensor | None:
        """Of normalised images (b, 3, h, w) with prototypes, (b, k); None: there are none."""
        return None

    def before_update(self, step: int) -> None:
        """Gradients are there, and some may be left out."""
        return

    def after_update(self, step: int) -> None:
        """The target network follows."""
        return

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides networks and optimizer."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        return


def view_major(views: Tensor) -> Tensor:
    """(b, v, 3, h, w) → (v × b, 3, h, w): all images of the first view, then of the second."""
    return views.transpose(0, 1).flatten(0, 1)
