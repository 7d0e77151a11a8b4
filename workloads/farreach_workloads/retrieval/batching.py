"""Calls of many threads, made together: one search for many costs much less than many searches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Call(Generic[Key, Item, Result]):
    """What a thread asks, and what came of it."""

    key: Key
    items: Sequence[Item]
    results: Sequence[Result] = ()
    error: BaseException | None = None
    is_done: bool = field(default=False)


class Batched(Generic[Key, Item, Result]):
    """A function of many items whose calls wait while one runs and then go together.

    No call waits for others to come, so that one alone takes no longer; the more there are, the
    larger the batches become.

    ```
    search = Batched(lambda k, queries: searcher.search(queries, k), most=256)
    search(10, ["how to mount a disk"])  # in many threads at once
    ```
    """

    def __init__(
        self, function: Callable[[Key, Sequence[Item]], Sequence[Result]], most: int
    ) -> None:
        """Take calls from now on.

        Args:
            function: of what the items have in common and the items; gives a result for each. It is
                never called twice at the same time.
            most: items at once, unless a single call has more.
        """
        self._function, self._most = function, most
        self._waiting: list[_Call[Key, Item, Result]] = []
        self._is_busy = False
        self._changed = threading.Condition()

    def __call__(self, key: Key, items: Sequence[Item]) -> Sequence[Result]:
        """What the function gives for these items, maybe in one call with those of other threads.

        Raises:
            Exception: what the function raises for these items; what others ask has no effect.
        """
        call: _Call[Key, Item, Result] = _Call(key, items)
        with self._changed:
            self._waiting.append(call)
        while calls := self._turn(call):
            try:
                self._answer(calls)
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()
        if call.error is not None:
            raise call.error
        return call.results

    def _turn(self, call: _Call[Key, Item, Result]) -> list[_Call[Key, Item, Result]]:
        """The calls that this thread should make next; none once its own is done."""
        with self._changed:
            self._changed.wait_for(lambda: call.is_done or not self._is_busy)
            if call.is_done:
                return []
            self._is_busy = True
            return self._taken()

    def _taken(self) -> list[_Call[Key, Item, Result]]:
        """The oldest call that waits, and those that can go with it."""
        taken, count = [self._waiting[0]], len(self._waiting[0].items)
        for other in self._waiting[1:]:
            if other.key == taken[0].key:
                if count + len(other.items) > self._most:
                    break
                taken.append(other)
                count += len(other.items)
        self._waiting = [call for call in self._waiting if call not in taken]
        return taken

    def _answer(self, calls: Sequence[_Call[Key, Item, Result]]) -> None:
        """Give each call its results or its error; all are done then, whatever happens."""
        try:
            items = [item for call in calls for item in call.items]
            results = self._function(calls[0].key, items)
            begin = 0
            for call in calls:
                call.results = results[begin : begin + len(call.items)]
                begin += len(call.items)
        except Exception as error:
            if len(calls) == 1:
                calls[0].error = error
            else:  # One of them is to blame, and only that one should be told.
                for call in calls:
                    self._answer([call])
        except BaseException as error:
            for call in calls:
                call.error = call.error or error
            raise
        finally:
            for call in calls:
                call.is_done = True
