"""Runs the loop: in this process, or in Ray Train workers that the driver watches.

The only file that knows Ray Train. Workers import the run's workload, take its task, and continue
from the newest checkpoint in the run directory, which all of them and the driver must see, on a
disk that they share or at a URI. The first worker's numbers pass through a small actor to the
driver, which alone writes metrics; the driver's request to stop takes the same way back. Evaluation
may have an actor of its own; see `beside.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from farreach import config as configs
from farreach import runtime
from farreach.actors.guard import Guard
from farreach.actors.witness import Whereabouts, whereabouts
from farreach.checkpoint import CheckpointStore
from farreach.errors import ActorError, ConfigError, FarreachError
from farreach.failures import Fault, fault_of
from farreach.imports import imported
from farreach.learn.beside import SideEvaluation, beside
from farreach.learn.board import DriversLink, Link, Outcome, Remote
from farreach.learn.demand import demand, worker_resources
from farreach.learn.keeping import newest
from farreach.learn.loop import Loop
from farreach.learn.place import Place
from farreach.learn.report import LearnRunConfig, Report
from farreach.learn.settings import WorkersConfig
from farreach.logs import name_process
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from farreach.checkpoint import Checkpoint
    from farreach.cluster.demand import Demand
    from farreach.learn.task import Task

POLL_S = 0.3
TAKEN_S = 2.0
START_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
FIXED_START_S, ELASTIC_START_S = 900, 20


# The configuration → the task of one worker.
MakeTask = Callable[[Any], "Task"]


def fit(
    config: LearnRunConfig,
    run: RunDirectory,
    checkpoint: Checkpoint | None,
    make_task: MakeTask,
    helpers: Sequence[Demand] = (),
) -> dict[str, float]:
    """Train the workload's task to the end; the final metrics.

    Args:
        config: of the run.
        run: its directory, which every worker must see, be it at a URI.
        checkpoint: to continue from.
        make_task: of a module that workers can import.
        helpers: what the task's processes beside the workers ask Ray for.

    Raises:
        Stopped: the run was asked to stop; a last checkpoint is written.
        ConfigError: there are more workers than samples per update, or there shall be chaos among
            none.
        ActorError: workers died more often than `runtime.max_failures`.
        FarreachError: what a worker raised.
    """
    workers = config.runtime.workers
    if workers > config.training.batch:
        raise ConfigError(
            f"training.batch: {config.training.batch} samples leave some of {workers} workers "
            "without any. Raise it, or lower runtime.workers."
        )
    if workers == 0 and config.chaos.needs_processes:
        raise ConfigError(
            "chaos: there is nobody to kill in a run of one process. Set runtime.workers to 1 or "
            "more, or leave chaos out."
        )
    if config.training.patience is not None and config.runtime.evaluators:
        raise ConfigError(
            "training.patience: training cannot end by scores that come later. Set "
            "runtime.evaluators=0, or leave patience out."
        )
    keep = config.training.keep_checkpoints
    store = run.shared_store(keep) if workers else CheckpointStore(run.checkpoints, keep)
    store.release_all()
    step = None if checkpoint is None else checkpoint.step
    if workers == 0:
        with StopRequest() as stop:
            report = Report(config, run, stop, step)
            try:
                place = Place(device=_device_here(config))
                loop = make_loop(config, store, make_task, place, report)
                if checkpoint is not None:
                    loop.restore(checkpoint)
                metrics, stopped = loop.run()
                return _ended(config, report, metrics, stopped, stop)
            finally:
                report.close()
    settings = ["runtime.workers", "runtime.cpus", "runtime.gpus", "runtime.evaluators"]
    with (
        _imported_meanwhile("ray.train.torch"),
        runtime.connection([*demand(config), *helpers], settings=settings),
        StopRequest() as stop,
    ):
        _begin_coordinator()
        report = Report(config, run, stop, step)
        try:
            with (
                closing(Guard(run, config.chaos, report.log)) as guard,
                beside(config, run, make_task, report, checkpoint, guard) as side,
            ):
                metrics, stopped = _fit_with_ray(config, run, make_task, report, side, guard)
            return _ended(config, report, metrics, stopped, stop)
        finally:
            report.close()


@contextmanager
def _imported_meanwhile(module: str) -> Iterator[None]:
    """Import a module that takes long while what comes next mostly waits."""
    imported("ray")  # which both need
    thread = threading.Thread(target=imported, args=(module,), daemon=True)
    thread.start()
    yield


def _begin_coordinator() -> None:
    """Begin the actor that Ray Train's controller would begin first, and wait for."""
    with suppress(ImportError, AttributeError):  # another Ray has it elsewhere, and begins it later
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def _device_here(config: LearnRunConfig) -> torch.device:
    if config.runtime.gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"runtime.gpus: {config.runtime.gpus:g}, but PyTorch sees no GPU here. Set it to 0, or "
            "install a PyTorch that was built for the GPU."
        )
    return torch.device("cuda")


