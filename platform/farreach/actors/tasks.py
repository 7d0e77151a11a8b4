"""Independent pieces of work, done one after the other here or side by side in Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import ray

from farreach.actors.services import user_error
from farreach.errors import ActorError

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
) -> Generator[tuple[int, Any], None, None]:
    """Call a function for every item; (index of the item, result) as each gets done.

    Close the generator (`contextlib.closing`) before leaving Ray: that cancels what still runs.

    Args:
        function: of module level, so that a worker can import it; the same arguments must give the
            same result, since a task may be done twice.
        items: the arguments of each call.
        inline: call it in this process, in order, without Ray.
        num_cpus: logical CPUs of a task.

    Raises:
        FarreachError: what a call raised; the others are cancelled.
        ActorError: a process died more often than `RETRIES` times on one item.
    """
    if inline:
        for index, item in enumerate(items):
            yield index, function(*item)
        return
    remote = ray.remote(function).options(num_cpus=num_cpus, max_retries=RETRIES)
    pending: dict[Any, int] = {}
    waiting = iter(enumerate(items))
    try:
        while True:
            cpus = ray.cluster_resources().get("CPU", 1.0)
            room = int(WAITING_PER_CPU * cpus / num_cpus) + 1 - len(pending)
            for index, item in (entry for _, entry in zip(range(room), waiting, strict=False)):
                pending[remote.remote(*item)] = index
            if not pending:
                return
            ready, _ = ray.wait(list(pending), num_returns=1)
            index = pending.pop(ready[0])
            yield index, _result(ready[0])
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise user_error(error) from error
    except ray.exceptions.RayError as error:
        raise ActorError(
            f"a task died {RETRIES + 1} times: {' '.join(str(error).split())[:300]}. If it ran out "
            "of memory, give each task more CPUs, so that fewer run at once."
        ) from error
