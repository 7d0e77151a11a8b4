"""A cluster of one machine with a dashboard, started as a user starts it, beside other Rays.

```
with ray_head() as address:                      # http://127.0.0.1:…
    subprocess.run(["farreach", "submit", "my_config.yaml", "--address", address], check=True)
```
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STARTED_S = 120.0
ENDED_S = 60.0


@contextmanager
def ray_head(*, num_cpus: int = 4, variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start `ray start --head`, and end it afterwards with all that runs in it.

    Its ports are free ones and open to this machine alone where Ray lets one choose; its files are
    in a folder of its own. Jobs find this Python as `python`.

    Args:
        num_cpus: logical CPUs, which need not be there.
        variables: more of its environment, such as `RAY_AUTH_MODE` and `RAY_AUTH_TOKEN`.

    Yields:
        The address of the dashboard, which answers.

    Raises:
        RuntimeError: the head ended, or did not answer in time.
    """
    programs = Path(sys.executable).parent
    gcs, dashboard, agent, client = free_ports(4)
    # A short name: paths of unix sockets are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                str(programs / "ray"), "start", "--head", "--block", "--disable-usage-stats",
                f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
                f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
                "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}",
                f"--num-cpus={num_cpus}", "--object-store-memory=150000000",
            ],
            env=_environment(programs) | dict(variables or {}),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait(head, address)
            yield address
        finally:
            head.terminate()
            head.wait(ENDED_S)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def _environment(programs: Path) -> dict[str, str]:
    """This process's environment, without what would come in the way of another Ray."""
    # The token is one that this process has made for a Ray of its own, and would be preferred.
    hidden = ("PYTHONPATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        # Otherwise it waits half a minute for others to take over what it does.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def _wait(head: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + STARTED_S
    while not _answers(address):
        if head.poll() is not None:
            raise RuntimeError(f"the head of the cluster ended with {head.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the head of the cluster is silent after {STARTED_S:.0f} s")
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        # A page, not the API, which may want a token.
        with urllib.request.urlopen(f"{address}/", timeout=2):
            return True
    except OSError:
        return False
