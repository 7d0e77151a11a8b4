"""What updates tell: on its way from the device, and summed up between two reports."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from farreach.learn.task import Batch

# Seconds between two reports of the metrics of updates.
REPORT_EVERY_S = 2.0
# Metrics of a task that end so, such as tokens, are shown as a rate too.
PER_SAMPLE = "_per_sample"
LOSS = "learner/loss"


class Told:
    """Metrics of an update, which a GPU may still be computing while the next one is prepared.

    Attributes:
        step: number of the update.
        parts: this worker's share of its batch.
    """

    def __init__(self, step: int, parts: list[Batch]) -> None:
        """None yet."""
        self.step, self.parts = step, parts
        self._names: list[str] = []
        self._values: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def add(self, names: Sequence[str], values: Tensor) -> None:
        """Take metrics, (len(names),), without waiting for them."""
        self._names += names
        if values.device.type == "cuda":
            here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            here.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
            values = here
        self._values.append(values)

    def read(self) -> dict[str, float]:
        """All of them, as soon as they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers = [number for values in self._values for number in values.tolist()]
        return dict(zip(self._names, numbers, strict=True))


class Sums:
    """Means of metrics, and rates, since the last time they were read."""

    def __init__(self) -> None:
        """Of nothing yet."""
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._since = time.monotonic()
        self._wait_s = self._busy_s = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        """Take those of an update."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value)

    def took(self, *, wait_s: float, busy_s: float) -> None:
        """Take note how long an update had to wait for its batch, and took then."""
        self._wait_s += wait_s
        self._busy_s += busy_s

    def leave_out(self, seconds: float) -> None:
        """Take note that no updates were to be expected in the last seconds."""
        self._since += seconds

    def is_due(self) -> bool:
        """Whether it is time to read them."""
        return bool(self._values) and time.monotonic() - self._since >= REPORT_EVERY_S

    def means(self, batch: int) -> dict[str, float]:
        """Of all updates since the last time, with `batch` samples each; begins anew."""
        elapsed = time.monotonic() - self._since
        updates = len(self._values[LOSS])
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        means["throughput/samples_per_s"] = updates * batch / elapsed
        for name in [name for name in means if name.endswith(PER_SAMPLE)]:
            of_what = name.rpartition("/")[2].removesuffix(PER_SAMPLE)
            rate = means[name] * means["throughput/samples_per_s"]
            means[f"throughput/{of_what}_per_s"] = rate
        # Of updates alone: evaluations and checkpoints are no waiting.
        means["throughput/data_wait_share"] = self._wait_s / (self._wait_s + self._busy_s)
        means["throughput/updates_per_s"] = updates / elapsed
        self._reset()
        return means
