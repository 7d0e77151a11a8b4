"""What a run asks Ray for: how many processes, each with what.

A workload says it once, in its function `demand`; the run reserves by it, the connection to Ray is
checked by it, and `farreach cluster simulate` tries it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

# Whether Ray places the processes one by one (and whether it spreads these over the machines), or
# all of them at once, in one placement group.
Strategy = Literal["DEFAULT", "SPREAD", "PACK", "STRICT_PACK", "STRICT_SPREAD"]
Resources = Mapping[str, float]

# Fractions of a CPU are added up.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Demand:
    """What one role asks for.

    Attributes:
        role: its name in messages.
        count: of processes side by side.
        resources: of each, as Ray counts them: CPU, GPU, memory in bytes, and the cluster's own.
        strategy: how Ray places them.
        least: how many it can do with, if there is no room for more; None: it needs all.
        later: how many of these may have their place when the run has begun, on a cluster that
            grows.
    """

    role: str
    count: int
    resources: Resources = field(default_factory=dict)
    strategy: Strategy = "DEFAULT"
    least: int | None = None
    later: int = 0

    @property
    def needed(self) -> int:
        """How many must have a place in the end."""
        return self.count if self.least is None else min(self.least, self.count)

    @property
    def first(self) -> int:
        """How many must have a place before the run begins."""
        return max(0, self.needed - self.later)

    @property
    def asked(self) -> dict[str, float]:
        """What each asks for, without resources of which it asks nothing."""
        return {name: float(amount) for name, amount in self.resources.items() if amount}

    @property
    def together(self) -> bool:
        """Whether all have their places at once or none."""
        return self.strategy not in ("DEFAULT", "SPREAD")


def processes(cpus: float) -> list[Demand]:
    """So many CPUs, for work that falls into pieces of one CPU and less."""
    whole, rest = divmod(cpus, 1)
    found = [Demand("process", int(whole), {"CPU": 1.0})] if whole else []
    return [*found, Demand("process", 1, {"CPU": rest})] if rest > _ROUNDING else found


def bundles(demands: Iterable[Demand], *, first: bool = False) -> list[dict[str, float]]:
    """What each process asks for that must have a place, those that ask nothing left out.

    Args:
        demands: of a run.
        first: only of those without which it does not begin.
    """
    return [
        demand.asked
        for demand in demands
        for _ in range(demand.first if first else demand.needed)
        if demand.asked
    ]


def total(asked: Iterable[Resources]) -> dict[str, float]:
    """Sum of what several ask for."""
    found: dict[str, float] = {}
    for resources in asked:
        for name, amount in resources.items():
            found[name] = found.get(name, 0.0) + amount
    return found


def lacking(asked: Resources, there: Resources) -> dict[str, float]:
    """How much is missing of each resource of which there is too little."""
    missing = {name: amount - there.get(name, 0.0) for name, amount in asked.items()}
    return {name: amount for name, amount in missing.items() if amount > _ROUNDING}


def fits(asked: Resources, there: Resources) -> bool:
    """Whether one process has room on a machine that nobody else uses."""
    return not lacking(asked, there)


def too_large(demands: Iterable[Demand], machines: Sequence[Resources]) -> Demand | None:
    """The first demand that no machine has room for, even one that nobody else uses."""
    for demand in demands:
        if demand.needed and not any(fits(demand.asked, machine) for machine in machines):
            return demand
    return None


def largest(asked: Resources, machines: Iterable[Resources]) -> dict[str, float]:
    """Of the machine that comes nearest, how much it has of what is asked for."""
    rows = [{name: machine.get(name, 0.0) for name in asked} for machine in machines]
    return max(rows, key=lambda row: (-len(lacking(asked, row)), *row.values()), default={})


def in_words(resources: Resources) -> str:
    """Such as `2 CPUs, 0 GPUs and 1 learner`."""
    parts = [_amount(name, amount) for name, amount in resources.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts) or "nothing"


def several_in_words(demands: Iterable[Demand]) -> str:
    """Such as `learner (1 CPU), 2 × rollout (0.5 CPUs and 1 rollout each)`."""
    parts = []
    for demand in demands:
        one = demand.first == 1
        name = demand.role if one else f"{demand.first} × {demand.role}"
        parts.append(f"{name} ({in_words(demand.asked)}{'' if one else ' each'})")
    return ", ".join(parts)


def _amount(name: str, amount: float) -> str:
    if name.endswith("memory"):
        return f"{amount / 2**30:.3g} GiB {name.replace('_', ' ')}"
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"
