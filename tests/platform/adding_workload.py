"""A workload that adds random numbers; `fault` says what a checkpoint of it lacks."""

import os
import time

import numpy as np

from farreach.checkpoint import CheckpointStore
from farreach.config import Config as Base


class Config(Base):
    name: str = "adding"
    seed: int = 0
    steps: int = 8
    fault: str = ""


def check(config):
    return []


def run(config, run, checkpoint):
    store = CheckpointStore(run.checkpoints)
    step, total = 0, 0.0
    begun_s = time.monotonic()
    if checkpoint is not None:
        state = checkpoint.part("state")
        step, total = state["step"], state["total"]
    if config.fault == "forgets" and checkpoint is not None:
        total = 0.0
    if config.fault == "fails":
        raise RuntimeError("nothing works today")
    while step < config.steps:
        step += 1
        seed = os.getpid() if config.fault == "noisy" else [config.seed, step]
        total += np.random.default_rng(seed).normal()
        time.sleep(0.2)
        if config.fault != "hurries" or step == config.steps:
            state = {"step": step, "total": total, "sums": np.full(3, total)}
            state["trained_s"] = time.monotonic() - begun_s
            path = store.save({"state": state}, step=step, info={})
            run.event("checkpoint", path=path.name, updates=step)
    return {"counting/total": total}
