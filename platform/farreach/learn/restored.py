"""A task as a checkpoint has left it, outside of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.learn.keeping import as_tensors
from farreach.learn.place import Place
from farreach.learn.report import LearnRunConfig
from farreach.learn.shards import whole_state
from farreach.learn.task import Task

AnyTask = TypeVar("AnyTask", bound=Task)


class Evaluable(Task, Protocol):
    """A task whose evaluation can be shortened."""

    def only(self, count: int) -> None:
        """Evaluate on `count` of the held-out samples alone."""


def restored(task: AnyTask, checkpoint: Checkpoint) -> AnyTask:
    """The task with a checkpoint's weights and state, in evaluation mode."""
    state = whole_state(checkpoint)
    task.model.load_state_dict(as_tensors(state["model"]))
    for network, theirs in zip(task.companions, state.get("companions", []), strict=True):
        network.load_state_dict(as_tensors(theirs))
    task.optimizer()  # it may make what the state belongs to, such as an average
    task.restore(state["task"])
    task.model.eval()
    return task


def task_at(
    config: LearnRunConfig, make_task: Callable[[Any], AnyTask], checkpoint: Path | None
) -> AnyTask:
    """The task of a run as a checkpoint has left it, or, without one, as the run began."""
    torch.manual_seed(config.seed)
    task = make_task(config)
    if checkpoint is not None:
        return restored(task, CheckpointStore.load(checkpoint))
    task.optimizer()  # see `restored`
    task.model.eval()
    return task


def evaluated(task: Evaluable, checkpoint: Checkpoint, count: int | None) -> dict[str, float]:
    """Metrics of a checkpoint, on all held-out samples or on `count` of them."""
    restored(task, checkpoint)
    if count is not None:
        task.only(count)
    with torch.no_grad():
        return task.evaluate(Place())
