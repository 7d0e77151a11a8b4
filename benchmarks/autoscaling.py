"""How fast a cluster grows for rollouts and shrinks again, with Ray's own autoscaler.

Two actors ask for a machine each, of which there are none at first, and end as soon as both answer;
the machines are pretended (`farreach.cluster.fake`), so what a cloud needs to start one is not in
it. `autoscaling_v1` and `autoscaling_v2` (the versions of the autoscaler) are the wall time from
asking until the machines are gone again, which includes the 6 s that they must have been idle;
medians of three rounds. `up_s` and `down_s` are its parts. The peer is the floor of 30 s that is
set for both, so ratios above 1 are better. `python benchmarks/autoscaling.py` prints one JSON line
per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import contextlib
import logging
import statistics
import sys
import time
from typing import Any

import measure

from farreach.cluster.fake import FakeCluster, NodeType, Version
from farreach.cluster.simulate import Empty

FLOOR_S = 30.0
ROUNDS, MACHINES, IDLE_S = 3, 2, 6.0
TIMEOUT_S = 120.0
VERSIONS: tuple[Version, ...] = (1, 2)


def main() -> None:
    """Measure both versions, one after the other."""
    measure.rows_asked(__doc__)
    for version in VERSIONS:
        started_s, up_s, down_s = _measured(version)
        middle = statistics.median(up + down for up, down in zip(up_s, down_s, strict=True))
        measure.row(
            f"autoscaling_v{version}",
            middle,
            FLOOR_S,
            "s, smaller is better; the peer is the floor",
            FLOOR_S / middle,
            up_s=round(statistics.median(up_s), 2),
            down_s=round(statistics.median(down_s), 2),
            rounds_s=[
                [round(up, 2), round(down, 2)] for up, down in zip(up_s, down_s, strict=True)
            ],
            head_started_s=round(started_s, 2),
        )


def _measured(version: Version) -> tuple[float, list[float], list[float]]:
    """Seconds until the head is there, and those of each round up and down."""
    import ray

    kind = NodeType({"CPU": 1, "rollout": 1}, most=MACHINES)
    begun, up_s, down_s = time.monotonic(), [], []
    with (
        contextlib.redirect_stdout(sys.stderr),  # Ray prints there when a machine goes
        FakeCluster({"rollout": kind}, {"CPU": 1}, version=version, idle_s=IDLE_S) as cluster,
    ):
        started_s = time.monotonic() - begun
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            remote: Any = ray.remote(Empty).options(num_cpus=1, resources={"rollout": 1})
            for _ in range(ROUNDS):
                begun = time.monotonic()
                actors = [remote.remote() for _ in range(MACHINES)]
                ray.get([actor.node.remote() for actor in actors], timeout=TIMEOUT_S)
                up_s.append(time.monotonic() - begun)
                for actor in actors:
                    ray.kill(actor)
                down_s.append(cluster.wait_for({}, TIMEOUT_S))
        finally:
            ray.shutdown()
    return started_s, up_s, down_s


if __name__ == "__main__":
    main()
