"""Calls that are known before their results are needed: actors work on them meanwhile.

For what a learner can leave to others because it follows from little: which samples come next, and
weights that may be some updates old. Calls have numbers, their results are taken in that order, and
whoever of the actors is free works on the next one; so fast machines do more of them, and who has
done what makes no difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from farreach.actors.services import DEATHS, LOSSES, ActorService, is_raised, user_error
from farreach.actors.witness import Whereabouts
from farreach.errors import ActorError, ClusterError
from farreach.failures import Fault, fault_of

# Calls that an actor has in hand: one that it works on, and one that it can begin at once.
IN_HAND = 2
# Seconds in which the first actor must have found a place, as long as Ray Train waits for workers.
ROOM_S = 900.0


class Watcher(Protocol):
    """Who is told of the actors."""

    def helper(self, role: str, place: Whereabouts) -> None:
        """A process of that role is there, for the first time or again."""

    def helper_died(self, role: str, fault: Fault, lost: str, then: str) -> None:
        """It has died; what is done again, and what happens next."""


class Ahead:
    """Numbered calls of one method, worked on by several actors.

    ```
    ahead = Ahead("encoder", start, count=2, max_failures=3, watcher=outlet)
    ahead.ask(0, "encode", texts)
    ahead.ask(1, "encode", others)
    first, second = ahead.take(0), ahead.take(1)
    ahead.stop()
    ```
    """

    def __init__(
        self,
        role: str,
        start: Callable[[str], ActorService],
        *,
        count: int,
        max_failures: int,
        watcher: Watcher,
    ) -> None:
        """Start the actors; none of them is waited for.

        Args:
            role: of all; they are numbered in messages.
            start: makes the actor of a role. Its calls must not change it, since one whose actor
                dies is begun again by another.
            count: actors.
            max_failures: deaths that are forgiven.
            watcher: is told of arrivals and deaths.
        """
        self._start, self._watcher = start, watcher
        self._max_failures, self._deaths = max_failures, 0
        self._begun_s, self._is_anyone_there = time.monotonic(), False
        self._waiting: list[int] = []
        self._calls: dict[int, tuple[Any, ...]] = {}
        self._running: dict[Any, tuple[ActorService, int]] = {}
        self._arriving: dict[Any, ActorService] = {}
        self._results: dict[int, Any] = {}
        self._actors: list[ActorService] = []
        for number in range(count):
            self._add(f"{role}-{number}")

    def ask(self, number: int, method: str, *arguments: Any) -> None:
        """A call whose result will be taken; whoever is free begins it.

        Args:
            number: greater than those of all calls before.
            method: of the object in the actors.
            arguments: of the call.
        """
        self._calls[number] = (method, *arguments)
        self._waiting.append(number)
        self._hand_out()

    def take(self, number: int) -> Any:
        """The result of a call, for which this waits.

        Raises:
            ActorError: actors died more often than they may.
            ClusterError: the cluster has found no room for any of them.
            FarreachError: what the call raised.
        """
        import ray

        self.tend()
        while number not in self._results:
            left_s = None if self._is_anyone_there else self._begun_s + ROOM_S - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise ClusterError(
                    f"{self._actors[0].role}: the cluster has found no room for it in {ROOM_S:g} "
                    "s. Ask for fewer or smaller processes, or use a larger cluster; see "
                    "`ray status`."
                )
            ray.wait([*self._arriving, *self._running], num_returns=1, timeout=left_s)
            self.tend()
        del self._calls[number]
        return self._results.pop(number)

    def tend(self) -> None:
        """See what is done and who has arrived or died, and hand out what waits."""
        import ray

        waited = [*self._arriving, *self._running]
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0) if waited else ([], [])
        for reference in ready:
            if reference in self._arriving:
                self._meet(reference)
            elif reference in self._running:  # its actor's death may have taken it off
                self._finish(reference)
        self._hand_out()

    def stop(self) -> None:
        """End the actors, whatever they do."""
        for actor in self._actors:
            actor.stop()

    def _add(self, role: str) -> None:
        actor = self._start(role)
        self._actors.append(actor)
        self._arriving[actor.settling()] = actor

    def _hand_out(self) -> None:
        """Give calls to those with the least to do, until all have enough.

        One that has not found room yet gets none: it may never find any, as after the loss of a
        machine, and whoever takes the results would wait for it.
        """
        there = [actor for actor in self._actors if actor.is_ready]
        loads = {actor.role: 0 for actor in there}
        for actor, _ in self._running.values():
            loads[actor.role] += 1
        while self._waiting and there:
            actor = min(there, key=lambda each: loads[each.role])
            if loads[actor.role] >= IN_HAND:
                return
            loads[actor.role] += 1
            number = self._waiting.pop(0)
            self._running[actor.call(*self._calls[number])] = (actor, number)

    def _meet(self, reference: Any) -> None:
        actor = self._arriving.pop(reference)
        try:
            self._watcher.helper(actor.role, actor.settled(reference))
        except DEATHS as error:
            self._replace(actor, error)
            return
        self._is_anyone_there = True

    def _finish(self, reference: Any) -> None:
        import ray

        actor, number = self._running.pop(reference)
        try:
            self._results[number] = ray.get(reference)
        except (*DEATHS, *LOSSES) as error:
            self._again([number])
            if isinstance(error, DEATHS):
                self._replace(actor, error)
        except ray.exceptions.RayError as error:
            raise (user_error(error) if is_raised(error) else error) from error

    def _again(self, numbers: Iterable[int]) -> None:
        """Calls that are begun once more, in their turn."""
        self._waiting = sorted([*self._waiting, *numbers])

    def _replace(self, actor: ActorService, error: Exception) -> None:
        """Another takes the place of one that has died, and its calls are begun again."""
        if actor not in self._actors:
            return
        self._actors.remove(actor)
        self._arriving = {ref: each for ref, each in self._arriving.items() if each is not actor}
        lost = {ref: number for ref, (each, number) in self._running.items() if each is actor}
        for reference in lost:
            del self._running[reference]
        self._again(lost.values())
        self._deaths += 1
        gives_up = self._deaths > self._max_failures
        then = f"another does its work (death {self._deaths} of at most {self._max_failures})"
        if gives_up:
            then = f"gives up: more deaths than runtime.max_failures ({self._max_failures})"
        self._watcher.helper_died(actor.role, fault_of(error), "what it was working on", then)
        if gives_up:
            raise ActorError(
                f"actors such as {actor.role} died more often than runtime.max_failures "
                f"({self._max_failures}). If they ran out of memory, use fewer or larger machines."
            ) from error
        self._add(actor.role)
