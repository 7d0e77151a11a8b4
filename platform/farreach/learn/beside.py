"""Evaluation beside training: an actor evaluates the newest checkpoint while updates go on.

The first worker writes a checkpoint that is held, and says so. The driver has the actor evaluate
one at a time; of those that wait only the newest is kept, so that an evaluation that takes longer
than the time between two falls behind by one at most. What was found is written down as if it were
found in training, at the step of the checkpoint, which gets its score and is released.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.errors import ActorError
from farreach.learn.place import Place
from farreach.learn.restored import restored
from farreach.rundir import RunDirectory

if TYPE_CHECKING:
    from farreach.actors.guard import Guard
    from farreach.actors.services import ActorService
    from farreach.learn.report import LearnRunConfig
    from farreach.learn.settings import WorkersConfig
    from farreach.learn.task import Pixels, Task
    from farreach.learn.trainer import MakeTask

POLL_S = 0.1
ROLE = "evaluator"


class Journal(Protocol):
    """Where the driver writes what was found."""

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics `group/name` of a step that may lie behind."""

    def picture(self, step: int, name: str, picture: Pixels) -> None:
        """A picture `group/name` to look at, (height, width, 3)."""

    def remark(self, step: int, text: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Found:
    """What an evaluation has found.

    Attributes:
        checkpoint: that was evaluated.
        metrics: `group/name` → number.
        score: that of them by which the best checkpoint is chosen, if it was measured.
        seconds: that it took.
        pictures: `group/name` → (height, width, 3).
        remarks: for the user.
    """

    checkpoint: Checkpoint
    metrics: dict[str, float]
    score: float | None
    seconds: float
    pictures: dict[str, Pixels]
    remarks: list[str]


class Evaluator:
    """Evaluates checkpoints of a run, as one worker would in training; lives in the actor."""

    def __init__(
        self, config: LearnRunConfig, address: str, make_task: MakeTask, on_gpu: bool
    ) -> None:
        """Of the run at an address; the first evaluation makes the task."""
        self._config, self._address, self._make_task = config, address, make_task
        self._place = Place(device=torch.device("cuda" if on_gpu else "cpu"))

    @cached_property
    def _store(self) -> CheckpointStore:
        return RunDirectory.for_worker(self._address).shared_store()

    @cached_property
    def _task(self) -> Task:
        torch.set_num_threads(self._config.runtime.threads)
        torch.manual_seed(self._config.seed)
        task = self._make_task(self._config)
        for network in (task.model, *task.companions):
            network.to(self._place.device)
            if self._config.training.compiled:
                network.compile()
        return task

    def evaluate(self, path: Path) -> Found:
        """What the run's checkpoint in a folder of that name is worth.

        Raises:
            CheckpointError: it is damaged, or is none.
        """
        checkpoint = self._store.named(path.name)
        task = restored(self._task, checkpoint)
        begun = time.monotonic()
        with torch.no_grad():
            found = task.evaluate(self._place)
            seconds = time.monotonic() - begun
            pictures = task.pictures()
        metrics = {name: float(value) for name, value in found.items()}  # for JSON
        score = metrics.get(task.score)
        return Found(checkpoint, metrics, score, seconds, pictures, list(task.remarks()))


class Due(NamedTuple):
    """A checkpoint that is to be evaluated: its step and its folder."""

    step: int
    path: Path


class SideEvaluation:
    """The driver's side: what is evaluated, what waits, and what was found last.

    ```
    with beside(config, run, make_task, report, checkpoint) as side:
        while training():
            side.evaluation_due(step, name)  # for each that the first worker leaves
            side.tend()
        ended = side.wait(stop_asked)
    ```

    Attributes:
        metrics: of the last evaluation.
        failure: why there will be no more of them, if so.
    """

    def __init__(
        self,
        start: Callable[[], ActorService],
        run: RunDirectory,
        journal: Journal,
        guard: Guard,
        keep: int,
        max_failures: int,
    ) -> None:
        """Nothing is due yet.

        Args:
            start: makes the actor, which holds an `Evaluator`.
            run: whose checkpoints are evaluated, and where events are noted down.
            journal: for what was found.
            guard: watches the actor.
            keep: how many of the newest checkpoints stay.
            max_failures: deaths of the actor that are forgiven.
        """
        self._start, self._run, self._journal = start, run, journal
        self._store = run.shared_store(keep)
        self._max_failures = max_failures
        self._guard = guard
        self._service: ActorService | None = None
        self._place: Any = None
        self._result: Any = None
        self._running: Due | None = None
        self._waiting: Due | None = None
        self._deaths = self._left_out = 0
        self.metrics: dict[str, float] = {}
        self.failure: Exception | None = None

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Start the actor, before the workers; the newest checkpoint is due if it never was."""
        self._renew()
        if checkpoint is None or checkpoint.score is not None or "evaluated" in checkpoint.info:
            return
        self._store.hold(checkpoint.path)
        self.evaluation_due(checkpoint.step, checkpoint.path.name)

    def evaluation_due(self, step: int, name: str) -> None:
        """A held checkpoint is to be evaluated, instead of one that has waited for it so far."""
        if self._waiting is not None:
            self._left_out += 1
            self._store.release(self._waiting.path)
            self._run.event("evaluation_left_out", updates=self._waiting.step)
        self._waiting = Due(step, self._store.directory / name)
        self.tend()

    def tend(self) -> None:
        """Take what was found, and have the next one evaluated; waits for nothing."""
        if self.failure is not None:
            return
        try:
            self._greet()
            if self._running is not None and _is_there(self._result):
                self._take(self._running)
            if self._running is None and self._waiting is not None:
                self._evaluate(self._waiting)
                self._waiting = None
        except Exception as error:
            self.failure = error

    def wait(self, stop_asked: Callable[[], bool]) -> bool:
        """Wait for the last evaluation, when training has ended; False if asked to stop before.

        Raises:
            ActorError: the actor died more often than it may.
            Exception: what the evaluation raised.
        """
        self._find_lost()
        while self._running is not None or self._waiting is not None:
            self.tend()
            if self.failure is not None:
                raise self.failure
            if stop_asked():
                return False
            time.sleep(POLL_S)
        self._store.release_all()
        self._store.tidy()
        return True

    def stop(self) -> None:
        """End the actor, whatever it does."""
        if self._service is not None:
            self._service.stop()

    def _renew(self) -> None:
        """Start an actor in place of the one before."""
        self.stop()
        self._service = self._start()
        self._place = self._service.settling()

    def _evaluate(self, due: Due) -> None:
        assert self._service is not None
        self._running = due
        self._result = self._service.call("evaluate", due.path)

    def _greet(self) -> None:
        """Note down the process, once there is one."""
        from farreach.actors.services import DEATHS

        if self._place is None or not _is_there(self._place):
            return
        assert self._service is not None
        with suppress(*DEATHS):  # the evaluation tells of its death
            place = self._service.settled(self._place)
            self._guard.watch({ROLE: place})
            self._run.event("evaluator", pid=place.pid, node=place.host)
        self._place = None

    def _take(self, due: Due) -> None:
        """Write down what was found; if the actor has died, begin again with another."""
        import ray

        from farreach.actors.services import is_raised, user_error

        try:
            found: Found = ray.get(self._result)
        except ray.exceptions.RayError as error:
            if is_raised(error):
                raise user_error(error) from error
            self._book_death(due, error)
            self._renew()
            self._evaluate(due)
            return
        more = {"evaluation/seconds": found.seconds, "evaluation/left_out": float(self._left_out)}
        self._journal.evaluated(due.step, found.metrics | more)
        for name, picture in found.pictures.items():
            self._journal.picture(due.step, name, picture)
        for text in found.remarks:
            self._journal.remark(due.step, text)
        self._store.add_score(found.checkpoint, found.score, {"evaluated": found.metrics})
        self.metrics, self._running = found.metrics, None

    def _book_death(self, due: Due, error: Exception) -> None:
        report = self._guard.look_into(ROLE, error)
        self._deaths += report.cause != "preempted"
        gives_up = self._deaths > self._max_failures
        then = f"a new one begins it again (death {self._deaths} of {self._max_failures})"
        if gives_up:
            then = f"gives up: more deaths than runtime.max_failures ({self._max_failures})"
        self._guard.tell(report, lost=f"its evaluation of update {due.step:,}", then=then)
        if gives_up:
            raise ActorError(
                f"the evaluator died more often than runtime.max_failures ({self._max_failures}): "
                f"{report.detail}. If it ran out of memory, use a larger machine, or set "
                "runtime.evaluators to 0."
            )

    def _find_lost(self) -> None:
        """Let the newest checkpoint be due, if the worker that wrote it died before it said so."""
        known = {due.path for due in (self._running, self._waiting) if due is not None}
        lost = set(self._store.held()) - known
        newest = self._store.newest() if lost else None
        if newest is not None and newest.path in lost:
            self.evaluation_due(newest.step, newest.path.name)


@contextmanager
def beside(
    config: LearnRunConfig,
    run: RunDirectory,
    make_task: MakeTask,
    journal: Journal,
    checkpoint: Checkpoint | None,
    guard: Guard,
) -> Iterator[SideEvaluation]:
    """Evaluation beside the training in here; without `runtime.evaluators` nothing is ever due.

    Args:
        config: of the run.
        run: its directory, which the actor must see.
        make_task: of a module that the actor can import.
        journal: for what was found.
        checkpoint: the newest, if the run goes on.
        guard: watches the actor.
    """
    import ray

    settings = config.runtime
    cpus, gpus = reserved(settings, ray.cluster_resources().get("GPU", 0.0))

    def start() -> ActorService:
        from farreach.actors.services import ActorService

        arguments = (config, run.address, make_task, gpus > 0)
        return ActorService(ROLE, Evaluator, arguments, num_cpus=cpus, num_gpus=gpus)

    keep = config.training.keep_checkpoints
    side = SideEvaluation(start, run, journal, guard, keep, settings.max_failures)
    try:
        if settings.evaluators > 0:
            if settings.gpus > gpus:
                journal.remark(0, "the evaluator has no GPU of its own and computes on CPUs")
            side.begin(checkpoint)
        yield side
    finally:
        side.stop()


def reserved(settings: WorkersConfig, gpus_there: float) -> tuple[float, float]:
    """CPUs and GPUs of the evaluator: those of one more worker, the latter if so many are left.

    None where the number of workers may change: Ray Train takes all of a machine for free then,
    and would wait for ever for what the evaluator has.
    """
    if settings.evaluators == 0 or settings.min_workers is not None:
        return 0.0, 0.0
    are_left = (settings.workers + 1) * settings.gpus <= gpus_there
    return settings.cpus, settings.gpus if are_left else 0.0


def _is_there(reference: Any) -> bool:
    import ray

    done, _ = ray.wait([reference], timeout=0)
    return bool(done)
