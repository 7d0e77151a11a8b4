"""A trained policy in a format that other software reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from farreach.errors import ConfigError
from farreach_workloads.goals.agents.build import agent_kind
from farreach_workloads.goals.config import ReachingConfig, SacConfig

if TYPE_CHECKING:
    from farreach.checkpoint import Checkpoint
    from farreach.rundir import RunDirectory
    from farreach.workload import Format


def export_policy(
    config: ReachingConfig,
    run: RunDirectory,
    checkpoint: Checkpoint,
    out: Path,
    fmt: Format,
) -> Path:
    """Write the policy of a checkpoint to the folder `out`, which must not exist.

    Args:
        config: of the run.
        run: the run; nothing in it changes.
        checkpoint: one of the run's.
        out: the folder to make.
        fmt: `rllib`, for `RLModule.from_checkpoint`.

    Returns:
        The folder, as an absolute path.

    Raises:
        ConfigError: no such format, no policy of SAC, or the folder exists, cannot be written or
            lies in the run.
        CheckpointError: the checkpoint is damaged or holds no policy.
    """
    if fmt != "rllib":
        raise ConfigError(f"unknown format {fmt!r}. Known: rllib.")
    if not isinstance(config.agent, SacConfig):
        raise ConfigError(
            f"{run.place}: its agent {agent_kind(config.agent)} has no export. Name a run "
            "with agent.kind: sac."
        )
    if run.checkpoints.resolve() in Path(out).resolve().parents:
        raise ConfigError(f"{run.checkpoints} is for checkpoints only. Name a folder outside.")
    # Importing RLlib takes seconds, and nothing else needs it.
    from farreach_workloads.goals.rllib_policy import export_rlmodule

    return export_rlmodule(config, checkpoint, out)
