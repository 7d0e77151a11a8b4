"""Actors that pull items of work from one queue and tell how far they are while they work.

For work whose tool is dear to make (a model is read once for each actor) and whose items take long.
Whoever is done takes the next item, so fast machines do more of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from farreach.actors.services import is_raised, user_error
from farreach.actors.witness import Whereabouts, Witnesses, whereabouts
from farreach.errors import ActorError, ClusterError
from farreach.failures import Report, explain, show

# A message, or None when an item is done.
Told = tuple[int, Any]


class Host:
    """Holds the tool inside an actor; the first item makes it, so that errors of that are told."""

    def __init__(self, factory: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Hold what `factory(*arguments)` will make."""
        self._factory, self._arguments = factory, arguments
        self._tool: Any = None

    def place(self) -> Whereabouts:
        """Where this is."""
        return whereabouts()

    def work(self, item: Sequence[Any]) -> Iterator[Any]:
        """The messages of one item."""
        if self._tool is None:
            self._tool = self._factory(*self._arguments)
        yield from self._tool(*item)


def pulled(
    factory: Callable[..., Callable[..., Iterator[Any]]],
    arguments: Sequence[Any],
    items: Sequence[Sequence[Any]],
    *,
    workers: int,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_failures: int = 3,
    tell: Callable[[Report], None] = show,
) -> Generator[Told, None, None]:
    """Work on all items; (index of the item, message) as it comes, (index, None) when it is done.

    An item whose actor dies goes back to the front of the queue, and another actor takes the place
    of the dead one; its messages then begin again. Close the generator (`contextlib.closing`)
    before leaving Ray: that ends the actors.

    Args:
        factory: of module level; what it makes is called with an item and gives messages, none of
            them None. What it writes must be atomic, since an item may be begun several times.
        arguments: of the factory.
        items: arguments of each call.
        workers: actors side by side; 0: in this process, in order, without Ray.
        num_cpus: logical CPUs of an actor.
        num_gpus: GPUs of an actor.
        max_failures: deaths that are forgiven for each item.
        tell: is told of every death.

    Raises:
        FarreachError: what a call raised.
        ActorError: actors died more often than that on one item.
        ClusterError: the GPUs do not suffice.
    """
    if workers == 0:
        tool = factory(*arguments)
        for index, item in enumerate(items):
            for message in tool(*item):
                yield index, message
            yield index, None
        return
    import ray

    workers = min(workers, len(items))
    _check_gpus(workers * num_gpus, ray.cluster_resources().get("GPU", 0.0))
    options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0}
    remote = ray.remote(Host).options(**options)
    crew = _Crew(lambda: remote.remote(factory, list(arguments)), items, max_failures, tell)
    try:
        yield from crew.work(workers)
    finally:
        crew.stop()


class _Crew:
    """The actors: who is idle, and who works on what.

    One that has not found room yet gets no item: it may never find any, as after the loss of a
    machine, and the others would wait for it.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        items: Sequence[Sequence[Any]],
        max_failures: int,
        tell: Callable[[Report], None],
    ) -> None:
        self._start, self._items = start, items
        self._max_failures, self._tell = max_failures, tell
        self._queue, self._failures = deque(range(len(items))), Counter[int | None]()
        self._idle: list[_Hand] = []
        self._running: dict[Any, tuple[_Hand, int]] = {}
        self._arriving: dict[Any, _Hand] = {}
        self._witnesses = Witnesses()
        self._started = 0

    def work(self, workers: int) -> Iterator[Told]:
        for _ in range(workers):
            self._add()
        while self._queue or self._running:
            while self._queue and self._idle:
                hand, index = self._idle.pop(), self._queue.popleft()
                work = hand.actor.work.options(num_returns="streaming")
                self._running[work.remote(self._items[index])] = (hand, index)
            for stream in self._ready():
                yield from self._next(stream)

    def _add(self) -> None:
        hand = _Hand(f"worker-{self._started}", self._start())
        self._started += 1
        self._arriving[hand.actor.place.remote()] = hand

    def _ready(self) -> list[Any]:
        """All streams that have something to tell, once there is one or somebody has arrived."""
        import ray

        waited = [*self._arriving, *self._running]
        ray.wait(waited, num_returns=1)
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        for reference in [each for each in ready if each in self._arriving]:
            self._meet(self._arriving.pop(reference), reference)
        return [each for each in ready if each in self._running]

    def _meet(self, hand: _Hand, reference: Any) -> None:
        import ray

        try:
            self._witnesses.watch(hand.role, ray.get(reference))
        except ray.exceptions.RayError as error:
            self._lose(hand, None, error)
        else:
            self._failures.pop(None, None)  # so actors can begin, and others only had bad luck
            self._idle.append(hand)

    def _next(self, stream: Any) -> Iterator[Told]:
        """What a stream tells next, if anything."""
        import ray

        hand, index = self._running[stream]
        try:
            message = ray.get(next(stream))
        except StopIteration:
            message = None
        except ray.exceptions.RayError as error:
            if is_raised(error):
                raise user_error(error) from error
            del self._running[stream]
            self._lose(hand, index, error)
            return
        if message is None:
            del self._running[stream]
            self._idle.append(hand)
        yield index, message

    def _lose(self, hand: _Hand, index: int | None, error: Exception) -> None:
        """Another actor takes the place of one that died, and its item is begun again.

        Args:
            hand: who died.
            index: of its item; None if it had none yet.
            error: what its caller was told.
        """
        self._failures[index] += 1
        died, most = self._failures[index], self._max_failures
        lost, then, where = "nothing", "another takes its place", "before it had any work"
        if index is not None:
            lost = f"its work on item {index + 1} of {len(self._items)}"
            then, where = "another begins it again", "on it"
        then = f"{then} (death {died} of at most {most} {where})"
        if died > most:
            then = f"gives up: more than {most} deaths {where}"
        report = explain(error, self._witnesses.facts(hand.role), lost=lost, then=then)
        self._tell(report)
        if died > most:
            what = "before they had any work" if index is None else "on one piece of work"
            raise ActorError(
                f"workers died {died} times {what}: {report.detail}. If they ran out of memory, "
                "use fewer workers or smaller pieces."
            ) from error
        if index is not None:
            self._queue.appendleft(index)
        self._add()

    def stop(self) -> None:
        import ray

        working = (hand for hand, _ in self._running.values())
        for hand in [*self._arriving.values(), *self._idle, *working]:
            ray.kill(hand.actor)
        self._witnesses.stop()


class _Hand:
    """One actor and its name."""

    def __init__(self, role: str, actor: Any) -> None:
        self.role, self.actor = role, actor


def _check_gpus(needed: float, there: float) -> None:
    if there + 1e-6 < needed:
        raise ClusterError(
            f"the workers ask for {needed:g} GPUs and Ray has {there:g}. Lower workers or gpus, or "
            "use a larger machine or cluster."
        )
