"""Independent pieces of work, done one after the other here or side by side in Ray tasks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import ray

from farreach.actors.services import is_raised, user_error
from farreach.actors.witness import Witnesses, whereabouts
from farreach.errors import ActorError
from farreach.failures import Report, explain, show

# A task whose process or machine dies is done again; what it writes must be atomic.
RETRIES = 3
# Waiting tasks tell an autoscaler how much there is to do, without flooding the scheduler.
WAITING_PER_CPU = 4


def done_in_any_order(
    function: Callable[..., Any],
    items: Sequence[tuple[Any, ...]],
    *,
    inline: bool,
    num_cpus: float = 1.0,
    tell: Callable[[Report], None] = show,
) -> Generator[tuple[int, Any], None, None]:
    """Call a function for every item; (index of the item, result) as each gets done.

    Close the generator (`contextlib.closing`) before leaving Ray: that cancels what still runs.

    Args:
        function: of module level, so that a worker can import it; the same arguments must give the
            same result, since a task may be done twice.
        items: the arguments of each call.
        inline: call it in this process, in order, without Ray.
        num_cpus: logical CPUs of a task.
        tell: is told of every death.

    Raises:
        FarreachError: what a call raised; the others are cancelled.
        ActorError: a process died more often than `RETRIES` times on one item.
    """
    if inline:
        for index, item in enumerate(items):
            yield index, function(*item)
        return
    # Ray's own retries would hide deaths, and what they were of.
    remote = ray.remote(_begun_and_done).options(
        num_cpus=num_cpus, max_retries=0, num_returns="streaming"
    )
    tasks = _Tasks(lambda index: remote.remote(function, *items[index]), len(items), tell)
    try:
        while tasks.waiting or tasks.running:
            cpus = ray.cluster_resources().get("CPU", 1.0)
            tasks.submit(int(WAITING_PER_CPU * cpus / num_cpus) + 1)
            yield from tasks.done()
    finally:
        tasks.stop()


def _begun_and_done(function: Callable[..., Any], *item: Any) -> Iterator[Any]:
    """Where the process of a task is, and then its result."""
    yield whereabouts()
    yield function(*item)


class _Tasks:
    """What waits and what runs.

    Attributes:
        waiting: items, by index.
        running: stream of a task → its item.
    """

    def __init__(
        self, begin: Callable[[int], Any], count: int, tell: Callable[[Report], None]
    ) -> None:
        self._begin, self._count, self._tell = begin, count, tell
        self.waiting, self.running = deque(range(count)), dict[Any, int]()
        self._begun: set[Any] = set()
        self._deaths = Counter[int]()
        self._witnesses = Witnesses()

    def submit(self, most: int) -> None:
        while self.waiting and len(self.running) < most:
            index = self.waiting.popleft()
            self.running[self._begin(index)] = index

    def done(self) -> Iterator[tuple[int, Any]]:
        """Results that are there, once a task has something to tell."""
        streams: list[Any] = list(self.running)
        ready: list[Any] = ray.wait(streams, num_returns=1)[0]
        ready += ray.wait(streams, num_returns=len(streams), timeout=0)[0]
        for stream in dict.fromkeys(ready):
            index = self.running[stream]
            try:
                told = ray.get(next(stream))
            except ray.exceptions.RayError as error:
                if is_raised(error):
                    raise user_error(error) from error
                self._lose(stream, index, error)
                continue
            if stream not in self._begun:
                self._begun.add(stream)
                self._witnesses.watch(_role(index), told)
                continue
            self._forget(stream)
            self._witnesses.places.pop(_role(index))
            yield index, told

    def _forget(self, stream: Any) -> None:
        del self.running[stream]
        self._begun.discard(stream)

    def _lose(self, stream: Any, index: int, error: Exception) -> None:
        """Let an item whose process died be done again, after all others that wait."""
        self._forget(stream)
        self._deaths[index] += 1
        died = self._deaths[index]
        lost = f"its work on item {index + 1} of {self._count}"
        then = f"it is done again (death {died} of at most {RETRIES} on it)"
        if died > RETRIES:
            then = f"gives up: more than {RETRIES} deaths on it"
        report = explain(error, self._witnesses.facts(_role(index)), lost=lost, then=then)
        self._tell(report)
        if died > RETRIES:
            raise ActorError(
                f"a task died {died} times: {report.detail}. If it ran out "
                "of memory, give each task more CPUs, so that fewer run at once."
            ) from error
        self.waiting.append(index)

    def stop(self) -> None:
        for stream in self.running:
            ray.cancel(stream, force=True)
        self._witnesses.stop()


def _role(index: int) -> str:
    return f"task-{index}"
