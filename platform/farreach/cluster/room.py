"""Seeing that a run has room: at once on a cluster as it is, in time on one that grows.

A cluster that grows is asked for everything at once, by a placement group that holds what the run
needs to begin and is given back when all of it is there. Set `FARREACH_WAIT_S` to the seconds after
which a run stops waiting for machines; the default is 900.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from farreach.cluster import control
from farreach.cluster.demand import (
    Demand,
    bundles,
    in_words,
    lacking,
    largest,
    several_in_words,
    too_large,
    total,
)
from farreach.console import say
from farreach.errors import ClusterError

DEFAULT_WAIT_S = 900.0
# Machines that are there have answered within this time.
SETTLED_S = 1.0
POLL_S = 0.5
# An autoscaler that has just begun has nothing to say for some seconds.
FIRST_REPORT_S = 10.0
# Shortest and longest time between two lines about what is missing.
SAY_S, REPEAT_S = 5.0, 60.0
# How long the autoscaler must say without a break that no machine it may start has room: others
# may end meanwhile.
HOPELESS_S = 60.0
# Kinds of nodes where the autoscaler starts none.
_ONLOOKERS_KIND = "node_"
SHOWN_LENGTH = 400
_ID = re.compile(r"^[0-9a-f-]{30,}: ")


@dataclass(frozen=True)
class View:
    """A cluster as its autoscaler sees it.

    Attributes:
        grows: whether it starts machines on demand.
        status: what `ray status` prints.
        hopeless: ids of placement groups that it says it can never place; version 1 never says so.
        known: the autoscaler has said something yet.
    """

    grows: bool
    status: str
    hopeless: frozenset[str] = frozenset()
    known: bool = True

    def nodes(self) -> str:
        """The part of `ray status` about machines, on one line."""
        part = self.status.partition("Node status")[2].partition("\nResources\n")[0]
        found: dict[str, list[str]] = {}
        for line in map(str.strip, part.splitlines()):
            if line.endswith(":"):
                found[line] = []
            elif found and line and not line.startswith("("):
                found[next(reversed(found))].append(_ID.sub("", line).rstrip(", "))
        shown = [
            f"{name.lower()} {', '.join(sorted(rows))}" for name, rows in found.items() if rows
        ]
        return "; ".join(shown)[:SHOWN_LENGTH]


def check(
    demands: Sequence[Demand],
    settings: Sequence[str] = (),
    wait_s: float | None = None,
    *,
    alone: bool = False,
) -> None:
    """See that what a run needs to begin has room in the Ray that this process is connected to.

    Args:
        demands: of the run.
        settings: dotted names of the settings that decide how much it is, for the error.
        wait_s: seconds to wait for machines; by default those of `FARREACH_WAIT_S`.
        alone: this process has begun Ray for itself, on this machine alone.

    Raises:
        ClusterError: a cluster that does not grow has too little, or one that grows has not got
            enough in time.
    """
    asked = total(bundles(demands))
    if not asked:
        return
    lower = ", ".join(settings) or "the number of actors or what each asks for"
    if not alone and _grows(asked):
        _wait(demands, lower, default_wait_s() if wait_s is None else wait_s)
    else:
        _check_as_it_is(demands, asked, lower)


def _grows(asked: Mapping[str, float]) -> bool:
    """Whether the cluster starts machines; one that has too little may be about to say so."""
    import ray

    begun, view = time.monotonic(), look()
    while not view.known and lacking(asked, ray.cluster_resources()):
        if time.monotonic() - begun > FIRST_REPORT_S:
            break
        time.sleep(POLL_S)
        view = look()
    return view.grows


def look() -> View:
    """The autoscaler's view of the cluster that this process is connected to."""
    import ray

    if ray.util.client.ray.is_connected():
        there: Any = ray.remote(num_cpus=0)(_look_here)
        view: View = ray.get(there.remote())
        return view
    return _look_here()


def default_wait_s() -> float:
    """Seconds that a run waits for machines.

    Raises:
        ClusterError: FARREACH_WAIT_S is no number of seconds.
    """
    text = os.environ.get("FARREACH_WAIT_S", "")
    if not text:
        return DEFAULT_WAIT_S
    try:
        return float(text)
    except ValueError:
        raise ClusterError(
            f"FARREACH_WAIT_S is {text!r}. Set it to the seconds that a run may wait for machines."
        ) from None


