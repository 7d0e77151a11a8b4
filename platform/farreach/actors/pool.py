"""Actors that pull items of work from one queue and tell how far they are while they work.

For work whose tool is dear to make (a model is read once for each actor) and whose items take long.
Whoever is done takes the next item, so fast machines do more of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from farreach.actors.services import death_cause, user_error
from farreach.errors import ActorError, ClusterError

# A message, or None when an item is done.
Told = tuple[int, Any]


class Host:
    """Holds the tool inside an actor; the first item makes it, so that errors of that are told."""

    def __init__(self, factory: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Hold what `factory(*arguments)` will make."""
        self._factory, self._arguments = factory, arguments
        self._tool: Any = None

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
    queue, failures = deque(range(len(items))), Counter[int]()
    idle: list[Any] = [remote.remote(factory, list(arguments)) for _ in range(workers)]
    running: dict[Any, tuple[Any, int]] = {}
    try:
        while queue or running:
            while queue and idle:
                actor, index = idle.pop(), queue.popleft()
                stream = actor.work.options(num_returns="streaming").remote(items[index])
                running[stream] = (actor, index)
            for stream in _ready(running):
                actor, index = running[stream]
                try:
                    message = ray.get(next(stream))
                except StopIteration:
                    message = None
                except ray.exceptions.RayTaskError as error:
                    raise user_error(error) from error
                except ray.exceptions.RayError as error:
                    del running[stream]
                    failures[index] += 1
                    _forgive(failures[index], max_failures, error)
                    queue.appendleft(index)
                    idle.append(remote.remote(factory, list(arguments)))
                    continue
                if message is None:
                    del running[stream]
                    idle.append(actor)
                yield index, message
    finally:
        for actor in [*idle, *(actor for actor, _ in running.values())]:
            ray.kill(actor)


def _ready(running: dict[Any, tuple[Any, int]]) -> list[Any]:
    """All streams that have something to tell, once there is one."""
    import ray

    streams = list(running)
    ray.wait(streams, num_returns=1)
    ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
    return ready


def _check_gpus(needed: float, there: float) -> None:
    if there + 1e-6 < needed:
        raise ClusterError(
            f"the workers ask for {needed:g} GPUs and Ray has {there:g}. Lower workers or gpus, or "
            "use a larger machine or cluster."
        )


def _forgive(failures: int, most: int, error: Exception) -> None:
    if failures > most:
        raise ActorError(
            f"workers died {failures} times on one piece of work: {death_cause(error)}. If they "
            "ran out of memory, use fewer workers or smaller pieces."
        ) from error
