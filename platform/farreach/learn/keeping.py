"""What a worker's loop keeps in checkpoints, and how it goes on from them.

Checkpoints are written beside training. Where parameters are split over workers, each worker writes
its own rows, and reads no more than it needs; see `shards.py`. At a URI, where workers have no disk
in common, the first worker gathers and writes all of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.checkpoint_files import Packed
from farreach.errors import FarreachError
from farreach.joint import JointParts
from farreach.learn import shards
from farreach.learn.outlet import Outlet
from farreach.learn.place import Place, is_split
from farreach.learn.task import Task
from farreach.saver import Saved, Saver


class LearnError(FarreachError):
    """Training cannot go on."""


class Keeper:
    """Saves a task with its optimizer, and restores them; every worker has one."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        place: Place,
        outlet: Outlet,
        store: CheckpointStore,
    ) -> None:
        """As one of the workers, which all make theirs at the same time."""
        self._task, self._optimizer, self._place = task, optimizer, place
        self._outlet, self._store, self._saver = outlet, store, Saver(store)
        self._joint: JointParts | None = None
        if store.is_in_directory:
            joint = JointParts(store.directory, f"{place.agree(secrets.randbits(48)):012x}")
            if place.is_first:
                joint.clear()  # of a session that was killed, whether this one splits or not
            self._joint = joint if is_split(task.model) else None

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Take over what a checkpoint of any number of workers holds; what else is in it.

        Raises:
            LearnError: it holds another number of networks.
            CheckpointError: it is damaged, or of a network of another shape.
        """
        state = checkpoint.part("learner")
        theirs, ours = state.get("companions", []), self._task.companions
        if len(theirs) != len(ours):
            raise LearnError(
                f"{checkpoint.path}: holds {len(theirs)} networks beside the model, and "
                f"{len(ours)} are needed: another version has written it. Resume with that, or "
                "train anew."
            )
        place, task = self._place, self._task
        if shards.COUNT in state and is_split(task.model):
            self._take_rows(checkpoint, state)
        else:
            if shards.COUNT in state:
                state = shards.whole_state(checkpoint, tuple(shards.KINDS))
            optimizer = as_tensors(state["optimizer"])
            place.take_over(task.model, self._optimizer, (as_tensors(state["model"]), optimizer))
            for network, one in zip(ours, state.get("companions", []), strict=True):
                place.take_over_model(network, as_tensors(one))
        task.restore(state["task"])
        return state

    def _take_rows(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        place, task = self._place, self._task
        mine = [place.own_model_state(network) for network in (task.model, *task.companions)]
        trees = {"model": mine[0], "companions": mine[1:]}
        found = shards.fill(trees, "weights", checkpoint, state, place.rank, place.world)
        theirs = [found["model"], *found["companions"]]
        for network, own in zip((task.model, *task.companions), theirs, strict=True):
            place.take_over_own(network, as_tensors(own))
        trees = {"optimizer": place.own_optimizer_state(task.model, self._optimizer)}
        found = shards.fill(trees, "optimizer", checkpoint, state, place.rank, place.world)
        place.take_over_own(task.model, as_tensors(found["optimizer"]), self._optimizer)

    def begin(
        self,
        step: int,
        more: Mapping[str, Any],
        info: Mapping[str, Any],
        score: float | None,
        *,
        held: bool,
    ) -> None:
        """Take a checkpoint of now, and have it written; all workers call it.

        Args:
            step: the updates that are done.
            more: what `restore` shall give back beside the networks, of the first worker.
            info: notes that JSON takes.
            score: higher is better.
            held: the checkpoint stays until it has been evaluated.

        Raises:
            CheckpointError, StorageError: the one before could not be written.
        """
        self._tell(self._saver.wait())
        content, joint = self._content(), self._joint
        before = collect = None
        if joint is not None:
            rows = self._take_split(content)
            before = partial(_write_all, joint, step, rows)
            collect = joint.collect(step, self._all_parts())
        if self._place.is_first:
            self._saver.begin(
                {"learner": {**content, **more}},
                step=step,
                info=info,
                score=score,
                held=held,
                before=before,
                more=collect,
            )
        elif before is not None:
            self._saver.begin_other(before)

    def _content(self) -> dict[str, Any]:
        """The networks' and the optimizer's states, and that of the task."""
        place, task = self._place, self._task
        if self._joint is None:
            model, optimizer = place.whole_state(task.model, self._optimizer)
            companions = [place.whole_model_state(other) for other in task.companions]
        else:
            model = place.own_model_state(task.model)
            companions = [place.own_model_state(other) for other in task.companions]
            optimizer = place.own_optimizer_state(task.model, self._optimizer)
        # The task's of every worker, since it may be in shares.
        own = task.state()
        return {"model": model, "optimizer": optimizer, "companions": companions, "task": own}

    def _take_split(self, content: dict[str, Any]) -> dict[str, Packed]:
        """Put outlines in place of split tensors; this worker's rows of them, by part."""
        place, parts = self._place, {}
        for kind, names in shards.KINDS.items():
            trees = {name: content[name] for name in names}
            outlines, rows = shards.outlined(trees, place.rank, place.world)
            content |= outlines
            name = shards.part_name(kind, place.rank, place.world)
            parts[name] = self._saver.packed(name, rows)
        content[shards.COUNT] = place.world
        return parts

    def _all_parts(self) -> list[str]:
        """What all workers write together beside the first one's part."""
        world = self._place.world
        return [shards.part_name(k, rank, world) for k in shards.KINDS for rank in range(world)]

    def tend(self) -> None:
        """Say which checkpoints are complete; raises as `begin`."""
        self._tell(self._saver.done())

    def finish(self) -> None:
        """Wait for what is being written; raises as `begin`."""
        self._tell(self._saver.wait())

    def give_up(self) -> None:
        """The same where training has failed, which tells more than what else fails now."""
        if self._joint is not None:
            self._joint.abandon()
        with suppress(FarreachError):
            self.finish()

    def close(self) -> None:
        """End the thread that writes."""
        self._saver.close()

    def _tell(self, checkpoints: list[Saved]) -> None:
        for saved in checkpoints:
            self._outlet.checkpoint(saved.step, saved.path.name)
            if saved.held:
                self._outlet.evaluation_due(saved.step, saved.path.name)


def newest(store: CheckpointStore, place: Place) -> Checkpoint | None:
    """The newest checkpoint, the same for all workers; the first one alone verifies all of it.

    Raises:
        CheckpointError: it went away meanwhile, or cannot be read on this machine.
    """
    found = store.newest() if place.is_first else None
    name = place.gathered(None if found is None else found.path.name)[0]
    return found if place.is_first or name is None else store.chosen(name)


def _write_all(joint: JointParts, step: int, parts: Mapping[str, Packed]) -> None:
    for name, packed in parts.items():
        joint.write(step, name, packed)


def as_tensors(tree: Any) -> Any:
    """Arrays of a checkpoint as tensors."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if isinstance(tree, dict):
        return {key: as_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_tensors(value) for value in tree]
    return tree
