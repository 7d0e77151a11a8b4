"""What the driver of data-parallel training writes down: metrics, progress, events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from farreach.actors.chaos import ChaosConfig
from farreach.console import warn
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.metrics import MetricsWriter
from farreach.progress import Progress
from farreach.rundir import RunDirectory
from farreach.stopping import StopRequest
from farreach.watch import COMMON, Rule, Watch

if TYPE_CHECKING:
    from farreach.actors.witness import Whereabouts
    from farreach.failures import Fault
    from farreach.learn.task import Pixels


RULES = (
    Rule(
        "data",
        "throughput/data_wait_share",
        lambda share: share > 0.5,
        "the workers wait for their samples {value:.0%} of the time: what prepares them is slower "
        "than the model. Raise runtime.loaders and runtime.cpus, or store smaller samples.",
    ),
)


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

    @property
    def chaos(self) -> ChaosConfig:
        """Faults on purpose."""

    def model_dump(self) -> dict[str, Any]:
        """As a tree."""


class Report:
    """The driver's side: metrics, progress, events, and whether to stop."""

    def __init__(
        self, config: LearnRunConfig, run: RunDirectory, stop: StopRequest, step: int | None
    ) -> None:
        """Open the files; `step` of the checkpoint that the run continues from."""
        self._run, self._stop = run, stop
        self._watch = Watch(run, (*COMMON, *RULES))
        self._metrics = MetricsWriter(run, step, self._watch)
        self._name = config.name
        self._progress: Progress | None = None
        self._reached: tuple[int, float | None] = (0, None)
        self._saved = step or 0
        self._fields: dict[str, str | float] = {}

    def begin(self, step: int, total: int) -> None:
        """Show progress from here on; workers that begin again log again what they redo."""
        if self._progress is None:
            self._progress = Progress(self._name, total, "updates")
        else:
            self._metrics.close()
            self._metrics = MetricsWriter(self._run, step, self._watch)
            lost = max(0, self._reached[0] - step)
            self._run.event("recovered", role="worker", updates=step, lost_updates=lost)
        self._reached = (step, None)
        self._progress.update(step, self._fields)

    def scalars(self, step: int, metrics: dict[str, float], share: float) -> None:
        """Write metrics and show the most telling ones."""
        self._reached = (step, share)
        self.evaluated(step, metrics | {"training/share": share, "training/updates": float(step)})

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
        self._watch.remark(step, text)

    def checkpoint(self, step: int, name: str) -> None:
        """Note it down."""
        self._saved = step
        self._metrics.flush()
        self._run.event("checkpoint", path=name, updates=step)

    def joined(self, rank: int, place: Whereabouts) -> None:
        """A worker has begun, for the first time or again."""
        self._run.event("worker", rank=rank, pid=place.pid, node=place.host, node_id=place.node)

    def helper(self, role: str, place: Whereabouts) -> None:
        """A process that the first worker has begun is there, for the first time or again."""
        self._run.event("actors", pids={role: place.pid}, nodes={role: place.host})

    def helper_died(self, role: str, fault: Fault, lost: str, then: str) -> None:
        """Nobody watches the processes of a run without workers, which has none."""
        self.log(f"{role} has died: {fault.text}. Lost: {lost}; {then}")

    def lost(self) -> str:
        """What is done again if training goes on from the newest checkpoint."""
        return f"{max(0, self._reached[0] - self._saved):,} updates since the last checkpoint"

    def next(self) -> str:
        """Where it would go on."""
        return f"the checkpoint after update {self._saved:,}" if self._saved else "the beginning"

    def log(self, line: str) -> None:
        """Show a line that stays in the terminal."""
        if self._progress is None:
            warn(line)
        else:
            self._progress.log(line)

    def stop_asked(self) -> bool:
        """Whether a signal came."""
        return self._stop.signum is not None

    def wants_to_look(self) -> bool:
        """One process has no others to look after."""
        return False

    def is_leaving(self) -> bool:
        """Never."""
        return False

    def is_last_moment(self) -> bool:
        """Never."""
        return False

    def rest(self) -> None:
        """Nothing leaves, and nobody asks."""

    def hparams(self, config: dict[str, Any], metrics: dict[str, float]) -> None:
        """Log the flat config beside the final metrics."""
        self._metrics.hparams(config, metrics)

    def close(self) -> None:
        """Close the files."""
        if self._progress is not None:
            self._progress.close()
        self._metrics.close()