def make_loop(
    config: LearnRunConfig, store: CheckpointStore, make_task: MakeTask, place: Place, outlet: Any
) -> Loop:
    """The loop of one worker; the model's start follows from the seed alone."""
    torch.manual_seed(config.seed)
    task = make_task(config)
    return Loop(task, config.training, config.runtime, config.seed, place, outlet, store)


def _ended(
    config: LearnRunConfig,
    report: Report,
    metrics: dict[str, float],
    stopped: bool,
    stop: StopRequest,
) -> dict[str, float]:
    if stopped:
        assert stop.signum is not None
        raise Stopped(stop.signum)
    report.hparams(configs.flat(config.model_dump()), metrics)
    return metrics


def _fit_with_ray(
    config: LearnRunConfig,
    run: RunDirectory,
    make_task: MakeTask,
    report: Report,
    side: SideEvaluation,
    guard: Guard,
) -> tuple[dict[str, float], bool]:
    """Have the workers train; the final metrics, and whether the run was asked to stop."""
    link = DriversLink()
    driver = _Driver(config, report, side, guard, link)
    task = f"{make_task.__module__}:{make_task.__name__}"
    arguments = {"run": run.address, "task": task, "link": link.worker()}
    try:
        for _ in range(1 + config.runtime.max_failures):
            ended = driver.watch(_trainer(config, run, arguments))
            if ended is not None or not driver.is_to_repeat:
                break
    finally:
        link.take_down()
    if isinstance(ended, str):
        raise FarreachError(ended)
    if ended is None:
        raise ActorError(
            f"the workers died more often than runtime.max_failures ({config.runtime.max_failures})"
            f": {driver.last_words()}"
        )
    if side.failure is not None:
        raise side.failure
    metrics, stopped = ended
    stopped = stopped or not side.wait(report.stop_asked)
    return metrics | side.metrics, stopped


