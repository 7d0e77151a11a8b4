"""A workload that trains the regression; its evaluation may take long, and its updates too."""

import sys
import time
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent))
from regression import Regression

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config as Base
from farreach.errors import DataError
from farreach.learn.restored import evaluated
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.learn.trainer import fit


class Config(Base):
    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"training", "runtime", "nap", "chaos"})

    name: str = "regression"
    seed: int = 3
    nap: float = 0.0
    """Seconds that an evaluation sleeps; below 0 it fails."""
    pause: float = 0.0
    """Seconds that an update sleeps."""
    training: LoopConfig = LoopConfig(epochs=3, batch=10, lr=0.01)
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()


class Slow(Regression):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def after_update(self, step):
        super().after_update(step)
        time.sleep(self.config.pause)

    def evaluate(self, place):
        if self.config.nap < 0:
            raise DataError("the held-out numbers are gone. Bring them back.")
        time.sleep(self.config.nap)
        return super().evaluate(place)


def check(config):
    return []


def make_task(config):
    return Slow(config)


def run(config, run, checkpoint):
    return fit(config, run, checkpoint, make_task)


def evaluate(config, run, checkpoint, *, episodes):
    return evaluated(make_task(config), checkpoint, episodes)
