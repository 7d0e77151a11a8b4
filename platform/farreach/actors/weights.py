"""The weight board: the newest version of everything that is published, and nothing older."""

from __future__ import annotations

import time
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
