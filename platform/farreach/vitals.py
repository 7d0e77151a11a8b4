"""Signs of life beside training: the disk, the memory, Ray's object store; now and then."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from farreach.memory import available_bytes, give_back, own_bytes, usable_bytes

FIRST_AFTER_S = 5.0
EVERY_S = 30.0
RAY_TIMEOUT_S = 20.0


class Vitals:
    """Measures every half minute; asking costs nothing in between, and never waits for Ray."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Of the disk of `folder`, this process, its machine, and the Ray it is connected to."""
        self._folder, self._clock = folder, clock
        self._next_s = clock() + FIRST_AFTER_S
        self._store = StoreWatch()

    def due(self) -> dict[str, float]:
        """Metrics `group/name`, or {} if it is not time yet."""
        if self._clock() < self._next_s:
            return {}
        self._next_s = self._clock() + EVERY_S
        give_back()
        return machine_metrics(self._folder) | self._store.newest()


def machine_metrics(folder: Path) -> dict[str, float]:
    """Free disk in GB, memory of this process in GB, and the share of memory that is left."""
    found = {"machine/driver_memory_gb": own_bytes() / 1e9}
    with suppress(OSError):
        found["machine/disk_free_gb"] = shutil.disk_usage(folder).free / 1e9
    found["machine/memory_free_share"] = available_bytes() / max(usable_bytes(), 1)
    with suppress(OSError):
        found["machine/load"] = os.getloadavg()[0]
    return found


class StoreWatch:
    """Asks Ray in a thread of its own, since a cluster in trouble answers late or never."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._thread: threading.Thread | None = None
        self._found: dict[str, float] = {}
        self._spilled_before: float | None = None

    def newest(self) -> dict[str, float]:
        """What was found last, each answer once; begins to ask for the next."""
        found, self._found = self._found, {}
        if is_connected() and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._ask, name="vitals", daemon=True)
            self._thread.start()
        return found

    def wait(self) -> None:
        """Until the question under way is answered."""
        if self._thread is not None:
            self._thread.join()

    def _ask(self) -> None:
        with suppress(Exception):  # a cluster that does not answer is no news to training
            found = ray_metrics()
            spilled = found.pop("ray/spilled_mb")
            if self._spilled_before is None:
                self._spilled_before = spilled
            self._found = found | {"ray/spilled_mb": max(0.0, spilled - self._spilled_before)}


def is_connected() -> bool:
    """Whether this process is a driver of Ray, without importing it; not through Ray Client."""
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return False
    return not ray.util.client.ray.is_connected()


def ray_metrics() -> dict[str, float]:
    """Nodes, CPUs and object stores of the cluster; spilled MB since the cluster began.

    Raises whatever Ray does when it cannot answer.
    """
    import ray
    from ray._private import internal_api, state

    there, left = ray.cluster_resources(), ray.available_resources()
    reply = internal_api.get_memory_info_reply(state.state, timeout_seconds=RAY_TIMEOUT_S)
    store = reply.store_stats
    used = store.object_store_bytes_used / max(store.object_store_bytes_avail, 1)
    return {
        "ray/nodes": float(sum(bool(node["Alive"]) for node in ray.nodes())),
        "ray/cpus": there.get("CPU", 0.0),
        "ray/cpus_used": there.get("CPU", 0.0) - left.get("CPU", 0.0),
        "ray/store_used_share": float(used),
        "ray/spilled_mb": store.spilled_bytes_total / 1e6,
    }