def _trainer(config: LearnRunConfig, run: RunDirectory, arguments: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.callback import ControllerCallback

    from farreach.learn.group import GroupConfig

    class Deaths(UserCallback):
        """Tells the driver what has ended workers; lives in Ray Train's controller."""

        def __init__(self, link: Link) -> None:
            self._link = link

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
            faults = {rank: fault_of(error) for rank, error in worker_exceptions.items()}
            self._link.ask("train", False)
            self._link.ask("put", "died", (faults,))
            # What comes next ends all workers, and the driver could not tell who had ended before.
            self._link.wait_until_taken(TAKEN_S)

    class Sizes(ControllerCallback):
        """Has workers save before all are ended to begin anew as more or fewer; lives there too."""

        def __init__(self, link: Link) -> None:
            self._link = link

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            self._link.pause()

    settings = config.runtime
    use_gpu = settings.gpus > 0
    # The type checker knows an older class of that name.
    growth: dict[str, Any] = {"elastic_resize_monitor_interval_s": settings.grow_every_s}
    # Nor does it know that any backend will do.
    group: Any = GroupConfig("cpu:gloo,cuda:nccl" if use_gpu else "gloo")
    callbacks: list[Any] = [Deaths(arguments["link"]), Sizes(arguments["link"])]
    return TorchTrainer(
        _work,
        train_loop_config=arguments,
        torch_config=group,
        scaling_config=ScalingConfig(
            num_workers=_sizes(settings),
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(settings),
            **growth,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str((run.path / "ray").resolve()),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            callbacks=callbacks,
        ),
    )


class _Driver:
    """Runs Ray Train in a thread of its own, and acts on what its workers say.

    Attributes:
        is_to_repeat: whether what ended it was no worker, so that it may begin again.
    """

    def __init__(
        self,
        config: LearnRunConfig,
        report: Report,
        side: SideEvaluation,
        guard: Guard,
        link: DriversLink,
    ) -> None:
        self._most, self._sizes = config.runtime.max_failures, _sizes(config.runtime)
        self._report, self._side, self._guard, self._link = report, side, guard, link
        self._asked, self._deaths = False, 0
        self._failure: BaseException | None = None
        self.is_to_repeat = False

    def watch(self, trainer: Any) -> Outcome | None:
        """How training has ended; None if it did not come to its end."""
        self._failure = None
        thread = threading.Thread(target=self._run, args=(trainer,), name="ray-train", daemon=True)
        with _start_timeout(self._sizes):
            thread.start()
            while thread.is_alive():
                thread.join(POLL_S)
                if not self._asked and (self._report.stop_asked() or self._side.failure):
                    self._asked = True
                    self._link.ask_to_stop()
                self._take()
                self._guard.tend()
                self._side.tend()
        ended = self._take()
        self.is_to_repeat = type(self._failure).__name__ != "WorkerGroupError"
        return ended

    def _run(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._failure = error

    def _take(self) -> Outcome | None:
        messages, ended = self._link.take()
        own: dict[str, Callable[..., None]] = {
            "joined": self._joined,
            "died": self._died,
            "leaving": self._leaving,
            "evaluation_due": self._side.evaluation_due,
            "helper": self._helper,
            "helper_died": self._helper_died,
        }
        for kind, content in messages:
            act = own[kind] if kind in own else getattr(self._report, kind)
            act(*content)
        return ended

    def _joined(self, rank: int, place: Whereabouts) -> None:
        role = f"worker-{rank}"
        if role in self._guard.leaving():  # Ray Train says nothing of deaths that it expected
            report = self._guard.look_into(role, Fault((), "", is_preemption=True))
            then = f"all workers started again from {self._report.next()}"
            self._guard.tell(report, lost=self._report.lost(), then=then)
        self._guard.watch({role: place})
        self._report.joined(rank, place)

    def _helper(self, role: str, place: Whereabouts) -> None:
        self._guard.watch({role: place})
        self._report.helper(role, place)

    def _helper_died(self, role: str, fault: Fault, lost: str, then: str) -> None:
        self._guard.tell(self._guard.look_into(role, fault), lost=lost, then=then)

    def _leaving(self, nodes: list[str], deadline: float | None, ranks: list[int]) -> None:
        self._guard.leave(nodes, deadline, [f"worker-{rank}" for rank in ranks])

    def _died(self, faults: dict[int, Fault]) -> None:
        """Tell of workers that died; those that only lost touch with them are no deaths."""
        found = {f"worker-{rank}": fault for rank, fault in faults.items()}
        if any("FarreachError" in fault.names for fault in found.values()):
            return  # the run ends with its message
        reports = self._guard.look_into_all(found)
        if all(report.cause == "preempted" for report in reports):
            then = f"all workers start again from {self._report.next()}"
        else:
            self._deaths += 1
            then = f"all workers start again from {self._report.next()}, "
            then += f"failure {self._deaths} of {self._most}"
        if self._deaths > self._most:
            then = f"gives up: more failures than runtime.max_failures ({self._most})"
        for report in reports:
            self._guard.tell(report, lost=self._report.lost(), then=then)

    def last_words(self) -> str:
        """Of Ray Train."""
        return " ".join(str(self._failure or "it left no reason").split())[:400]


@contextmanager
def _start_timeout(sizes: Any) -> Iterator[None]:
    """How long Ray Train waits for room for all workers before it tries anew.

    Where fewer workers will do, it should soon try with them; where they will not, a machine may
    have to be launched.
    """
    value = FIXED_START_S if isinstance(sizes, int) else ELASTIC_START_S
    is_ours = START_VARIABLE not in os.environ
    if is_ours:
        os.environ[START_VARIABLE] = str(value)
    try:
        yield
    finally:
        if is_ours:
            del os.environ[START_VARIABLE]


def _sizes(settings: WorkersConfig) -> Any:
    """How many workers there are, or from how many to how many."""
    least = settings.min_workers
    return settings.workers if least is None else (least, settings.workers)


def _work(arguments: dict[str, Any]) -> None:
    """One worker, from the newest checkpoint to the end."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    run = RunDirectory.for_worker(arguments["run"])
    config: Any = configs.load(run.config_path).config
    place = Place(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        config.runtime.sharded,
    )
    name_process(f"worker-{place.rank}")
    module, _, name = arguments["task"].partition(":")
    link: Link = arguments["link"]
    if isinstance(link.ask("outcome"), str):
        return  # what the user has to mend: Ray Train has begun once more in vain
    link.ask("put", "joined", (place.rank, whereabouts()))
    try:
        make_task = getattr(imported(module), name)
        imported("torch._dynamo")  # which the first optimizer would import
        store = run.shared_store(config.training.keep_checkpoints)
        loop = make_loop(config, store, make_task, place, Remote(link))
        checkpoint = newest(store, place)
        if checkpoint is not None:
            loop.restore(checkpoint)
        if place.is_first:
            link.ask("train", True)
        outcome = loop.run()
    except FarreachError as error:
        link.ask("end", str(error))
        raise  # the others may be waiting for this worker
    if place.is_first:
        link.ask("end", outcome)
        link.ask("train", False)