def _look_here() -> View:
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_ERROR, DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler._private.commands import debug_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    if not _internal_kv_initialized():
        return View(grows=False, status="")
    report = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    error = _internal_kv_get(DEBUG_AUTOSCALING_ERROR)
    if is_autoscaler_v2(fetch_from_server=True):
        address = ray.get_runtime_context().gcs_address
        seen = control.state(control.client(address))
        return View(
            grows=any(node.kind for node in seen.nodes),
            status=debug_status(report, error, address=address),
            hopeless=seen.hopeless,
        )
    # A Ray that was begun by hand has an autoscaler too, which only looks on.
    kinds = (
        json.loads(report).get("autoscaler_report", {}).get("active_nodes", {}) if report else {}
    )
    return View(
        grows=any(not kind.startswith(_ONLOOKERS_KIND) for kind in kinds),
        status=debug_status(report, error),
        known=bool(report),
    )


def _check_as_it_is(demands: Sequence[Demand], asked: Mapping[str, float], lower: str) -> None:
    import ray

    there: dict[str, float] = ray.cluster_resources()
    missing = lacking(asked, there)
    if missing:
        has = " and ".join(f"{there.get(name, 0.0):g}" for name in missing)
        raise ClusterError(
            f"the run asks for {in_words({name: asked[name] for name in missing})} and Ray has "
            f"{has}. Lower {lower}, or use a larger machine or cluster."
        )
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    stuck = too_large(demands, machines)
    if stuck is not None:
        raise ClusterError(
            f"{stuck.role} asks for {in_words(stuck.asked)} on one machine, and the largest "
            f"has {in_words(largest(stuck.asked, machines))}. Lower {lower}, or use larger "
            "machines."
        )


def _wait(demands: Sequence[Demand], lower: str, wait_s: float) -> None:
    """Have all machines started that the run needs to begin."""
    with _held(demands) as groups:
        if all(group.wait(SETTLED_S) for group in groups):
            return
        begun = hopeful = said = time.monotonic()
        shown, asked = "", total(bundles(demands, first=True))
        while not all(group.wait(POLL_S / len(groups)) for group in groups):
            now, view = time.monotonic(), look()
            if not view.hopeless & {group.id.hex() for group in groups}:
                hopeful = now
            if now - hopeful > HOPELESS_S or now - begun > wait_s:
                raise _no_room(demands, view, now - begun, lower, now - hopeful > HOPELESS_S)
            line = f"waiting   for {_missing(asked)}; the cluster: {view.nodes()}"
            if now - said > (SAY_S if line != shown else REPEAT_S) or not shown:
                say(line)
                shown, said = line, now
        say(f"waiting   is over, after {time.monotonic() - begun:,.0f} s: all machines are there")


@contextmanager
def _held(demands: Sequence[Demand]) -> Iterator[list[Any]]:
    """Placement groups of all that is needed to begin, given back in the end."""
    import ray

    alone = [demand for demand in demands if not demand.together]
    asked = [(bundles(alone, first=True), "PACK")]
    asked += [
        (bundles([demand], first=True), demand.strategy) for demand in demands if demand.together
    ]
    groups = [
        ray.util.placement_group(wanted, strategy=strategy) for wanted, strategy in asked if wanted
    ]
    try:
        yield groups
    finally:
        for group in groups:
            ray.util.remove_placement_group(group)


def _missing(asked: Mapping[str, float]) -> str:
    import ray

    missing = lacking(asked, ray.available_resources())
    return in_words(missing) if missing else "room on one machine instead of several"


def _no_room(
    demands: Sequence[Demand], view: View, waited_s: float, lower: str, hopeless: bool
) -> ClusterError:
    first = [demand for demand in demands if demand.first and demand.asked]
    cause = f"after {waited_s:,.0f} s the cluster still has no room for"
    longer = ", or wait longer (the run's start_timeout_s, or FARREACH_WAIT_S)"
    if hopeless:
        cause = "the cluster's autoscaler says that all machines it may start have no room for"
        longer = ""
    return ClusterError(
        f"{cause} {several_in_words(first)}. Lower {lower}, let the cluster have more or larger "
        f"machines (max_workers, resources){longer}. `ray status` says:\n{view.status}"
    )
