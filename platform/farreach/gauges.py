"""A run's newest numbers as metrics of Ray, for Prometheus and what reads it.

`group/name` becomes the gauge `farreach_<group>_<name>` with the tags `run` and `workload`; Ray
exports it on its node's metrics port as `ray_farreach_…`. Without a connection to Ray nothing
happens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from farreach.lines import NewLines
from farreach.roster import Roster
from farreach.rundir import RunDirectory
from farreach.vitals import is_connected

TAGS = ("run", "workload")
STEP = "training/step"
# What the metrics mean that dashboards show; others are exported without a description.
ABOUT = {
    STEP: "The run's x axis: environment steps or updates.",
    "training/share": "Share of training that is done, 0 to 1.",
    "throughput/env_steps_per_s": "Environment steps per second of all rollouts.",
    "throughput/updates_per_s": "Gradient steps per second.",
    "throughput/samples_per_s": "Samples per second of all workers.",
    "throughput/tokens_per_s": "Tokens of text per second of all workers.",
    "throughput/learner_busy_share": "Share of time in which the learner computes.",
    "throughput/learner_waiting_share": "Share of time in which the learner has nothing to do.",
    "throughput/rollouts_held_share": "Share of the rollouts that wait for the learner.",
    "throughput/data_wait_share": "Share of time in which a worker waits for its samples.",
    "weights/age_versions": "Versions of the policy published while a rollout used an older one.",
    "weights/age_s": "Age of the weights that rollouts have acted with, in seconds.",
    "queue/calls_in_flight": "Calls of parts that have not been answered.",
    "queue/learner_calls": "Calls of the learner that have not been answered.",
    "queue/steps_waiting": "Policy steps collected or asked for that wait for their updates.",
    "learner/loss": "Loss of training.",
    "evaluation/success_final": "Share of goals that are reached at the end of an episode.",
    "evaluation/top1": "Share of images that are recognised.",
    "evaluation/seconds": "Seconds that an evaluation takes.",
    "machine/disk_free_gb": "Free space on the run's disk.",
    "machine/memory_free_share": "Share of the driver's machine's memory that is left.",
    "machine/driver_memory_gb": "Resident memory of the driver.",
    "ray/store_used_share": "Share of the object stores in use.",
    "ray/spilled_mb": "MB moved from the object stores to disks since the run began.",
    "ray/nodes": "Machines of the cluster.",
    "ray/cpus_used": "CPUs that are reserved.",
}
# Metrics that only grow → counters.
COUNTED = {
    "training/env_steps": ("farreach_env_steps", "Environment steps that were taken."),
    "training/updates": ("farreach_updates", "Gradient steps that were taken."),
}
DEATHS = ("farreach_deaths", "Processes of the run that died.")
RESTARTS = ("farreach_restarts", "Processes that took the place of dead ones.")


def gauge_name(metric: str) -> str:
    """`group/name` as Prometheus takes it."""
    return "farreach_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def exported_names() -> set[str]:
    """Names under which Ray exports what is described here."""
    counters = [name for name, _ in (*COUNTED.values(), DEATHS, RESTARTS)]
    return {f"ray_{gauge_name(metric)}" for metric in ABOUT} | {
        f"ray_{name}_total" for name in counters
    }


class Gauges:
    """Exports the metrics of one run from its driver."""

    def __init__(self, run: RunDirectory) -> None:
        """Nothing is exported yet."""
        self._run = run
        self._events = NewLines(run.events_path)
        self._roster = Roster()
        self._tags: dict[str, str] = {}
        self._metrics: dict[str, Any] = {}
        self._counted: dict[str, float] = {}

    def export(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on the newest values; NaN and infinity are left out."""
        if not is_connected():
            return
        for metric, value in {**values, STEP: float(step)}.items():
            if not math.isfinite(value):
                continue
            if metric in COUNTED:
                self._count(*COUNTED[metric], value)
            else:
                self._gauge(gauge_name(metric), ABOUT.get(metric, metric)).set(value)
        for event in self._events.take():
            self._roster.take(event)
        self._count(*DEATHS, self._roster.deaths)
        self._count(*RESTARTS, self._roster.restarts)

    def _gauge(self, name: str, about: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._metrics:
            self._metrics[name] = Gauge(name, about, TAGS).set_default_tags(self._own_tags())
        return self._metrics[name]

    def _count(self, name: str, about: str, value: float) -> None:
        """Count up to a value; one that has fallen back, as after a recovery, adds nothing."""
        from ray.util.metrics import Counter

        if name not in self._metrics:
            self._metrics[name] = Counter(name, about, TAGS).set_default_tags(self._own_tags())
        more = value - self._counted.get(name, 0.0)
        self._counted[name] = value
        if more > 0:
            self._metrics[name].inc(more)

    def _own_tags(self) -> dict[str, str]:
        if not self._tags:
            name = self._run.place.rstrip("/").rpartition("/")[2]
            self._tags = {"run": name, "workload": workload_name(self._run)}
        return self._tags


def workload_name(run: RunDirectory) -> str:
    """Last words of the module that the run's configuration names, such as `goals.online`."""
    try:
        text = run.config_path.read_text()
    except OSError:
        return ""
    found = re.search(r"^workload:\s*(\S+)", text, re.MULTILINE)
    return found[1].partition(".")[2] if found else ""
