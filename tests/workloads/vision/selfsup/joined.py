"""Trains some updates of a method as one of several ranks, and saves what became of it."""

from pathlib import Path

import numpy as np
import torch

from farreach import config as configs
from farreach.learn.order import share
from farreach.learn.place import Place
from farreach.testing.ranks import as_rank, several
from farreach_workloads.vision.selfsup.task import PretrainTask

UPDATES = 3


def task_of(name, words):
    """Of a shipped configuration, with weights large enough that images differ."""
    config = configs.load(configs.find(name), words).config
    torch.manual_seed(0)
    task = PretrainTask(config)
    with torch.no_grad():
        # As a network starts, images hardly differ, and normalisation blows rounding errors up.
        for network in (task.model, *task.companions):
            for name, parameter in network.named_parameters():
                if "encoder." in name and parameter.ndim > 1:
                    parameter.mul_(5.0)
    return task


def trained(place, name, words):
    """States of all networks, gradients and losses after some updates."""
    task = task_of(name, words)
    for network in (task.model, *task.companions):
        place.join_statistics(network)
        place.split(network)
    optimizer = task.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    model = place.parallel(task.model)
    model.train()
    losses, gradients = [], {}
    for step in range(UPDATES):
        positions = np.arange(16 * step, 16 * step + 16)[share(16, place.rank, place.world)]
        batch = task.data.batch(positions, positions)
        optimizer.zero_grad()
        loss, metrics = task.loss(model, batch, step, place.rank)
        weight = len(positions) * place.world / 16  # as the loop does
        (loss * weight).backward()
        if step == 0:
            gradients = {n: whole(p.grad) for n, p in task.model.named_parameters()}
        task.before_update(step)
        optimizer.step()
        task.after_update(step)
        losses.append(float(place.sum(loss.detach() * weight)) / place.world)
    return {
        "networks": [place.whole_model_state(n) for n in (task.model, *task.companions)],
        "gradients": gradients,
        "losses": losses,
        "used": float(metrics.get("learner/prototypes_used", 0.0)),
    }


def whole(gradient):
    if gradient is None:
        return None
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


def as_joined(world, folder, name, words, *, sharded):
    """What each of several processes ends with."""
    return several(Path(__file__), world, folder, [int(sharded), name, *words])


def as_worker(rank, world, words):
    sharded, name, *changes = words
    return trained(Place(rank, world, sharded=sharded == "1"), name, changes)


if __name__ == "__main__":
    as_rank(as_worker)
