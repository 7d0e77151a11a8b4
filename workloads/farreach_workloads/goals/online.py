"""Walk the Random Walk, online: the workload that `farreach train` runs.

All parts stay live and learn from each other: rollouts pursue goals and walk randomly from where
that ends, the reachability network learns from the walks, the memory keeps what is new, and the
policy learns to reach what the memory holds (arXiv:2206.11733).
"""

from __future__ import annotations

from pathlib import Path

from farreach import runtime
from farreach.checkpoint import Checkpoint
from farreach.config import flat
from farreach.rundir import RunDirectory
from farreach.stopping import StopRequest
from farreach_workloads.goals import continuation, fidelity, parts
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.coordinator import Coordinator
from farreach_workloads.goals.environments.factory import check_environment, make_environment
from farreach_workloads.goals.evaluate import success_table
from farreach_workloads.goals.export_policy import export_policy
from farreach_workloads.goals.lockstep import Lockstep
from farreach_workloads.goals.overlapped import Overlapped
from farreach_workloads.goals.replay import evaluate_checkpoint, plot_checkpoint
from farreach_workloads.goals.report import Reporter

Config = GoalsRunConfig
demand = parts.demand


def check(config: GoalsRunConfig) -> list[str]:
    """Make the environment once; notes on where the run differs from the paper."""
    check_environment(config.environment)
    deviations = fidelity.deviations(config)
    if not deviations:
        return ["every setting is the paper's"]
    return ["differs from the paper in:", *(f"  {line}" for line in deviations)]


def check_start(config: GoalsRunConfig) -> None:
    """See that the offline run and its data are there and fit, if one is to be continued."""
    if config.start.run is not None:
        continuation.load(config)


def run(
    config: GoalsRunConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Train, from a checkpoint if there is one; see `farreach.workload.Workload`."""
    env = make_environment(config.environment, 1)
    if config.runtime.placement == "actor":
        runtime.connect(
            demand(config),
            settings=("runtime.rollout_actors", "runtime.cpus.rollout", "runtime.cpus.learner"),
            wait_s=config.runtime.start_timeout_s,
        )
    step = None if checkpoint is None else int(checkpoint.info["env_steps"])
    reporter = Reporter(config, run, env, config.training.env_steps, purge_step=step)
    coordinator: Coordinator | None = None
    try:
        with StopRequest() as stop:
            kind = Lockstep if config.runtime.mode == "sync" else Overlapped
            coordinator = kind(config, run, reporter, stop)
            if checkpoint is None:
                coordinator.begin()
            else:
                coordinator.go_on(checkpoint)
            metrics = coordinator.run()
        reporter.hparams(flat(config.model_dump()), metrics)
        for line in success_table(metrics, env.spec.categories):
            reporter.log(line)
        reporter.log(f"pictures     {run.figures}")
        reporter.log(f"tensorboard  {run.tensorboard}")
        reporter.log(f"checkpoints  {run.checkpoints}")
        return metrics
    finally:
        if coordinator is not None:
            coordinator.stop()
        reporter.close()
        if config.runtime.placement == "actor":
            runtime.disconnect()


def evaluate(
    config: GoalsRunConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Metrics of a checkpoint on the held-out goals."""
    return evaluate_checkpoint(config, checkpoint, episodes)[0]


def plot(config: GoalsRunConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Draw every picture of a checkpoint again."""
    return plot_checkpoint(config, run, checkpoint)


export = export_policy
