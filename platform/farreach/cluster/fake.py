"""A cluster that grows and shrinks, on this machine: Ray's own autoscaler with pretended machines.

Each pretended machine is a Ray node of its own (a raylet and three helpers, about 0.3 GB) with the
resources that are declared for it, whatever this machine has. The autoscaler is the real one, of
either version; its provider is the one that Ray's developers test with.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from farreach import runtime
from farreach.cluster import control
from farreach.cluster.control import Node
from farreach.errors import ClusterError

Version = Literal[1, 2]

HEAD = "ray.head.default"  # Ray's provider knows the head by this name and no other
HEAD_ID = "f" * 51 + "00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
READY_TIMEOUT_S = 120.0
GRACE_S, END_TIMEOUT_S = 2.0, 20.0
POLL_S = 0.1
# Bytes of a node's object store; Ray refuses less than 75 MiB.
STORE_BYTES = 100 * 2**20
# Below those that systems give to outgoing connections, which may take one meanwhile.
PORTS = range(20_000, 30_000)
# What Ray wants to find in the file of its launcher, and what nobody needs here.
UNUSED_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip
# Set by others for other clusters, or for machines with GPUs.
FOREIGN_VARIABLES = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that the autoscaler may start.

    Attributes:
        resources: of each, such as `{"CPU": 4, "rollout": 4}`.
        least: how many there always are.
        most: how many there may be.
        labels: that Ray knows each by.
    """

    resources: Mapping[str, float]
    least: int = 0
    most: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)


