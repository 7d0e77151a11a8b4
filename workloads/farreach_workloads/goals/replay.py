"""A checkpoint looked at again: evaluated, and drawn. The same for every kind of run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from farreach.checkpoint import Checkpoint
from farreach.rundir import RunDirectory
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.config import ReachingConfig
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.evaluate import Evaluator, Outcome


def evaluate_checkpoint(
    config: ReachingConfig, checkpoint: Checkpoint, episodes: int | None = None
) -> tuple[dict[str, float], Outcome, Bundle]:
    """Metrics, outcome and memory of a checkpoint, in this process."""
    if episodes is not None:
        evaluation = config.evaluation.model_copy(update={"episodes": episodes})
        config = config.model_copy(update={"evaluation": evaluation})
    learner: dict[str, Any] = checkpoint.part("learner")
    bundle = Bundle.from_arrays(learner["bundle"])
    env = make_environment(config.environment, config.evaluation.episodes)
    metrics, outcome = Evaluator(config, env).evaluate(learner["agent"]["actor"], bundle)
    return metrics, outcome, bundle


def plot_checkpoint(
    config: ReachingConfig, run: RunDirectory, checkpoint: Checkpoint
) -> list[Path]:
    """Draw every picture of a checkpoint again; the files."""
    from farreach_workloads.goals import pictures

    _, outcome, bundle = evaluate_checkpoint(config, checkpoint)
    visits = np.array(checkpoint.part("coordinator")["visits"])
    env = make_environment(config.environment, 1)
    suffix = f"{checkpoint.step:09d}"
    files = pictures.draw_all(config, env, bundle, outcome, visits, run.figures, suffix)
    animation = pictures.animate(run.figures, "visits")
    return [*files.values(), *([animation] if animation else [])]
