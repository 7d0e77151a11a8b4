"""Ratio control: updates follow the collected steps, whatever the number of actors or the clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RatioController:
    """Keeps updates / steps at a set value from both sides.

    Updates that the collected steps have earned are `due`; while more of them are due than
    `backlog_steps` of collection would earn, no more collection may start. So the learner never
    runs ahead of its data, the data never runs far ahead of the learner, and more rollout actors
    make a run faster but not different.

    Attributes:
        updates_per_step: the ratio.
        backlog_steps: how many collected or requested steps may wait for their updates.
        steps: collected so far.
        requested: asked for and not yet collected.
        updates: taken or handed out so far.
    """

    updates_per_step: float
    backlog_steps: int
    steps: int = 0
    requested: int = 0
    updates: int = 0

    @property
    def due(self) -> int:
        """Updates that may be handed out now."""
        return max(0, int(self.steps * self.updates_per_step + 1e-9) - self.updates)

    @property
    def may_collect(self) -> bool:
        """Whether collection may ask for more steps."""
        return self.waiting_steps < self.backlog_steps

    @property
    def waiting_steps(self) -> float:
        """Steps collected or asked for whose updates have not been handed out."""
        return self.steps + self.requested - self.updates / self.updates_per_step

    def request(self, steps: int) -> None:
        """Collection of that many steps has begun."""
        self.requested += steps

    def collected(self, steps: int) -> None:
        """Requested steps have arrived."""
        self.steps += steps
        self.requested -= steps

    def lost(self, steps: int) -> None:
        """Requested steps will never arrive, because their actor died."""
        self.requested -= steps

    def hand_out(self, updates: int) -> None:
        """The learner was asked for that many updates."""
        self.updates += updates
