"""Waits for a cloud's notice that this machine will be taken away, and tells Ray.

A cloud tells only the machine itself: AWS two minutes before, Google Cloud and Azure half a minute.
Ray then places nothing new here, and trainings hand over what they hold (`actors/nodes.py`).
Kubernetes needs none of this: it ends pods by SIGTERM, which Ray understands.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from farreach.errors import ClusterError

METADATA = "http://169.254.169.254"
POLL_S = 2.0
# Given when the cloud does not say when.
_USUAL_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
_TIMEOUT_S = 2.0
# So many failures in a row, at the beginning, mean that this is no machine of that cloud.
_PATIENCE = 15
# The service is of this machine alone: a proxy that `http_proxy` names has another, or none.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def notice_s(cloud: str, metadata: str = METADATA) -> float | None:
    """Seconds until this machine is taken away; None: nothing is planned.

    Args:
        cloud: "aws", "gcp" or "azure".
        metadata: address of the cloud's service that tells a machine about itself.

    Raises:
        OSError: nobody answers there.
    """
    return {"aws": _aws_s, "gcp": _gcp_s, "azure": _azure_s}[cloud](metadata)


def wait(
    cloud: str,
    leave: Callable[[float], None],
    metadata: str = METADATA,
    poll_s: float = POLL_S,
) -> float:
    """Wait for the notice, then pass it on once.

    Args:
        cloud: see `notice_s`.
        leave: is called with the seconds that are left.
        metadata: see `notice_s`.
        poll_s: seconds between two looks.

    Returns:
        The seconds that were left.

    Raises:
        ClusterError: nobody answers: this is no machine of that cloud.
    """
    failures: int | None = 0  # None: it has answered before, and will again
    while True:
        try:
            left = notice_s(cloud, metadata)
            failures = None
        except OSError as error:
            left = None
            if failures is not None:
                failures += 1
                if failures >= _PATIENCE:
                    raise ClusterError(
                        f"{metadata} does not answer as on a machine of {cloud}: {error}. Name the "
                        "cloud that this machine is of; others give no notice."
                    ) from error
        if left is not None:
            leave(left)
            return left
        time.sleep(poll_s)


def drain_this_node(seconds: float) -> None:
    """Tell the Ray that runs on this machine that it will be taken away.

    Raises:
        ClusterError: no Ray runs here, or it has not taken note.
    """
    import ray

    from farreach.actors import nodes

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ClusterError(f"no Ray runs on this machine: {error}.") from error
    try:
        if not nodes.drain(ray.get_runtime_context().get_node_id(), seconds):
            raise ClusterError("Ray has not taken note of it.")
    finally:
        ray.shutdown()


def _aws_s(metadata: str) -> float | None:
    headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    key = _asked(f"{metadata}/latest/api/token", headers, "PUT")
    try:
        found = _asked(
            f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": key}
        )
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return _until(json.loads(found).get("time"), "%Y-%m-%dT%H:%M:%SZ", "aws")


def _gcp_s(metadata: str) -> float | None:
    address = f"{metadata}/computeMetadata/v1/instance/preempted"
    found = _asked(address, {"Metadata-Flavor": "Google"})
    return _USUAL_S["gcp"] if found.strip() == "TRUE" else None


def _azure_s(metadata: str) -> float | None:
    address = f"{metadata}/metadata/scheduledevents?api-version=2020-07-01"
    events = json.loads(_asked(address, {"Metadata": "true"})).get("Events", [])
    for event in events:
        if event.get("EventType") not in ("Preempt", "Terminate"):
            continue
        # All machines of a scale set or an availability set hear of each one's events.
        concerned = [str(name).casefold() for name in event.get("Resources") or []]
        if not concerned or _azure_name(metadata).casefold() in concerned:
            return _until(event.get("NotBefore"), "%a, %d %b %Y %H:%M:%S GMT", "azure")
    return None


def _azure_name(metadata: str) -> str:
    """This machine's name, as events have it."""
    address = f"{metadata}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    return _asked(address, {"Metadata": "true"}).strip()


def _until(when: Any, form: str, cloud: str) -> float:
    """Seconds until a time that a cloud has written; what is usual if it has written none."""
    try:
        at = datetime.strptime(str(when), form).replace(tzinfo=timezone.utc)
    except ValueError:
        return _USUAL_S[cloud]
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())


def _asked(address: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(address, headers=headers, method=method)
    with _DIRECTLY.open(request, timeout=_TIMEOUT_S) as response:
        return str(response.read().decode())
