"""Trains some updates of contrastive pretraining as one of several ranks; saves what came of it."""

from pathlib import Path

import numpy as np
import torch

from farreach import config as configs
from farreach.learn.order import share
from farreach.learn.place import Place
from farreach.testing.ranks import as_rank, several
from farreach_workloads.retrieval import stores
from farreach_workloads.retrieval.task import PretrainTask

UPDATES, BATCH = 3, 16


def task_of(name, words):
    config = configs.load(configs.find(name), words).config
    stores.prepare(config)
    torch.manual_seed(0)
    return PretrainTask(config)


def trained(place, name, words):
    """States of all networks, gradients, losses and metrics after some updates."""
    task = task_of(name, words)
    for network in (task.model, *task.companions):
        place.split(network)
    optimizer = task.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    model = place.parallel(task.model)
    model.train()
    losses, gradients = [], {}
    for step in range(UPDATES):
        positions = np.arange(BATCH * step, BATCH * step + BATCH)
        positions = positions[share(BATCH, place.rank, place.world)]
        batch = task.data.batch(positions, positions)
        optimizer.zero_grad()
        loss, _ = task.loss(model, batch, step, place.rank)
        weight = len(positions) * place.world / BATCH  # as the loop does
        (loss * weight).backward()
        if step == UPDATES - 1:
            gradients = {n: whole(p.grad) for n, p in task.model.named_parameters()}
        task.before_update(step)
        optimizer.step()
        task.after_update(step)
        losses.append(float(place.sum(loss.detach() * weight)) / place.world)
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate(place)
    return {
        "networks": [place.whole_model_state(n) for n in (task.model, *task.companions)],
        "gradients": gradients,
        "losses": losses,
        "evaluation": found,
        "queue": task.state().get("queue", {}).get("keys"),
    }


def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


def as_joined(world, folder, name, words, *, sharded):
    """What each of several processes ends with."""
    return several(Path(__file__), world, folder, [int(sharded), name, *words])


def as_worker(rank, world, words):
    sharded, name, *changes = words
    return trained(Place(rank, world, sharded=sharded == "1"), name, changes)


if __name__ == "__main__":
    as_rank(as_worker)
