"""A trained policy in a format that other software reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from farreach.errors import ConfigError

if TYPE_CHECKING:
    from farreach.checkpoint import Checkpoint
    from farreach.rundir import RunDirectory
    from farreach.workload import Format
    from farreach_workloads.goals.config import GoalsRunConfig


def export_policy(
    config: GoalsRunConfig,
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
        ConfigError: no such format, or the folder exists, cannot be written or lies in the run.
        CheckpointError: the checkpoint is damaged or holds no policy.
    """
    if fmt != "rllib":
        raise ConfigError(f"unknown format {fmt!r}. Known: rllib.")
    if run.checkpoints.resolve() in Path(out).resolve().parents:
        raise ConfigError(f"{run.checkpoints} is for checkpoints only. Name a folder outside.")
    # Importing RLlib takes seconds, and nothing else needs it.
    from farreach_workloads.goals.rllib_policy import export_rlmodule

    return export_rlmodule(config, checkpoint, out)
