"""Restart policy: decides what the death of an actor means; the coordinator acts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class RestartPolicy:
    """Allows `max_restarts` deaths per role within `window_s`, and then gives up.

    Attributes:
        max_restarts: deaths that are forgiven within the window.
        window_s: seconds after which a death is forgotten.
    """

    max_restarts: int
    window_s: float = 600.0
    _deaths: dict[str, deque[float]] = field(default_factory=dict)

    def allows(self, role: str, now_s: float) -> bool:
        """Book a death at `now_s`; whether the role may be started again."""
        deaths = self._deaths.setdefault(role, deque())
        deaths.append(now_s)
        while deaths and now_s - deaths[0] > self.window_s:
            deaths.popleft()
        return len(deaths) <= self.max_restarts
