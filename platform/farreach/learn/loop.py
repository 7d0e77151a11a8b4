"""The training loop of one worker: reads like one process, and gives the same for any number.

Every random number follows from the seed and the number of the update, so that a checkpoint holds
no generator and a resumed run continues as if nothing had happened.
"""

from __future__ import annotations

import io
import math
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from farreach import cpu, seeding
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.disk import atomic_write
from farreach.errors import FarreachError
from farreach.learn.asam import Asam
from farreach.learn.batches import Steps
from farreach.learn.keeping import Keeper, LearnError
from farreach.learn.order import Order, share
from farreach.learn.outlet import Outlet
from farreach.learn.place import Place
from farreach.learn.schedules import cosine, polynomial, steps, warmup, warmup_cosine
from farreach.learn.task import Batch, Helped, Task
from farreach.learn.told import LOSS, Sums, Told

if TYPE_CHECKING:
    from farreach.learn.settings import LoopConfig, WorkersConfig

# Requests of the outlet.
NOTHING, STOP, LOOK, LEAVE = 0, 1, 2, 3
# Workers tell one another shares of time in whole numbers of these.
CLOCK_PARTS = 2**40
# Name of a worker's own loss among what it is told.
OWN_LOSS = "own_loss"


class Loop:
    """Trains a task from a checkpoint, or from the beginning, to the end.

    Attributes:
        step: updates that are done.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        workers: WorkersConfig,
        seed: int,
        place: Place,
        outlet: Outlet,
        checkpoints: CheckpointStore,
    ) -> None:
        """Move the model to its device; `restore` may follow, then `run`."""
        torch.set_num_threads(workers.threads)
        self._task, self._config, self._workers = task, config, workers
        self._seed, self._place, self._outlet = seed, place, outlet
        self._folder = checkpoints.directory.parent
        for network in (task.model, *task.companions):
            network.to(place.device)
            place.join_statistics(network)
            place.split(network)
            if config.compiled:
                network.compile()
        self._optimizer = task.optimizer()
        self._keeper = Keeper(task, self._optimizer, place, outlet, checkpoints)
        self._order = Order(len(task.data), seed, config.repeats)
        self.per_epoch = len(task.data) / config.batch
        self.total = max(1, round(config.epochs * self.per_epoch))
        self.step = 0
        self._trained_s, self._begun = 0.0, time.monotonic()
        self._time_share = 0.0
        self._evaluated: dict[str, float] = {}
        self._evaluated_step = self._saved_step = -1
        self._best, self._since_best = -math.inf, 0
        # A GPU is given the next update before what it tells of this one is read.
        self._ahead = 1 if place.device.type == "cuda" else 0
        self._told: deque[Told] = deque()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint that a loop of any number of workers has written.

        Raises:
            LearnError: it holds another number of networks, or `training.batch` was another.
            CheckpointError: it is damaged, or of a network of another shape.
        """
        state = self._keeper.restore(checkpoint)
        before, batch = int(state.get("batch", self._config.batch)), self._config.batch
        if before != batch:
            # The place in the data and in the schedule follows from the number of updates.
            raise LearnError(
                f"training.batch: {checkpoint.path} is of updates of {before} samples each, and "
                f"with {batch} training would go on elsewhere in its data and its schedule. Resume "
                f"with training.batch={before}; training.part saves memory and changes nothing."
            )
        self.step, self._trained_s = int(state["step"]), float(state["trained_s"])
        self._evaluated = dict(checkpoint.info.get("evaluated", state["evaluated"]))
        self._evaluated_step = int(state["evaluated_step"])
        self._best = float(state.get("best", -math.inf))
        self._since_best = int(state.get("since_best", 0))
        self._saved_step = self.step

    def run(self) -> tuple[dict[str, float], bool]:
        """Train; the last metrics, and whether it was asked to stop before the end."""
        model = self._place.parallel(self._task.model)
        model.train()
        self._begun = time.monotonic()
        if self._place.is_first:
            self._outlet.begin(self.step, self.total)
            self._remark_precision()
        task = self._task
        try:
            if not isinstance(task, Helped):
                return self._train(model)
            task.begin(self.step, self.total, self._place, self._outlet)
            try:
                return self._train(model)
            finally:
                task.end()
        except BaseException:
            self._keeper.give_up()
            raise
        finally:
            self._keeper.close()

    def _remark_precision(self) -> None:
        on_cpu = self._place.device.type == "cpu"
        if on_cpu and self._config.precision == "bfloat16" and cpu.lacks_bfloat16():
            self._outlet.remark(
                self.step,
                "this CPU has no products in bfloat16, which take several times as long as in "
                "float32: training.precision=float32 is faster here",
            )

    def _train(self, model: nn.Module) -> tuple[dict[str, float], bool]:
        if self.step == 0 and self._config.evaluate_first:
            self._measure(model)
        sums, idle_s = Sums(), time.monotonic()
        self._look_at_clock()
        if self.step > 0 and self._done() >= 1:
            self._measure_the_end(model)
            return self._final(), False
        for parts in self._feed():
            fed_s = time.monotonic()
            self._keeper.tend()
            request = self._place.agree(self._request() if self._place.is_first else NOTHING)
            if request == STOP:
                self._listen(sums, ahead=0)
                self._save_now()
                return self._final(), True
            if request == LEAVE or (request == LOOK and self._outlet.is_leaving()):
                self._listen(sums, ahead=0)
                self._save_now()
            if request == LEAVE and self._place.is_first:
                self._outlet.rest()  # what came after the checkpoint would be lost
            self._update(model, parts)
            self.step += 1
            self._look_at_clock()
            over = self._done() >= 1
            evaluates = over or self._is_due(self._config.evaluate_every_epochs)
            saves = over or self._is_due(self._config.checkpoint_every_epochs)
            self._listen(sums, ahead=0 if evaluates or saves else self._ahead)
            sums.took(wait_s=fed_s - idle_s, busy_s=time.monotonic() - fed_s)
            if self._place.is_first and (sums.is_due() or over):
                self._outlet.scalars(self.step, sums.means(self._config.batch), self._done())
            if evaluates:
                if self._workers.evaluators:
                    self._have_evaluated()
                else:
                    begun = time.monotonic()
                    self._evaluate(model)
                    sums.leave_out(time.monotonic() - begun)
                    over = over or self._has_settled()
                    saves = saves or self._since_best == 0
            if over:
                self._save_now()
                break
            if saves:
                self._save()
            idle_s = time.monotonic()
        return self._final(), False

    def _request(self) -> int:
        """What the outlet wants before the next update."""
        if self._outlet.stop_asked():
            return STOP
        if self._outlet.is_last_moment():
            return LEAVE
        return LOOK if self._outlet.wants_to_look() else NOTHING

    def _final(self) -> dict[str, float]:
        return self._evaluated | {
            "training/updates": float(self.step),
            "training/epochs": self.step / self.per_epoch,
            "training/minutes": self._elapsed_s() / 60,
        }

    def _update(self, model: nn.Module, parts: list[Batch]) -> None:
        """One step on this worker's share of the batch, part by part; see `_listen`."""
        rate = self.lr()
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        shown = self._pass(model, parts)
        if isinstance(self._optimizer, Asam):
            self._optimizer.ascend()
            self._optimizer.zero_grad(set_to_none=True)
            self._pass(model, parts)
        told = Told(self.step, parts)
        own = shown[LOSS].reshape(1).clone()
        told.add(list(shown), self._place.sum(torch.stack(list(shown.values()))))
        told.add([OWN_LOSS], own)
        told.add(["learner/lr"], torch.tensor([rate], dtype=torch.float64))
        self._told.append(told)
        if not self._ahead:
            self._check(told)
        self._task.before_update(self.step)
        if self._config.max_grad_norm is not None:
            groups = [g for g in self._optimizer.param_groups if g.get("clipped", True)]
            parameters = [p for group in groups for p in group["params"]]
            norm: Any = nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
            whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            told.add(["learner/grad_norm"], whole.detach().reshape(1))
        self._optimizer.step()
        self._task.after_update(self.step)

    def _listen(self, sums: Sums, ahead: int) -> None:
        """Take in what updates have told, but for the last `ahead`; all workers do so together.

        Raises:
            LearnError: the loss of one is no number; nothing that came of it was saved.
        """
        while len(self._told) > ahead:
            metrics = self._check(self._told.popleft())
            sums.add({name: value for name, value in metrics.items() if name != OWN_LOSS})

    def _check(self, told: Told) -> dict[str, float]:
        """What an update has told, if its loss is a number."""
        metrics = told.read()
        if math.isfinite(metrics[LOSS]):
            return metrics
        is_mine = not math.isfinite(metrics[OWN_LOSS])
        where = str(self._keep_batch(told)) if is_mine else "another worker's"
        raise LearnError(
            f"the loss of update {told.step:,} is {metrics[LOSS]}. Lower training.lr, set "
            f"training.max_grad_norm, or look at the data; the batch: {where}."
        )

    def _pass(self, model: nn.Module, parts: list[Batch]) -> dict[str, Tensor]:
        """Gradients of this worker's share of the batch; the sums of what to show."""
        shown: dict[str, Tensor] = {}
        for number, batch in enumerate(parts):
            name = f"update/{self._place.rank}/{number}"
            self._place.seed(seeding.child_seed(self._seed, name, self.step))
            count = len(next(iter(batch.values())))
            # DDP takes the mean over workers of what each has summed up over its parts.
            weight = count * self._place.world / self._config.batch
            with self._place.waiting(model, number + 1 < len(parts)):
                with torch.autocast(
                    self._place.device.type, torch.bfloat16, self._config.precision == "bfloat16"
                ):
                    device = self._place.device
                    moved = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                    loss, metrics = self._task.loss(model, moved, self.step, self._place.rank)
                (loss * weight).backward()
            for name, value in {LOSS: loss, **metrics}.items():
                part = value.detach().float() * (count / self._config.batch)
                shown[name] = shown[name] + part if name in shown else part
        return shown

    def _keep_batch(self, told: Told) -> Path:
        """Write down this worker's share of the batch of an update, as NumPy arrays."""
        step, parts = told.step, told.parts
        chosen = np.arange(step * self._config.batch, (step + 1) * self._config.batch)
        positions = chosen[share(self._config.batch, self._place.rank, self._place.world)]
        rows = self._order.rows(int(positions[0]), len(positions))
        arrays: dict[str, Any] = {
            f"{name}_{number}" if len(parts) > 1 else name: value.cpu().numpy()
            for number, part in enumerate(parts)
            for name, value in part.items()
        }
        content = io.BytesIO()
        np.savez(content, rows=rows, positions=positions, **arrays)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"batch-of-update-{step}-rank-{self._place.rank}.npz"
        atomic_write(path, content.getvalue())
        return path

    def lr(self) -> float:
        """Learning rate of the next update."""
        config = self._config
        done = min(1.0, self._done() + config.ahead / self.total) / config.stretch
        rise = min(0.99, config.warmup_epochs / (config.epochs * config.stretch))
        floor = min(config.min_lr, config.lr)
        if config.schedule == "cosine":
            return warmup_cosine(done, rise, config.lr, config.warmup_lr, floor)
        if config.schedule == "whole_cosine":
            if done < rise:
                return config.warmup_lr + (config.lr - config.warmup_lr) * done / rise
            return cosine(done, config.lr, floor)
        if config.schedule == "warmup_linear":
            if done < rise:
                return config.warmup_lr + (config.lr - config.warmup_lr) * done / rise
            return config.lr + (floor - config.lr) * (done - rise) / (1.0 - rise)
        if config.schedule == "linear":
            fallen = floor + (config.lr - floor) * polynomial(done)
        else:
            whole = config.epochs * config.stretch
            fallen = config.lr * steps(done, [drop / whole for drop in config.drops])
        return fallen * warmup(done, rise, min(1.0, config.warmup_lr / config.lr))

    def _done(self) -> float:
        """Share of training that is done, by updates or by time, whichever is further."""
        return min(1.0, max(self.step / self.total, self._time_share))

    def _look_at_clock(self) -> None:
        """Take note of the share of its time that is over, the first worker's for all."""
        if self._config.max_minutes is not None:
            share = self._elapsed_s() / (60 * self._config.max_minutes)
            self._time_share = self._place.agree(round(share * CLOCK_PARTS)) / CLOCK_PARTS

    def _elapsed_s(self) -> float:
        return self._trained_s + time.monotonic() - self._begun

    def _is_due(self, every_epochs: float) -> bool:
        """Whether the last update has crossed a multiple of so many epochs."""
        every = every_epochs * self.per_epoch
        return math.floor(self.step / every) > math.floor((self.step - 1) / every)

    def _evaluate(self, model: nn.Module) -> None:
        self._evaluated = self._measure(model)
        self._evaluated_step = self.step
        score = self._evaluated.get(self._task.score, -math.inf)
        self._since_best = 0 if score > self._best else self._since_best + 1
        self._best = max(self._best, score)
        if self._place.is_first:
            for text in self._task.remarks():
                self._outlet.remark(self.step, text)

    def _measure_the_end(self, model: nn.Module) -> None:
        """Evaluate what a run is resumed from that has come to its end, unless that was done."""
        if self._evaluated_step == self.step or self._workers.evaluators:
            return  # an evaluator looks at a checkpoint without a score by itself
        self._evaluate(model)
        self._saved_step = -1  # the checkpoint that there is has no score
        self._save_now()

    def _measure(self, model: nn.Module) -> dict[str, float]:
        """Have the task evaluate the network as it is, and show what it has found."""
        begun = time.monotonic()
        self._place.share_buffers(self._task.model)
        self._task.model.eval()
        with torch.no_grad():
            found = self._task.evaluate(self._place)
            seconds = {"evaluation/seconds": time.monotonic() - begun}
            pictures = self._task.pictures()
        model.train()
        if self._place.is_first:
            self._outlet.scalars(self.step, found | seconds, self._done())
            for name, picture in pictures.items():
                self._outlet.picture(self.step, name, picture)
        return found

    def _has_settled(self) -> bool:
        """Whether scores have not risen for as long as it was to wait for that."""
        patience = self._config.patience
        if patience is None or self._since_best < patience:
            return False
        if self._place.is_first:
            self._outlet.remark(
                self.step,
                f"training ends early: {self._since_best} evaluations brought no better "
                f"{self._task.score} than {self._best:.4g} (training.patience)",
            )
        return True

    def _have_evaluated(self) -> None:
        """Leave a checkpoint to an evaluator, and say at once what training itself has noticed."""
        self._place.share_buffers(self._task.model)
        self._save(evaluation_due=True)
        if self._place.is_first:
            for text in self._task.remarks():
                self._outlet.remark(self.step, text)

    def _save_now(self) -> None:
        """Have a checkpoint of now on the disk before anything else happens."""
        self._save()
        self._keeper.finish()

    def _save(self, evaluation_due: bool = False) -> None:
        """Begin a checkpoint, unless there is one; one to be evaluated stays until that is done."""
        if self._saved_step == self.step:
            return
        self._saved_step = self.step
        now = time.monotonic()
        self._trained_s, self._begun = self._trained_s + now - self._begun, now
        more = {
            "step": self.step,
            "batch": self._config.batch,
            "trained_s": self._trained_s,
            "evaluated": self._evaluated,
            "evaluated_step": self._evaluated_step,
            "best": self._best,
            "since_best": self._since_best,
        }
        info = {"updates": self.step, "epoch": self.step / self.per_epoch}
        # Weights that have not been evaluated have no score: that of older ones is not theirs.
        is_scored = self._evaluated_step == self.step
        score = self._evaluated.get(self._task.score) if is_scored else None
        self._keeper.begin(self.step, more, info, score, held=evaluation_due)

    def _feed(self) -> Iterator[list[Batch]]:
        """This worker's share of every batch from the next one on."""
        steps = Steps(
            self._task.data, self._order, self._config, self._place.rank, self._place.world
        )
        # Its own generator: the loader draws a seed, and would shift the global one's numbers.
        loader = DataLoader(
            steps,
            batch_size=None,
            sampler=range(self.step, self.total),
            num_workers=self._workers.loaders,
            pin_memory=self._place.device.type == "cuda",  # what copies beside training
            generator=torch.Generator().manual_seed(self._seed),
        )
        for parts in loader:
            if isinstance(parts, FarreachError):
                raise parts
            yield parts
