"""Training on pretended machines of a cluster file, which come when they are needed.

Everything is as on the cluster, except that all machines share what this one has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from farreach import runtime
from farreach.cluster.demand import Demand
from farreach.cluster.fake import FakeCluster, Version
from farreach.cluster.forecast import forecast
from farreach.cluster.plan import Plan
from farreach.cluster.simulate import Moment, cluster_of, scale_of
from farreach.errors import ClusterError

POLL_S = 0.25
# What this machine is thought to bear of processes that really train.
MOST_PROCESSES = 16


def rehearse(
    plan: Plan,
    demands: Sequence[Demand],
    train: Callable[[], None],
    *,
    version: Version = 2,
    tell: Callable[[Moment], None] = lambda moment: None,
    ports: tuple[int, int, int] | None = None,
) -> list[Moment]:
    """Train on the machines that the autoscaler starts for it.

    Args:
        plan: of the file.
        demands: of the run.
        train: the training; it finds the cluster at `RAY_ADDRESS`.
        version: of the autoscaler.
        tell: is told of every change of what machines there are.
        ports: as of `FakeCluster`.

    Returns:
        These changes.

    Raises:
        ClusterError: the run asks for GPUs or for more than this machine bears, or for what no kind
            of machine has.
    """
    check(plan, demands)
    moments: list[Moment] = []
    with (
        cluster_of(plan, version, ports) as cluster,
        runtime.variable("RAY_ADDRESS", cluster.address),
        _watched(cluster, moments, tell),
    ):
        train()
    return moments


def check(plan: Plan, demands: Sequence[Demand]) -> None:
    """Raise as `rehearse` does, before anything has begun."""
    on_gpus = [demand.role for demand in demands if demand.asked.get("GPU")]
    if on_gpus:
        raise ClusterError(
            f"{' and '.join(on_gpus)} would train on GPUs, which are only pretended here. Let it "
            "train on CPUs (runtime.device=cpu or runtime.gpus=0), or leave out --run."
        )
    scale = scale_of(demands, forecast(plan, demands), MOST_PROCESSES)
    if scale > 1:
        raise ClusterError(
            f"the run would need about {scale} times as many machines and processes as can be "
            "pretended here. Lower runtime.rollout_actors or runtime.workers, or leave out --run."
        )


@contextmanager
def _watched(
    cluster: FakeCluster, moments: list[Moment], tell: Callable[[Moment], None]
) -> Iterator[None]:
    """Note down in a thread of its own which machines come and go."""
    begun, over = time.monotonic(), threading.Event()
    moments.append(Moment(0.0, cluster.counts()))

    def watch() -> None:
        while not over.wait(POLL_S):
            counts = cluster.counts()
            if counts != moments[-1].nodes:
                moments.append(Moment(time.monotonic() - begun, counts))
                tell(moments[-1])

    thread = threading.Thread(target=watch, name="pretended-machines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
