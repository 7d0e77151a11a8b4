"""What a workload tells the loop: model, data, loss, evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from farreach.learn.order import Rows
from farreach.learn.place import Place

if TYPE_CHECKING:
    from farreach.learn.outlet import Outlet

Batch = Mapping[str, Tensor]
Pixels = NDArray[np.uint8]


class Data(Protocol):
    """The samples; other processes get a copy of it."""

    def __len__(self) -> int:
        """How many samples an epoch has."""

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Samples of some rows, the same whenever they are asked for again.

        Args:
            rows: of the data, (n,).
            positions: of these rows in the order of the whole run, (n,), for random numbers.
        """


@runtime_checkable
class PartedData(Data, Protocol):
    """Data that knows which samples are best computed together, where a batch comes in parts."""

    def parts(self, rows: Rows, positions: Rows, size: int) -> list[Batch]:
        """All samples of some rows, as `batch`, in parts that take about as long.

        Args:
            rows: of the data, (n,).
            positions: as of `batch`, (n,).
            size: samples of a part on average, less than n.

        Returns:
            ⌈n / size⌉ parts.
        """


class Task(Protocol):
    """What is trained; one object per worker.

    The loop moves `model` and `companions` to the device before anything else is asked for.
    """

    @property
    def model(self) -> nn.Module:
        """All that learns, and its statistics."""

    @property
    def companions(self) -> Sequence[nn.Module]:
        """Networks that learn nothing by themselves, such as a moving average of the model.

        They are moved, split over the workers and saved as the model is.
        """

    @property
    def data(self) -> Data:
        """What it learns from."""

    @property
    def score(self) -> str:
        """Name of the metric by which the best checkpoint is chosen; more is better."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Made once, after the model has moved."""

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over a batch, and what else to show, each ().

        Random numbers come from torch's global generator, which the loop seeds for every batch of
        every worker, or from `step` (the same on all workers and for all parts of a batch).

        Args:
            model: `self.model`, or what makes its gradients those of all workers.
            batch: on the device.
            step: number of the update.
            rank: of this worker.
        """

    def before_update(self, step: int) -> None:
        """What precedes update `step`, when the gradients of all workers are there.

        Such as settings of the optimizer that follow a schedule, or gradients to be left out.
        """

    def after_update(self, step: int) -> None:
        """What follows an update, such as an average of the weights."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """Metrics `group/name`, equal on all workers.

        They call it together, and must call the model as often as one another: each may hold a
        part of its parameters.
        """

    def pictures(self) -> dict[str, Pixels]:
        """What to look at after an evaluation: `group/name` → (height, width, 3).

        All workers call it, as often as one another; the first one's are shown.
        """

    def remarks(self) -> Sequence[str]:
        """What the user should know after an evaluation: what seems to go wrong, and a remedy.

        With `runtime.evaluators` the task that has evaluated is asked, and the one that learns,
        which has not.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides model, companions and optimizer.

        All workers ask for it together, and that of the first counts.
        """

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""


@runtime_checkable
class Helped(Protocol):
    """What a task has besides that lets others work for it while it is trained."""

    def begin(self, step: int, total: int, place: Place, outlet: Outlet) -> None:
        """Training begins after `step` of `total` updates; all workers call it together.

        What the first one begins of processes it tells the outlet.
        """

    def end(self) -> None:
        """Training is over, or has failed."""
