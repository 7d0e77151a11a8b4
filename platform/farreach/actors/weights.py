"""The weight board: the newest version of everything that is published, and nothing older.

Readers that are called more often than there is something new get references, and keep the value.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published value, or a reference to it in Ray's object store.

    Attributes:
        version: counts up from 1 per name.
        value: what was published.
        published_s: when, on the monotonic clock of the board's process.
    """

    version: int
    value: Any
    published_s: float


class Kept:
    """A reader's copy of what a reference stands for, fetched once per reference.

    Ray fetches a reference among a call's arguments for every call; one in a list it leaves alone.
    """

    def __init__(self) -> None:
        """Nothing was read yet."""
        self._reference: Any = None
        self._value: Any = None
        self._missed: Exception | None = None

    def read(self, boxed: Sequence[Any]) -> Any:
        """The value of a reference in a list of one, or of the one before if there is none.

        Any other value than a reference is as it is.

        Raises:
            ray.exceptions.ObjectLostError: it was on a machine that is gone. So is every other
                call's until there is a reference again: whoever made it did not know.
        """
        import ray

        if self._missed is not None and not boxed:
            raise self._missed
        for handed in boxed:
            self._missed = None
            if not isinstance(handed, ray.ObjectRef):
                self._value, self._reference = handed, None
            elif handed != self._reference:
                try:
                    self._value, self._reference = ray.get(handed), handed
                except Exception as error:
                    self._missed = error
                    raise
        return self._value


class Loans:
    """References that readers go on holding when a call is over, and until when we do.

    Ray (2.60) never frees a small value if its owner lets go of it before whoever has borrowed it.
    A reader lets go of a reference while it is called with the next one. So whoever calls it holds
    one more than there are calls at a time. A reference that a reader has is not handed out again:
    Ray keeps account of each with its lender.
    """

    def __init__(self, calls: int = 1) -> None:
        """Nothing was handed out yet; of each reader up to `calls` calls are under way at once."""
        self._lent: dict[tuple[str, str], deque[Any]] = {}
        self._held = calls + 1

    def box(self, reader: str, name: str, value: Any) -> list[Any]:
        """An argument for `Kept` to read: the newest of that name, if it was not handed it."""
        lent = self._lent.setdefault((reader, name), deque(maxlen=self._held))
        if lent and lent[-1] is value:
            return []
        lent.append(value)
        return [value]

    def forget(self, reader: str) -> None:
        """Take note that a reader is another one now, or has not read what it was handed."""
        for key in [key for key in self._lent if key[0] == reader]:
            del self._lent[key]


class WeightBoard:
    """Name → newest version.

    Holding the only long-lived reference means that an old version is freed as soon as the last
    reader lets go of it, and that no reader ever works through a queue of outdated ones.
    """

    def __init__(self) -> None:
        """An empty board."""
        self._entries: dict[str, Published] = {}

    def publish(self, name: str, value: Any) -> int:
        """Replace what is there; returns the new version."""
        version = self.version(name) + 1
        self._entries[name] = Published(version, value, time.monotonic())
        return version

    def newest(self, name: str) -> Published:
        """The newest version; raises KeyError if nothing was published."""
        return self._entries[name]

    def newer_than(self, name: str, version: int) -> Published | None:
        """The newest version if it is newer than the one the reader has, else None."""
        entry = self._entries.get(name)
        return entry if entry is not None and entry.version > version else None

    def version(self, name: str) -> int:
        """Newest version, 0 before the first."""
        return self._entries[name].version if name in self._entries else 0
