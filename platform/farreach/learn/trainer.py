"""Runs the loop: in this process, or in Ray Train workers that the driver watches.

The only file that knows Ray Train. Workers import the run's workload, take its task, and continue
from the newest checkpoint in the run directory, which all of them and the driver must see. The
first worker's numbers pass through a small actor to the driver, which alone writes metrics; the
driver's request to stop takes the same way back. Evaluation may have an actor of its own; see
`beside.py`.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from farreach import config as configs
from farreach import runtime
from farreach.checkpoint import CheckpointStore
from farreach.errors import ActorError, ConfigError, FarreachError
from farreach.learn.beside import SideEvaluation, beside, reserved
from farreach.learn.loop import Loop
from farreach.learn.place import Place
from farreach.learn.report import LearnRunConfig, Report
from farreach.learn.settings import WorkersConfig
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from farreach.checkpoint import Checkpoint
    from farreach.learn.task import Pixels, Task

POLL_S = 0.3
# Seconds between two looks of the first worker at whether to stop.
ASK_EVERY_S = 1.0
# Seconds between two looks of all workers at whether machines are about to be taken away.
LOOK_EVERY_S = 10.0


# The configuration → the task of one worker.
MakeTask = Callable[[Any], "Task"]


def fit(
    config: LearnRunConfig,
    run: RunDirectory,
    checkpoint: Checkpoint | None,
    make_task: MakeTask,
) -> dict[str, float]:
    """Train the workload's task to the end; the final metrics.

    Args:
        config: of the run.
        run: its directory, which every worker must see.
        checkpoint: to continue from.
        make_task: of a module that workers can import.

    Raises:
        Stopped: the run was asked to stop; a last checkpoint is written.
        ConfigError: there are more workers than samples per update.
        ActorError: workers died more often than `runtime.max_failures`.
        FarreachError: what a worker raised.
    """
    workers = config.runtime.workers
    if workers > config.training.batch:
        raise ConfigError(
            f"training.batch: {config.training.batch} samples leave some of {workers} workers "
            "without any. Raise it, or lower runtime.workers."
        )
    CheckpointStore(run.checkpoints).release_all()
    step = None if checkpoint is None else checkpoint.step
    if workers == 0:
        with StopRequest() as stop:
            report = Report(config, run, stop, step)
            try:
                place = Place(device=_device_here(config))
                loop = make_loop(config, run, make_task, place, report)
                if checkpoint is not None:
                    loop.restore(checkpoint)
                metrics, stopped = loop.run()
                return _ended(config, report, metrics, stopped, stop)
            finally:
                report.close()
    needed = (config.runtime.min_workers or workers) * config.runtime.cpus
    needed += reserved(config.runtime, 0.0)[0]
    settings = ["runtime.workers", "runtime.cpus", "runtime.evaluators"]
    with runtime.connection(needed, settings=settings), StopRequest() as stop:
        report = Report(config, run, stop, step)
        try:
            with beside(config, run, make_task, report, checkpoint) as side:
                metrics, stopped = _fit_with_ray(config, run, make_task, report, side)
            return _ended(config, report, metrics, stopped, stop)
        finally:
            report.close()


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
    config: LearnRunConfig, run: RunDirectory, make_task: MakeTask, place: Place, outlet: Any
) -> Loop:
    """The loop of one worker; the model's start follows from the seed alone."""
    torch.manual_seed(config.seed)
    store = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
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
) -> tuple[dict[str, float], bool]:
    """Run Ray Train in a thread of its own, and pass on what its first worker says."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    arguments = {
        "run": str(run.path.resolve()),
        "task": f"{make_task.__module__}:{make_task.__name__}",
        "board": board,
    }
    use_gpu = config.runtime.gpus > 0
    resources = {"CPU": config.runtime.cpus} | ({"GPU": config.runtime.gpus} if use_gpu else {})
    trainer = TorchTrainer(
        _work,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_sizes(config.runtime), use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str((run.path / "ray").resolve()),
            failure_config=FailureConfig(max_failures=config.runtime.max_failures),
        ),
    )
    failure: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=train, name="ray-train", daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(POLL_S)
        if not asked and (report.stop_asked() or side.failure is not None):
            asked = True
            board.ask_to_stop.remote()
        _pass_on(ray.get(board.take.remote()), report, side)
        side.tend()
    _pass_on(ray.get(board.take.remote()), report, side)
    ended: tuple[dict[str, float], bool] | str | None = ray.get(board.outcome.remote())
    if isinstance(ended, str):
        raise FarreachError(ended)
    if ended is None:
        cause = " ".join(str(failure[0]).split())[:400] if failure else "it left no reason"
        raise ActorError(
            f"the workers died more often than runtime.max_failures ({config.runtime.max_failures})"
            f": {cause}"
        )
    if side.failure is not None:
        raise side.failure
    metrics, stopped = ended
    stopped = stopped or not side.wait(report.stop_asked)
    return metrics | side.metrics, stopped


def _sizes(settings: WorkersConfig) -> Any:
    """How many workers there are, or from how many to how many."""
    least = settings.min_workers
    return settings.workers if least is None else (least, settings.workers)


def _pass_on(
    messages: list[tuple[str, tuple[Any, ...]]], report: Report, side: SideEvaluation
) -> None:
    for kind, content in messages:
        getattr(side if kind == "evaluation_due" else report, kind)(*content)


class _Board:
    """Between the first worker and the driver."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, tuple[Any, ...]]] = []
        self._stop = False
        self._outcome: tuple[dict[str, float], bool] | str | None = None

    def put(self, kind: str, content: tuple[Any, ...]) -> None:
        self._messages.append((kind, content))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        taken, self._messages = self._messages, []
        return taken

    def ask_to_stop(self) -> None:
        self._stop = True

    def stop_asked(self) -> bool:
        return self._stop

    def end(self, outcome: tuple[dict[str, float], bool] | str) -> None:
        self._outcome = outcome

    def outcome(self) -> tuple[dict[str, float], bool] | str | None:
        return self._outcome


