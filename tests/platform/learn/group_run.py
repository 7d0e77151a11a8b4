"""A workload whose workers write down in what group they are, and whether Ray Train has PyTorch."""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from regression import Regression

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config as Base
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.learn.trainer import fit

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")


class Config(Base):
    name: str = "group"
    seed: int = 3
    out: str = ""
    training: LoopConfig = LoopConfig(epochs=1, batch=10, lr=0.01)
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()


class Curious(Regression):
    def __init__(self, config):
        super().__init__()
        self._out = Path(config.out)

    def after_update(self, step):
        super().after_update(step)
        found = {
            "environment": {name: int(os.environ[name]) for name in NAMES},
            "group": [dist.get_backend(), dist.get_rank(), dist.get_world_size()],
            "controllers": [_has_torch(process) for process in _controllers()],
            "has torch": _has_torch(Path("/proc/self")),
        }
        (self._out / f"{dist.get_rank()}.json").write_text(json.dumps(found))


def _controllers():
    """Of all Ray Train runs on this machine that this process's parents have begun."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_text()
        except OSError:
            continue
        if name.startswith("ray::TrainController") and _parent(process) == os.getppid():
            yield process


def _parent(process):
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def _has_torch(process):
    return "libtorch" in (process / "maps").read_text()


def check(config):
    return []


def make_task(config):
    return Curious(config)


def run(config, run, checkpoint):
    return fit(config, run, checkpoint, make_task)
