"""Connecting to Ray: an embedded local one, the cluster of a submitted job, or `RAY_ADDRESS`.

Set `FARREACH_DEBUG=1` to see Ray's own log lines and whatever its workers print, and
`FARREACH_LOG=json` for log lines that programs read (`logs.py`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from farreach import logs, memory
from farreach.cluster import room
from farreach.cluster.demand import Demand, processes
from farreach.errors import ClusterError

PROBE_TIMEOUT_S = 3.0
MAX_OBJECT_STORE_BYTES = 2 * 2**30
MIN_OBJECT_STORE_BYTES = 100 * 2**20
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # With Ray's 2 s every `ray.train.report` waits that long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A machine's notice to leave is seen within that; Ray looks every 5 s.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Several threads per process make small networks slower on busy cores.
    "OMP_NUM_THREADS": "1",
}
LOCAL_ENVIRONMENT = {
    # A control process of one's own that died does not come back; Ray waits a minute for it.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # Without a dashboard nobody asks for the list of all calls, which grows by 2 MB a minute.
    "RAY_task_events_report_interval_ms": "0",
}
PACKAGES = ("farreach", "farreach_workloads")
# Set by Ray in the driver of a submitted job.
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

_started_here = False


def connect(
    needed: float | Sequence[Demand],
    *,
    address: str | None = None,
    settings: Sequence[str] = (),
    wait_s: float | None = None,
) -> None:
    """Connect this process to Ray, and see that there is room for what is needed.

    On a cluster that grows it has the machines started and waits for them; see `cluster/room.py`.

    Without an address (and without `RAY_ADDRESS`) this starts a Ray of its own, which ends with the
    process; it never joins one that somebody else has started. A Ray that this process is already
    connected to is used as it is.

    Args:
        needed: what the run asks for; a number means so many logical CPUs, for pieces of one CPU.
        address: `host:port`, `ray://host:port`, `auto` (the cluster that `ray start` began on this
            machine) or `local`; by default `RAY_ADDRESS`, or else `local`.
        settings: dotted names of the settings that decide how much is needed, for the error.
        wait_s: seconds to wait for machines, on a cluster that grows; by default those of
            `FARREACH_WAIT_S`, or else 900.

    Raises:
        ClusterError: the address is malformed, nobody answers there within 3 s, or the cluster has
            too little of what is needed, or has not grown enough in time.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    for name, value in (ENVIRONMENT | (LOCAL_ENVIRONMENT if where == "local" else {})).items():
        os.environ.setdefault(name, value)
    import ray  # after the variables, which Ray reads when it is imported

    if not ray.is_initialized():
        debug = os.environ.get("FARREACH_DEBUG", "") not in ("", "0")
        arguments: dict[str, Any] = {
            "log_to_driver": debug,
            "logging_level": logging.INFO if debug else logging.ERROR,
            **logs.ray_arguments(),
        }
        if where == "local":
            _start_local(arguments)
        else:
            _join(resolve(where), arguments)
    try:
        demands = processes(needed) if isinstance(needed, float | int) else needed
        room.check(demands, settings, wait_s, alone=where == "local" and _started_here)
    except BaseException:
        disconnect()
        raise


def disconnect() -> None:
    """Leave Ray, if `connect` made the connection; a local Ray ends with it."""
    global _started_here
    if _started_here:
        import ray

        ray.shutdown()
        _started_here = False


@contextmanager
def connection(needed: float | Sequence[Demand], *, settings: Sequence[str] = ()) -> Iterator[None]:
    """Connect for a while; a connection that was there before stays. See `connect`."""
    before = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    connect(needed, settings=settings)
    try:
        yield
    finally:
        if not before:
            disconnect()


def _start_local(arguments: dict[str, Any]) -> None:
    use_token_of_its_own()
    # A runtime environment would do the same, but processes that Ray begins in advance have none.
    with variable("PYTHONPATH", _sources()):
        _init(
            address="local",
            include_dashboard=False,
            object_store_memory=object_store_bytes(),
            **arguments,
        )


def use_token_of_its_own() -> None:
    """Let a Ray that this process begins ask for a token that nobody else has.

    Ray's ports are open to the network, so its token authentication stays on; a token of this
    process's own spares the user a file in the home directory.
    """
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _join(address: str, arguments: dict[str, Any]) -> None:
    # A submitted job brings its code in the job's own runtime environment.
    if _JOB_VARIABLE not in os.environ:
        arguments["runtime_env"] = {"py_modules": [str(path) for path in package_folders()]}
    try:
        _init(address=address, **arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"the Ray cluster at {address} refused the connection: {error}. Ray and Python must "
            "have the same versions on both sides, and the same RAY_AUTH_MODE and token."
        ) from error


def _init(**arguments: Any) -> None:
    global _started_here
    import ray

    with _signal_handlers_kept():
        ray.init(**arguments)
    if not arguments["log_to_driver"]:
        _hush_the_raylet()
    _started_here = True


def _hush_the_raylet() -> None:
    """Leave out what Ray prints of every death: `failures.py` has more to say in fewer words."""
    from ray._private import worker

    module: Any = worker
    shown = getattr(module, "print_to_stdstream", None)
    if shown is None or getattr(shown, "is_hushed", False):
        return

    def hushed(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        if data.get("pid") != "raylet":
            shown(data, ignore_prefix)

    hushed.is_hushed = True  # type: ignore[attr-defined]
    module.print_to_stdstream = hushed


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Undo what Ray does to SIGTERM: its handler exits at once, without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resolve(address: str) -> str:
    """The address to connect to, once somebody has answered there.

    Raises:
        ClusterError: it is malformed, or nobody answers there within 3 s.
    """
    if address == "auto":
        address = _address_of_ray_start()
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error}. Start it, correct RAY_ADDRESS, or "
            "unset RAY_ADDRESS to run on this machine alone."
        ) from error
    return address


def _address_of_ray_start() -> str:
    from ray._private.utils import read_ray_address  # ray.init itself takes 40 s if that died

    found = read_ray_address()
    if not found:
        raise ClusterError(
            "RAY_ADDRESS is 'auto', but no Ray cluster was started on this machine. Start one with "
            "`ray start --head`, or unset RAY_ADDRESS."
        )
    return str(found)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ClusterError(
            f"Ray address {address!r} is neither host:port, ray://host:port, 'auto' nor 'local'. "
            "Correct RAY_ADDRESS; the usual ports are 6379, and 10001 with ray://."
        )
    return host.strip("[]"), int(port)


def object_store_bytes() -> int:
    """Size of a local Ray's object store: a tenth of the memory, and what /dev/shm can hold."""
    bound = min(MAX_OBJECT_STORE_BYTES, memory.usable_bytes() // 10)
    if os.path.isdir("/dev/shm"):
        bound = min(bound, shutil.disk_usage("/dev/shm").free * 9 // 10)
    return max(MIN_OBJECT_STORE_BYTES, bound)


def package_folders() -> list[Path]:
    """Folders of the two packages, without importing the workloads."""
    folders = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).resolve().parent)
    return folders


def local_runtime_env() -> dict[str, Any]:
    """Puts the source roots on the path of the workers, which know installed packages already."""
    return {"env_vars": {"PYTHONPATH": _sources()}}


def _sources() -> str:
    roots = [str(folder.parent) for folder in package_folders()]
    roots = [root for root in roots if not root.endswith(("site-packages", "dist-packages"))]
    known = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys([*roots, *known]))


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """In here a variable of the environment has this value; afterwards that of before, or none."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
