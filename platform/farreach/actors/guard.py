"""Keeps watch over the processes of a run: who they are, who has died, which machines leave.

The driver's one place for what is said of them in the terminal and in `events.jsonl`. What is to
be done about a death is the loops' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from farreach.actors.chaos import Chaos, ChaosConfig
from farreach.actors.nodes import Lookout, Notice
from farreach.actors.witness import Whereabouts, Witnesses
from farreach.failures import Fault, Report, explain, is_echo

if TYPE_CHECKING:
    from farreach.rundir import RunDirectory


class Guard:
    """Of one run.

    ```
    guard = Guard(run, config.chaos, log)
    guard.watch({"learner": place})
    while training():
        guard.tend()
        for notice in guard.news():
            save_and_leave(notice.node)
    ```
    """

    def __init__(self, run: RunDirectory, chaos: ChaosConfig, log: Callable[[str], None]) -> None:
        """Nobody is watched yet.

        Args:
            run: gets the events.
            chaos: faults on purpose.
            log: shows a line in the terminal.
        """
        self._run, self._log = run, log
        self._witnesses = Witnesses()
        self._lookout = Lookout()
        self._chaos = Chaos(chaos, run, self._witnesses)

    def watch(self, places: Mapping[str, Whereabouts]) -> None:
        """Watch processes by role, instead of those that had the roles before."""
        for role, place in places.items():
            self._witnesses.watch(role, place)

    def tend(self) -> None:
        """Let chaos do what is due, if there is any."""
        self._chaos.tend()

    def news(self) -> list[Notice]:
        """Machines that were told to leave since the last look, each with an event."""
        notices = self._lookout.news()
        for notice in notices:
            self._note(notice, self.on(notice.node))
        return notices

    def leave(self, nodes: Iterable[str], deadline: float | None, roles: list[str]) -> None:
        """Take note of machines that somebody else has seen leave, with the roles on them."""
        for notice in self._lookout.add(dict.fromkeys(nodes, deadline)):
            self._note(notice, roles)

    def _note(self, notice: Notice, roles: list[str]) -> None:
        self._run.event("preemption", roles=roles, **notice.fields())
        self._log(f"{notice.host} will be taken away; on it: {', '.join(roles) or 'nothing'}")

    def on(self, node: str) -> list[str]:
        """Roles whose processes are on a node."""
        return [role for role, place in self._witnesses.places.items() if place.node == node]

    def beside(self, role: str) -> list[str]:
        """Roles whose processes are on the same node as that of a role."""
        place = self._witnesses.places.get(role)
        return [] if place is None else [each for each in self.on(place.node) if each != role]

    def leaving(self) -> set[str]:
        """Roles whose processes are on machines that leave."""
        return {role for node in self._lookout.leaving for role in self.on(node)}

    def look_into(self, role: str, error: BaseException | Fault) -> Report:
        """Explain a death, of which nobody is told yet; the process is watched no longer.

        Args:
            role: who died.
            error: what its caller was told.
        """
        place = self._witnesses.places.get(role)
        self._lookout.news()  # a notice may have come since the last look
        notice_s = None if place is None else self._lookout.notice_s(place.node)
        return explain(error, self._witnesses.facts(role, notice_s=notice_s))

    def look_into_all(self, found: Mapping[str, BaseException | Fault]) -> list[Report]:
        """Explain what has ended processes of one kind that worked together.

        Those that only say that they have lost touch with another are left out, if that is found:
        among them, or among those of their kind that have not said anything.
        """
        reports = [self.look_into(role, error) for role, error in found.items()]
        if deaths := [report for report in reports if not is_echo(report)]:
            return deaths
        kinds = {role.partition("-")[0] for role in found}
        silent = [role for role in self._witnesses.crashed() if role.partition("-")[0] in kinds]
        return [self.look_into(role, Fault((), "")) for role in silent] or reports

    def tell(self, report: Report, *, lost: str, then: str) -> Report:
        """Show a death in the terminal, and note it down as an event.

        Args:
            report: of `look_into`.
            lost: work that is done again or is missing.
            then: what happens next.
        """
        told = replace(report, lost=lost, then=then)
        self._run.event("actor_died", **told.fields())
        for line in told.lines():
            self._log(line)
        return told

    def forget(self, roles: Iterable[str]) -> None:
        """Watch processes no longer that are ended on purpose."""
        for role in roles:
            self._witnesses.places.pop(role, None)

    def close(self) -> None:
        """Watch nobody."""
        self._witnesses.stop()
