"""From what the user names to what is looked at: a run's files, or a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from farreach.rundir import LATEST, RunDirectory
from farreach.status import cluster
from farreach.status.cluster import ClusterStatus
from farreach.status.run import RunFollower, RunStatus

Status = RunStatus | ClusterStatus


def source_of(what: str) -> Callable[[], Status]:
    """What gives the status of a run or of a cluster, each time it is called.

    Args:
        what: a run directory, `latest`, or an address of a cluster; a folder of that name wins.

    Raises:
        RunDirectoryError: there is no such run.
    """
    if what != LATEST and not Path(what).exists() and cluster.is_address(what):
        return lambda: cluster.look(what)
    run = RunDirectory.open(what)
    follower = RunFollower(run)

    def look() -> RunStatus:
        run.refresh()
        return follower.look()

    return look
