"""What the driver of data-parallel training writes down: metrics, progress, events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from farreach.console import warn
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.metrics import MetricsWriter
from farreach.progress import Progress
from farreach.rundir import RunDirectory
from farreach.stopping import StopRequest

if TYPE_CHECKING:
    from farreach.learn.task import Pixels


class LearnRunConfig(Protocol):
    """What the configuration of a workload has that trains with `fit`."""

    @property
    def name(self) -> str:
        """Of the run."""

    @property
    def seed(self) -> int:
        """Everything random follows from it."""

    @property
    def training(self) -> LoopConfig:
        """Of the loop."""

    @property
    def runtime(self) -> WorkersConfig:
        """Of the workers."""

    def model_dump(self) -> dict[str, Any]:
        """As a tree."""


class Report:
    """The driver's side: metrics, progress, events, and whether to stop."""

    def __init__(
        self, config: LearnRunConfig, run: RunDirectory, stop: StopRequest, step: int | None
    ) -> None:
        """Open the files; `step` of the checkpoint that the run continues from."""
        self._run, self._stop = run, stop
        self._metrics = MetricsWriter(run, step)
        self._name = config.name
        self._progress: Progress | None = None
        self._reached: tuple[int, float | None] = (0, None)
        self._remarks: set[str] = set()
        self._fields: dict[str, str | float] = {}

    def begin(self, step: int, total: int) -> None:
        """Show progress from here on; workers that begin again log again what they redo."""
        if self._progress is None:
            self._progress = Progress(self._name, total, "updates")
        else:
            self._metrics.close()
            self._metrics = MetricsWriter(self._run, step)
        self._reached = (step, None)
        self._progress.update(step, self._fields)

    def scalars(self, step: int, metrics: dict[str, float], share: float) -> None:
        """Write metrics and show the most telling ones."""
        self._reached = (step, share)
        self.evaluated(step, metrics)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """As `scalars`, of a step that training may have left behind."""
        self._metrics.scalars(step, metrics)
        shown = {
            "learner/loss": "loss",
            "throughput/samples_per_s": "samples/s",
            "evaluation/top1": "top-1",
            "evaluation/mean_iou": "mean IoU",
            "evaluation/box_ap": "box AP",
            "evaluation/knn_top1": "k-NN top-1",
            "evaluation/ndcg@10": "nDCG@10",
        }
        self._fields |= {label: metrics[name] for name, label in shown.items() if name in metrics}
        if self._progress is not None:
            reached, share = self._reached
            self._progress.update(reached, self._fields, share)

    def picture(self, step: int, name: str, picture: Pixels) -> None:
        """Show it in TensorBoard."""
        self._metrics.figure(step, name, picture)

    def remark(self, step: int, text: str) -> None:
        """Say it, the first time."""
        if text not in self._remarks:
            self._remarks.add(text)
            self._run.event("remark", updates=step, text=text)
            warn(f"note      {text}")

    def checkpoint(self, step: int, name: str) -> None:
        """Note it down."""
        self._metrics.flush()
        self._run.event("checkpoint", path=name, updates=step)

    def joined(self, rank: int, pid: int) -> None:
        """A worker has begun, for the first time or again."""
        self._run.event("worker", rank=rank, pid=pid)

    def stop_asked(self) -> bool:
        """Whether a signal came."""
        return self._stop.signum is not None

    def wants_to_look(self) -> bool:
        """One process has no others to look after."""
        return False

    def is_leaving(self) -> bool:
        """Never."""
        return False

    def leaving(self, nodes: list[str]) -> None:
        """Machines will be taken away soon; a checkpoint follows."""
        self._run.event("preemption", nodes=nodes)

    def hparams(self, config: dict[str, Any], metrics: dict[str, float]) -> None:
        """Log the flat config beside the final metrics."""
        self._metrics.hparams(config, metrics)

    def close(self) -> None:
        """Close the files."""
        if self._progress is not None:
            self._progress.close()
        self._metrics.close()
