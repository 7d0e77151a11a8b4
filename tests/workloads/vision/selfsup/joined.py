"""Trains some updates of MSN as one of several ranks, and saves what became of the weights."""

import datetime
import os
import sys

import numpy as np
import torch
import torch.distributed as dist

from farreach import config as configs
from farreach.learn.order import share
from farreach.learn.place import Place
from farreach_workloads.vision.selfsup.msn import MsnTask

UPDATES = 3


def trained(place, words):
    """Weights of both networks, gradients and losses after some updates."""
    config = configs.load(configs.find("vision/msn_clipart_debug"), words).config
    torch.manual_seed(0)
    task = MsnTask(config)
    with torch.no_grad():
        # As it starts, images hardly differ, and normalisation blows rounding errors up.
        for branch in (task.model.branch, task.target):
            for parameter in branch.encoder.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5.0)
    optimizer = task.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    model = place.parallel(task.model)
    model.train()
    losses, gradients = [], None
    for step in range(UPDATES):
        positions = np.arange(16 * step, 16 * step + 16)[share(16, place.rank, place.world)]
        batch = task.data.batch(positions, positions)
        optimizer.zero_grad()
        loss, metrics = task.loss(model, batch, step, place.rank)
        loss.backward()
        if gradients is None:
            gradients = {n: p.grad.clone() for n, p in task.model.named_parameters()}
        optimizer.step()
        task.after_update(step)
        losses.append(float(place.sum(loss.detach().clone())) / place.world)
    return {
        "model": task.model.state_dict(),
        "target": task.target.state_dict(),
        "gradients": gradients,
        "losses": losses,
        "used": float(metrics["learner/prototypes_used"]),
    }


if __name__ == "__main__":
    rank, world, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(trained(Place(rank, world), sys.argv[5:]), f"{out}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
