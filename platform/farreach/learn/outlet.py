"""Where the loop's numbers go, and where requests to stop come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from farreach.actors.witness import Whereabouts
    from farreach.failures import Fault
    from farreach.learn.task import Pixels


class Outlet(Protocol):
    """What the first worker tells, and asks."""

    def begin(self, step: int, total: int) -> None:
        """Training begins after `step` of `total` updates."""

    def scalars(self, step: int, metrics: dict[str, float], share: float) -> None:
        """Metrics `group/name` of an update; `share` of training is done."""

    def picture(self, step: int, name: str, picture: Pixels) -> None:
        """A picture `group/name` to look at, (height, width, 3)."""

    def remark(self, step: int, text: str) -> None:
        """Something that the user should know."""

    def checkpoint(self, step: int, name: str) -> None:
        """A checkpoint was written."""

    def evaluation_due(self, step: int, name: str) -> None:
        """The checkpoint is to be evaluated beside training."""

    def helper(self, role: str, place: Whereabouts) -> None:
        """A process that the first worker has begun is there, for the first time or again."""

    def helper_died(self, role: str, fault: Fault, lost: str, then: str) -> None:
        """Such a process has died; what is done again, and what happens next."""

    def stop_asked(self) -> bool:
        """Whether the run is to stop now, after a last checkpoint."""

    def wants_to_look(self) -> bool:
        """Whether it is time for all workers to call `is_leaving`."""

    def is_leaving(self) -> bool:
        """Whether a machine has just been said to be taken away soon; all workers call it."""

    def is_last_moment(self) -> bool:
        """Whether a machine is taken away now, so that one more checkpoint is due."""

    def rest(self) -> None:
        """Wait until that machine should have gone."""
