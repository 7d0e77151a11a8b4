"""A task that fits made-up numbers, and a program that trains it as one of several ranks."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from farreach.checkpoint import CheckpointStore
from farreach.learn.loop import Loop
from farreach.learn.place import Place
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.testing.ranks import as_rank

SAMPLES = 50


class Numbers:
    def __init__(self, poison=-1):
        self._x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1))
        self._y = self._x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3
        if poison >= 0:
            self._y[poison] = float("nan")

    def __len__(self):
        return SAMPLES

    def batch(self, rows, positions):
        rows = torch.from_numpy(rows)
        return {"x": self._x[rows], "y": self._y[rows], "position": torch.from_numpy(positions)}


class Network(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        first = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout))
        self.layers = nn.ModuleList([first, nn.Linear(8, 1)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Regression:
    score = "evaluation/top1"
    companions = ()

    def __init__(self, dropout=0.0, poison=-1):
        self.model = Network(dropout)
        self.data = Numbers(poison)
        self.seen = []
        self.updates = []

    def optimizer(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1.0)

    def loss(self, model, batch, step, rank):
        self.seen += batch["position"].tolist()
        error = model(batch["x"])[:, 0] - batch["y"]
        return error.square().mean(), {
            "learner/error": error.abs().mean(),
            "data/words_per_sample": torch.tensor(7.0),
        }

    def before_update(self, step):
        pass

    def after_update(self, step):
        self.updates.append(step)

    def evaluate(self, place):
        batch = self.data.batch(*[torch.arange(SAMPLES).numpy()] * 2)
        error = self.model(batch["x"])[:, 0] - batch["y"]
        return {"evaluation/top1": -error.square().mean().item()}

    def pictures(self):
        return {"evaluation/shade": np.full((2, 3, 3), len(self.updates) % 256, np.uint8)}

    def remarks(self):
        return [f"{len(self.updates)} updates"]

    def state(self):
        return {"updates": len(self.updates)}

    def restore(self, state):
        self.updates = list(range(state["updates"]))


class Peaked(Regression):
    """Its second evaluation of three is the best."""

    def evaluate(self, place):
        return {"evaluation/top1": {5: 1.0, 10: 3.0, 15: 2.0}[len(self.updates)]}


class Notes:
    def __init__(self, stop_at=None, leaving_at=None, last_moment_at=None):
        self.last_moment_at, self.rested = last_moment_at, None
        self.leaving_at, self.asked_to_look = leaving_at, 0
        self.lines, self.checkpoints, self.stop_at, self.asked = [], [], stop_at, 0
        self.seen, self.remarks, self.due = [], [], []

    def begin(self, step, total):
        self.began = (step, total)

    def scalars(self, step, metrics, share):
        self.lines.append((step, metrics, share))

    def picture(self, step, name, picture):
        self.seen.append((step, name, picture))

    def remark(self, step, text):
        self.remarks.append((step, text))

    def checkpoint(self, step, name):
        self.checkpoints.append(step)

    def evaluation_due(self, step, name):
        self.due.append(step)

    def wants_to_look(self):
        return self.leaving_at is not None

    def is_leaving(self):
        self.asked_to_look += 1
        return self.asked_to_look == self.leaving_at

    def is_last_moment(self):
        return self.last_moment_at is not None and self.asked > self.last_moment_at

    def rest(self):
        self.rested, self.last_moment_at = self.asked, None

    def stop_asked(self):
        self.asked += 1
        return self.stop_at is not None and self.asked > self.stop_at


def loop_of(folder, task, notes=None, place=None, **settings):
    beside = settings.pop("evaluators", 0)
    workers = WorkersConfig(loaders=settings.pop("loaders", 0), workers=beside, evaluators=beside)
    config = LoopConfig(**{"epochs": 3, "batch": 10, "lr": 0.01, **settings})
    store = CheckpointStore(Path(folder), 5)
    return Loop(task, config, workers, 7, place or Place(), notes or Notes(), store)


def trained(folder, place=None, **settings):
    torch.manual_seed(0)
    task = Regression()
    loop_of(folder, task, place=place, **settings).run()
    return task


def as_worker(rank, world, words):
    """Weights and rows of a run.

    Words: folder, `sharded`, `part`; or `first` for seven updates, `second` for the rest, `twice`
    for one after the other; `late` for clocks that differ and a time limit; `best` for scores of
    which the middle one is the best, and a checkpoint at the end alone.
    """
    out, place = words[0], Place(rank, world, sharded="sharded" in words)
    settings = {"part": 2} if "part" in words else {}
    folder, task = f"{out}/checkpoints", None
    if {"first", "twice"} & set(words):
        torch.manual_seed(0)
        task = Regression()
        loop_of(folder, task, Notes(7), place).run()
        dist.barrier()
    if {"second", "twice"} & set(words):
        first, task = task, Regression()
        loop = loop_of(folder, task, place=place)
        loop.restore(CheckpointStore(Path(folder)).newest())
        loop.run()
        task.seen = (first.seen if first else []) + task.seen
    if "late" in words:
        torch.manual_seed(0)
        task = Regression()
        loop = loop_of(folder, task, place=place, max_minutes=1, epochs=3)
        loop._trained_s = 20.0 * rank
        loop.run()
    if "best" in words:
        task = Peaked()
        loop_of(folder, task, place=place, checkpoint_every_epochs=9).run()
    if task is None:
        task = trained(folder, place, max_grad_norm=1e3, **settings)
    state = task.model.state_dict()
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    return {"model": whole, "seen": task.seen}


if __name__ == "__main__":
    as_rank(as_worker)
