import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from farreach_workloads.retrieval.batching import Batched


class Slow:
    """Squares numbers; the first call waits until it is let go, and all calls are kept."""

    def __init__(self):
        self.calls, self.begun, self.go = [], threading.Event(), threading.Event()

    def __call__(self, key, numbers):
        self.calls.append((key, list(numbers)))
        self.begun.set()
        assert self.go.wait(30)
        if -1 in numbers:
            raise ValueError("a negative number")
        return [(key, number**2) for number in numbers]


def asked(slow, most, first, *others):
    """Futures of calls, of which the others wait, in this order, while the first is made."""
    batched = Batched(slow, most)
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(batched, *first)]
        assert slow.begun.wait(30)
        for number, call in enumerate(others, 1):
            futures.append(pool.submit(batched, *call))
            while len(batched._waiting) < number:
                pass
        slow.go.set()
    return futures


def test_calls_that_wait_are_made_together_and_each_gets_its_own():
    slow = Slow()
    futures = asked(slow, 100, ("a", [1]), ("a", [2, 3]), ("a", [4]), ("a", [5]))
    assert slow.calls == [("a", [1]), ("a", [2, 3, 4, 5])]
    assert [future.result() for future in futures] == [
        [("a", 1)],
        [("a", 4), ("a", 9)],
        [("a", 16)],
        [("a", 25)],
    ]


def test_only_calls_with_the_same_key_go_together():
    slow = Slow()
    futures = asked(slow, 100, ("a", [1]), ("a", [2]), ("b", [3]), ("a", [4]))
    assert slow.calls == [("a", [1]), ("a", [2, 4]), ("b", [3])]
    assert futures[2].result() == [("b", 9)]


def test_a_batch_has_a_limit_that_a_single_call_may_break():
    slow = Slow()
    asked(slow, 3, ("a", [1]), ("a", [2, 3, 4, 5]), ("a", [6, 7]), ("a", [8]), ("a", [9]))
    assert slow.calls == [("a", [1]), ("a", [2, 3, 4, 5]), ("a", [6, 7, 8]), ("a", [9])]


def test_who_asks_wrongly_is_told_and_nobody_else():
    slow = Slow()
    futures = asked(slow, 100, ("a", [1]), ("a", [2]), ("a", [-1]), ("a", [3]))
    assert [futures[i].result() for i in (1, 3)] == [[("a", 4)], [("a", 9)]]
    with pytest.raises(ValueError, match="negative"):
        futures[2].result()


def test_a_call_alone_is_made_at_once_and_its_error_leaves_nothing_behind():
    batched = Batched(lambda key, items: [key / item for item in items], 10)
    with pytest.raises(ZeroDivisionError):
        batched(1, [0])
    assert batched(1, [2, 4]) == [0.5, 0.25]
    assert batched(1, []) == []


def test_many_threads_get_what_they_ask_for():
    lock = threading.Lock()

    def once(key, items):
        assert lock.acquire(blocking=False)
        lock.release()
        return [key * item for item in items]

    batched = Batched(once, 7)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: batched(n % 3, [n, n + 1]), range(3000)))
    assert found == [[n % 3 * n, n % 3 * (n + 1)] for n in range(3000)]
