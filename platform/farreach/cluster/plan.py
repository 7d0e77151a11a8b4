"""What a cluster file would launch: groups of equal machines, and what fits on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from farreach.cluster.ray_start import ROLES


@dataclass(frozen=True)
class Group:
    """Machines, or pods, of one kind.

    Attributes:
        name: of the node type or the worker group; the head's is "head" if it has no other.
        least: how many there always are.
        most: how many there may be.
        resources: of each, as Ray counts them.
        machine: what it is: an instance type, an image; "" if that is not said.
        spot: whether it may be taken away.
        idle_s: seconds without work after which it is removed; None: never.
        head: whether it is the head.
    """

    name: str
    least: int
    most: int
    resources: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    spot: bool = False
    idle_s: float | None = None
    head: bool = False


@dataclass(frozen=True)
class Plan:
    """All groups of a cluster.

    Attributes:
        title: what the file is.
        groups: the head first.
        most_workers: machines besides the head that there may be together; None: as many as the
            groups allow.
    """

    title: str
    groups: tuple[Group, ...]
    most_workers: int | None = None

    def rows(self) -> Iterable[tuple[str, str]]:
        """A line for each group: its name, and what it is."""
        for group in self.groups:
            yield group.name, _described(group)
        if any(group.resources for group in self.groups if not group.head):
            yield "together", self._fits()

    def room(self, role: str) -> int:
        """How many of a role fit at most, if no other is there."""
        left = self.most_workers
        total = 0
        for group in sorted(self.groups, key=lambda one: -one.resources.get(role, 0)):
            each = int(group.resources.get(role, 0))
            count = group.most if group.head or left is None else min(group.most, left)
            total += each * count
            if left is not None and not group.head:
                left -= count
        return total

    def _fits(self) -> str:
        workers = sum(group.most for group in self.groups if not group.head)
        if self.most_workers is not None:
            workers = min(workers, self.most_workers)
        roles = [f"{count:,} {role}s" for role in ROLES if (count := self.room(role))]
        room = f", with room for {' or '.join(roles)}" if roles else ""
        return f"at most {workers:,} workers{room}"


def _described(group: Group) -> str:
    count = f"{group.most}" if group.least == group.most else f"{group.least} to {group.most}"
    parts = [f"{count} × {group.machine}" if group.machine else f"{count} machines"]
    if group.spot:
        parts[0] += " on spot"
    shares = [f"{amount:g} {name}" for name, amount in group.resources.items() if amount]
    parts.append("runs no work" if group.head and not shares else f"each {', '.join(shares)}")
    if not shares and not group.head:
        parts[-1] = "resources and roles as the commands that start Ray say"
    if group.idle_s is not None and group.least < group.most:
        parts.append(f"removed after {group.idle_s / 60:g} min without work")
    return "; ".join(parts)
