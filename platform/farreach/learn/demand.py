"""What data-parallel training asks Ray for."""

from __future__ import annotations

from farreach.cluster.demand import Demand
from farreach.learn.beside import reserved
from farreach.learn.report import LearnRunConfig
from farreach.learn.settings import WorkersConfig


def demand(config: LearnRunConfig) -> list[Demand]:
    """Workers, all in one placement group, and the evaluator beside them; nothing without Ray.

    The evaluator takes a GPU besides where one is left over, and asks for none.
    """
    settings = config.runtime
    if settings.workers == 0:
        return []
    workers = Demand(
        "worker", settings.workers, worker_resources(settings), "PACK", settings.min_workers
    )
    if settings.evaluators == 0:
        return [workers]
    cpus, _ = reserved(settings, 0.0)
    return [workers, Demand("evaluator", settings.evaluators, {"CPU": cpus})]


def worker_resources(settings: WorkersConfig) -> dict[str, float]:
    """What each worker reserves."""
    gpus = {"GPU": settings.gpus} if settings.gpus > 0 else {}
    return {"CPU": settings.cpus, **gpus, **settings.resources}
