"""Evaluation beside training: in an actor of its own, or at once in this process."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from farreach.actors.services import (
    DEATHS,
    LOSSES,
    ActorService,
    InlineService,
    Service,
    fetch,
)
from farreach.errors import ActorError
from farreach_workloads.goals.parts import make_evaluator

if TYPE_CHECKING:
    from farreach.actors.guard import Guard
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.evaluate import Outcome
    from farreach_workloads.goals.fresh.config import FreshRunConfig

# Deaths of the evaluator in a row before the run gives up.
MAX_DEATHS = 3


class SideEvaluator:
    """Evaluates one policy at a time while training goes on.

    ```
    evaluator.begin(weights)
    ...                                # train
    if evaluator.is_done():
        metrics, outcome = evaluator.result()
    ```
    """

    def __init__(self, config: FreshRunConfig, bundle: Bundle, guard: Guard) -> None:
        """Start the evaluator; `guard` watches it, and tells of its death."""
        self._config, self._guard = config, guard
        self._inline = config.runtime.placement == "inline"
        self._bundle: Any = bundle if self._inline else ray.put(bundle)
        self._place: Any = None
        self._service = self._started()
        self._weights: Mapping[str, np.ndarray] = {}
        self._results: Any = None

    def _started(self) -> Service:
        if self._inline:
            return InlineService("evaluator", make_evaluator, (self._config,))
        cpus = self._config.runtime.cpus
        service = ActorService("evaluator", make_evaluator, (self._config,), num_cpus=cpus)
        self._place = service.settling()
        return service

    def begin(self, weights: Mapping[str, np.ndarray]) -> None:
        """Evaluate a policy; the result of the one before must have been taken."""
        self._greet()
        self._weights = weights
        self._results = self._service.call("evaluate", weights, self._bundle, returns=2)

    def _greet(self) -> None:
        """Watch the process, once there is one."""
        if self._place is not None and ray.wait([self._place], timeout=0)[0]:
            with suppress(*DEATHS):  # the evaluation tells of its death
                self._guard.watch({"evaluator": fetch(self._place)})
            self._place = None

    def is_done(self) -> bool:
        """Whether `result` would not have to wait."""
        if self._inline:
            return True
        self._greet()
        done, _ = ray.wait([self._results[0]], timeout=0)
        return bool(done)

    def result(self) -> tuple[dict[str, float], Outcome]:
        """Metrics and flat outcome, as of `Evaluator.evaluate`; waits for them.

        Raises:
            ActorError: the evaluator died again and again.
            FarreachError: what the evaluation raised.
        """
        for _ in range(MAX_DEATHS):
            try:
                metrics, outcome = (fetch(one) for one in self._results)
                return metrics, outcome
            except (*DEATHS, *LOSSES) as error:  # noqa: PERF203 (once per death)
                report = self._guard.look_into("evaluator", error)
                self._guard.tell(report, lost="the evaluation", then="a new one begins it again")
                self._service = self._started()
                self.begin(self._weights)
        raise ActorError(
            f"the evaluator died {MAX_DEATHS} times in a row: {report.detail}. If it ran out of "
            "memory, lower evaluation.episodes."
        )

    def stop(self) -> None:
        """End the evaluator."""
        self._service.stop()
