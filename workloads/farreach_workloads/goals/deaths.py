"""Deaths of a run's parts: who is told of them, who else is gone, and when there are too many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from farreach.actors.guard import Guard
from farreach.actors.services import LOSSES
from farreach.actors.supervisor import RestartPolicy
from farreach.actors.witness import Whereabouts
from farreach.errors import ActorError

if TYPE_CHECKING:
    from farreach.failures import Report
    from farreach.rundir import RunDirectory
    from farreach_workloads.goals.config import GoalsRunConfig
    from farreach_workloads.goals.parts import PartDied


class Deaths:
    """Of one run.

    Attributes:
        guard: watches the processes.
    """

    def __init__(
        self, config: GoalsRunConfig, run: RunDirectory, log: Callable[[str], None]
    ) -> None:
        """Nobody has died; `log` shows a line in the terminal."""
        self._run = run
        self._policy = policy = RestartPolicy(config.runtime.max_restarts)
        self._limit = f"{policy.max_restarts} times within {policy.window_s:g} s"
        self.guard = Guard(run, config.chaos, log)

    def watch(self, places: Mapping[str, Whereabouts]) -> None:
        """Keep watch over new processes, and note them down."""
        if places:
            pids = {role: place.pid for role, place in places.items()}
            hosts = {role: place.host for role, place in places.items()}
            ids = {role: place.node for role, place in places.items()}
            self._run.event("actors", pids=pids, nodes=hosts, node_ids=ids)
            self.guard.watch(places)

    def gone_with(self, death: PartDied, lost: str, then: str) -> list[str]:
        """Tell of a death; who is gone, which with a machine are all that were on it.

        Raises ActorError if there were too many.

        Nobody is where only data were lost that a part was to take: if the one that had them is
        gone, going back to the checkpoint will show it.
        """
        if isinstance(death.error, LOSSES):
            self._run.event("lost", role=death.role, what="data on a machine that is gone")
            if not self._policy.allows("data", time.monotonic()):
                raise ActorError(
                    f"data on machines that are gone were missed more than {self._limit}. Raise "
                    "runtime.max_restarts if the machines are that unreliable."
                )
            return []
        neighbours = self.guard.beside(death.role)
        report = self.died(death.role, death.error, lost=lost, then=then)
        gone = neighbours if report.cause in ("node_lost", "preempted") else []
        for role in gone:
            self.guard.tell(self.guard.look_into(role, death.error), lost="", then=then)
        return [death.role, *gone]

    def died(self, role: str, error: BaseException, *, lost: str, then: str) -> Report:
        """Tell of a death, and end the run if there were too many.

        Args:
            role: who died.
            error: what its caller was told.
            lost: work that is done again or is missing.
            then: what happens next.
        """
        report = self.guard.look_into(role, error)
        may_go_on = report.cause == "preempted" or self._policy.allows(role, time.monotonic())
        then = then if may_go_on else f"gives up: {role} died more than {self._limit}"
        self.guard.tell(report, lost=lost, then=then)
        if not may_go_on:
            raise ActorError(
                f"{role} died more than {self._limit}, the last time: {report.detail}. Raise "
                "runtime.max_restarts if the machines are that unreliable."
            )
        return report

    def before_all(self, death: PartDied) -> None:
        """Tell of a death before the first checkpoint; raises as `gone_with` does."""
        self.gone_with(death, "all so far", "all parts begin anew: there is no checkpoint yet")

    def nothing_to_go_back_to(self, death: PartDied) -> str:
        """Tell of a death when no checkpoint is whole; the message that ends the run."""
        report = self.guard.look_into(death.role, death.error)
        self.guard.tell(report, lost="all so far", then="the run ends")
        return (
            f"{death.role} died, and no checkpoint is whole: {report.detail}. Start the run again; "
            "if it dies again, look at its log with FARREACH_DEBUG=1."
        )
