"""Several Ray nodes on one machine, which can be drained and switched off as machines are.

```
with several_nodes([{"num_cpus": 1, "resources": {"rollout": 1}}]) as nodes:
    ray.init(address=nodes.address)
    nodes.switch_off(nodes.ids()[1])
```
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from farreach.testing.processes import Processes, descendants

STORE_BYTES = 150_000_000
# How soon the head notices that a node is silent; Ray's own settings take a quarter of a minute.
QUICK_HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """The nodes of a cluster, of which the first is the head.

    Attributes:
        address: for `ray.init` and RAY_ADDRESS.
    """

    def __init__(self, cluster: Any) -> None:
        """Of a `ray.cluster_utils.Cluster`."""
        self._cluster = cluster
        self._switched_off: list[Processes] = []
        self.address = str(cluster.address)

    def ids(self) -> list[str]:
        """Of all that run, the head first."""
        return [str(node.node_id) for node in self._nodes()]

    def add(self, **settings: Any) -> str:
        """Start another node, from the main thread; its id.

        Args:
            **settings: such as `num_cpus` and `resources`.
        """
        node = self._cluster.add_node(object_store_memory=STORE_BYTES, **settings)
        return str(node.node_id)

    def switch_off(self, node_id: str) -> None:
        """Kill all processes of a node at once, as if its machine had lost its power."""
        node = next(node for node in self._nodes() if node.node_id == node_id)
        self._switched_off.append(_started_by([node]))
        self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        """End all that run, and whatever their raylets have started.

        Ray leaves it to actors and workers to notice that their node is gone; not all do.
        """
        started = [*self._switched_off, _started_by(self._nodes())]
        with suppress(Exception):  # some have been switched off
            self._cluster.shutdown()
        for processes in started:
            processes.end()

    def _nodes(self) -> list[Any]:
        head = self._cluster.head_node  # none once it is switched off
        return [*([] if head is None else [head]), *self._cluster.worker_nodes]


@contextmanager
def several_nodes(
    workers: Sequence[Mapping[str, Any]],
    *,
    head_cpus: float = 1,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Nodes]:
    """Start a head and so many worker nodes, and end them afterwards.

    Args:
        workers: settings of each worker node, such as `num_cpus` and `resources`.
        head_cpus: logical CPUs of the head.
        variables: of the nodes' environment.
    """
    from ray.cluster_utils import Cluster

    given = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **QUICK_HEALTH}
    folder = tempfile.mkdtemp(prefix="fr", dir="/tmp")
    with _environment(given | dict(variables or {})), _own_store_of_ray():
        head = {"num_cpus": head_cpus, "include_dashboard": False, "temp_dir": folder}
        cluster: Any = Cluster(
            initialize_head=True,
            shutdown_at_exit=True,
            head_node_args=head | {"object_store_memory": STORE_BYTES},
        )
        nodes = Nodes(cluster)
        try:
            for settings in workers:
                nodes.add(**settings)
            yield nodes
        finally:
            nodes.end()
            shutil.rmtree(folder, ignore_errors=True)


def _started_by(nodes: Iterable[Any]) -> Processes:
    """What the raylets of nodes of a `ray.cluster_utils.Cluster` have started."""
    raylets = [
        raylet.process.pid for node in nodes for raylet in node.all_processes.get("raylet", [])
    ]
    return Processes(pid for raylet in raylets for pid in descendants(raylet))


@contextmanager
def _own_store_of_ray() -> Iterator[None]:
    """A Ray that this process is in stays usable: nodes that are started here take its store."""
    from ray.experimental import internal_kv

    before = internal_kv.internal_kv_get_gcs_client()
    try:
        yield
    finally:
        if before is not None:
            internal_kv._initialize_internal_kv(before)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