class _Remote:
    """The first worker's outlet."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._asked_s = self._looked_s = time.monotonic()
        self._answer = board.stop_asked.remote()
        self._leaving: list[str] = []

    def begin(self, step: int, total: int) -> None:
        self._board.put.remote("begin", (step, total))

    def scalars(self, step: int, metrics: dict[str, float], share: float) -> None:
        self._board.put.remote("scalars", (step, metrics, share))

    def picture(self, step: int, name: str, picture: Pixels) -> None:
        self._board.put.remote("picture", (step, name, picture))

    def remark(self, step: int, text: str) -> None:
        self._board.put.remote("remark", (step, text))

    def checkpoint(self, step: int, name: str) -> None:
        self._board.put.remote("checkpoint", (step, name))

    def evaluation_due(self, step: int, name: str) -> None:
        self._board.put.remote("evaluation_due", (step, name))

    def stop_asked(self) -> bool:
        import ray

        if time.monotonic() - self._asked_s < ASK_EVERY_S:
            return False
        self._asked_s = time.monotonic()
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return False
        answer = bool(ray.get(self._answer))
        self._answer = self._board.stop_asked.remote()
        return answer

    def wants_to_look(self) -> bool:
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = time.monotonic()
        return True

    def is_leaving(self) -> bool:
        import ray.train

        info = ray.train.get_preemption_info()
        nodes = [] if info is None else info.preempted_node_ids
        if nodes == self._leaving:
            return False
        self._leaving = nodes
        if nodes:
            self._board.put.remote("leaving", (nodes,))
        return bool(nodes)


def _work(arguments: dict[str, Any]) -> None:
    """One worker, from the newest checkpoint to the end."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    run = RunDirectory.open(Path(arguments["run"]))
    config: Any = configs.load(run.config_path).config
    place = Place(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        config.runtime.sharded,
    )
    module, _, name = arguments["task"].partition(":")
    board = arguments["board"]
    if isinstance(ray.get(board.outcome.remote()), str):
        return  # what the user has to mend: Ray Train has begun once more in vain
    ray.get(board.put.remote("joined", (place.rank, os.getpid())))
    try:
        make_task = getattr(importlib.import_module(module), name)
        loop = make_loop(config, run, make_task, place, _Remote(board))
        checkpoint = CheckpointStore(run.checkpoints).newest()
        if checkpoint is not None:
            loop.restore(checkpoint)
        outcome = loop.run()
    except FarreachError as error:
        ray.get(board.end.remote(str(error)))
        raise  # the others may be waiting for this worker
    if place.is_first:
        ray.get(board.end.remote(outcome))