class FakeCluster:
    """Ray with an autoscaler, begun and ended with the context.

    ```
    types = {"rollout": NodeType({"CPU": 1, "rollout": 1}, most=2)}
    with FakeCluster(types, {"CPU": 1}) as cluster:
        ray.init(cluster.address)
        ...
        cluster.counts()  # {"rollout": 2}
    ```

    Attributes:
        address: `host:port`, once it has begun.
    """

    def __init__(
        self,
        node_types: Mapping[str, NodeType],
        head: Mapping[str, float],
        *,
        version: Version = 2,
        idle_s: float = 6.0,
        most: int | None = None,
        ports: tuple[int, int, int] | None = None,
    ) -> None:
        """Nothing has begun yet.

        Args:
            node_types: name → what the autoscaler may start.
            head: resources of the head.
            version: of the autoscaler.
            idle_s: seconds without work after which a node goes.
            most: nodes beside the head; by default as many as the types allow together.
            ports: of the head, of Ray's client and of the autoscaler's metrics; by default any
                that are free.
        """
        self._types, self._head_resources = dict(node_types), dict(head)
        self._version, self._idle_s = version, idle_s
        self._most = sum(kind.most for kind in node_types.values()) if most is None else most
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None
        self._gcs: Any = None
        self.address = ""

    def __enter__(self) -> FakeCluster:
        """Start the head and wait until its autoscaler is at work.

        Raises:
            ClusterError: it has not come up.
        """
        from ray._private.authentication import authentication_token_setup as authentication
        from ray._private.services import get_node_ip_address

        runtime.use_token_of_its_own()
        if "RAY_AUTH_MODE" not in os.environ:
            authentication._enable_token_auth()
        # Paths of unix sockets are limited to 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="fr", dir="/tmp"))
        host = get_node_ip_address()
        port, client, metrics = self._ports or _free_ports(3)
        self.address = f"{host}:{port}"
        file = self._folder / "autoscaler.yaml"
        file.write_text(yaml.safe_dump(self._launcher_file()))
        resources = dict(self._head_resources)
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            f"--node-ip-address={host}", f"--port={port}", f"--ray-client-server-port={client}",
            f"--num-cpus={int(resources.pop('CPU', 0))}",
            f"--num-gpus={int(resources.pop('GPU', 0))}",
            f"--resources={json.dumps(_plain(resources))}",
            "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
            "--include-dashboard=false", "--disable-usage-stats",
            f"--object-store-memory={STORE_BYTES}", f"--temp-dir={self._folder}",
            f"--autoscaling-config={file}",
        ]  # fmt: skip
        try:
            with open(self._folder / "head.log", "wb") as log:
                self._process = subprocess.Popen(
                    command,
                    env=self._environment(metrics),
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # by which `processes` knows them all
                )
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process of the cluster and remove its files."""
        self._end()

    def nodes(self) -> list[Node]:
        """The nodes that are there, the head first."""
        found = [replace(node, kind=node.kind or HEAD) for node in control.state(self._gcs).nodes]
        return sorted(found, key=lambda node: (node.kind != HEAD, node.node_id))

    def counts(self) -> dict[str, int]:
        """How many nodes there are of each type that has any, the head left out."""
        return dict(Counter(node.kind for node in self.nodes() if node.kind != HEAD))

    def wait_for(self, counts: Mapping[str, int], timeout_s: float = 60.0) -> float:
        """Wait until there are so many nodes of each type and no others; seconds that it took.

        Raises:
            ClusterError: it has taken longer than that.
        """
        begun = time.monotonic()
        wanted = {kind: count for kind, count in counts.items() if count}
        while (found := self.counts()) != wanted:
            if time.monotonic() - begun > timeout_s:
                raise ClusterError(
                    f"after {timeout_s:g} s the cluster has {found or 'no'} nodes instead of "
                    f"{wanted or 'none'}."
                )
            time.sleep(POLL_S)
        return time.monotonic() - begun

    def processes(self) -> list[int]:
        """Ids of all processes of the cluster: those of the session that its head has begun."""
        if self._process is None:
            return []
        listed = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, check=True)
        found = []
        for pid in map(int, listed.stdout.split()):
            with suppress(OSError):
                if os.getsid(pid) == self._process.pid:
                    found.append(pid)
        return found

    def _launcher_file(self) -> dict[str, Any]:
        provider = {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": self.address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        types: dict[str, Any] = {
            HEAD: {"resources": _plain(self._head_resources), "node_config": {}, "max_workers": 0}
        }
        for name, kind in self._types.items():
            types[name] = {
                "resources": {**_plain(kind.resources), "object_store_memory": STORE_BYTES},
                "labels": dict(kind.labels),
                "node_config": {},
                "min_workers": kind.least,
                "max_workers": kind.most,
            }
        return {
            "cluster_name": "fake",
            "max_workers": self._most,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": self._idle_s / 60,
            "provider": provider,
            "head_node_type": HEAD,
            "available_node_types": types,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in UNUSED_LISTS},
        }

    def _environment(self, metrics_port: int) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in FOREIGN_VARIABLES}
        kept |= runtime.local_runtime_env()["env_vars"]
        kept |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(metrics_port),
            "RAY_FAKE_CLUSTER": "1",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            # A machine of 64 pretended CPUs would begin with 64 processes.
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
        }
        if self._version == 2:
            kept |= {
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                "RAY_NODE_TYPE_NAME": HEAD,
            }
        return kept

    def _wait_until_ready(self) -> None:
        from ray.exceptions import RpcError

        assert self._process is not None
        host, port = self.address.rsplit(":", 1)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / "head.log").read_text(errors="replace").strip()
                raise ClusterError(
                    f"the pretended cluster did not come up within {READY_TIMEOUT_S:g} s. Its head "
                    f"says: {' '.join(log.split())[-600:] or 'nothing'}."
                )
            with suppress(OSError, RpcError):  # it may take long to answer, too
                if self._gcs is None:
                    socket.create_connection((host, int(port)), timeout=1).close()
                    self._gcs = control.client(self.address)
                elif self.nodes() and self._autoscaler_is_up():
                    return
            time.sleep(POLL_S)

    def _autoscaler_is_up(self) -> bool:
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS

        if self._version == 2:
            return control.state(self._gcs).reports > 0
        return self._gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode()) is not None

    def _end(self) -> None:
        """End the head, which ends the others, and then whatever has survived it."""
        self._gcs = None
        if self._process is not None:
            self._process.terminate()
            begun = time.monotonic()
            # The head is not waited for before the others are gone: its id stays taken until then,
            # and by it `processes` knows them.
            while left := set(self.processes()) - {self._process.pid}:
                passed_s = time.monotonic() - begun
                for pid in left if passed_s > GRACE_S else ():
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                if passed_s > END_TIMEOUT_S:
                    break
                time.sleep(POLL_S)
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    found: set[int] = set()
    while len(found) < count:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server(("", port)):
            found.add(port)
    return list(found)


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Whole amounts as integers, which Ray insists on for CPUs and GPUs."""
    return {
        name: int(amount) if float(amount).is_integer() else amount
        for name, amount in resources.items()
    }
