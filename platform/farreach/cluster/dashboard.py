"""What a cluster's dashboard says and does over HTTP, always within a time limit.

Ray's own client waits for ever for a machine that has gone away, and takes `RAY_ADDRESS` instead of
the address it is given.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from farreach.errors import ClusterError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Set by people who use Ray's own commands.
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 20.0

_FORM = re.compile(r"(https?)://([^/\s]+)(/\S*)?")


class LostError(ClusterError):
    """Nobody answers at the address, at least for now."""


class Dashboard:
    """The dashboard of a cluster.

    ```
    dashboard = Dashboard("http://127.0.0.1:8265")
    dashboard.check()
    dashboard.job("walk_maze-1")["status"]
    ```
    """

    def __init__(self, address: str | None = None) -> None:
        """Nothing is asked yet.

        Args:
            address: `http://host:port`, or `host:port`; by default `RAY_API_SERVER_ADDRESS`, or
                else this machine's port 8265.

        Raises:
            ClusterError: the address has another form.
        """
        given = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        self.address = (given if "://" in given else f"http://{given}").rstrip("/")
        if not _FORM.fullmatch(self.address) or not _port_is_number(self.address):
            raise ClusterError(
                f"--address {given!r} is no address of a dashboard. Give http://HOST:8265; where "
                "Ray listens itself (6379, or 10001 with ray://) no jobs are taken."
            )

    def check(self) -> None:
        """See that a dashboard answers, lets this user in and has this machine's Ray.

        Raises:
            ClusterError: says which of these is not so, and how to mend it; after 3 s if there is
                no machine or nobody listens.
        """
        import ray

        self._reach()
        answer = self._ask("GET", "/api/version")
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise self._foreign("it tells no version")
        found = answer["ray_version"]
        if found != ray.__version__:
            raise ClusterError(
                f"the cluster at {self.address} has Ray {found}, and this machine has "
                f"{ray.__version__}. Install the same version on both sides, such as by "
                f"`pip install 'ray[default]=={found}'` here."
            )

    def job_ids(self) -> list[str]:
        """Submission ids of all jobs that the cluster remembers."""
        jobs = self._ask("GET", "/api/jobs/")
        return [job["submission_id"] for job in jobs if job.get("submission_id")]

    def job(self, submission_id: str) -> dict[str, Any]:
        """What the cluster knows about a job: `status`, `message`, `driver_exit_code`, ….

        Raises:
            LostError: nobody answers.
            ClusterError: the cluster does not know the job.
        """
        return self._ask("GET", f"/api/jobs/{submission_id}")

    def get(self, path: str) -> Any:
        """What the dashboard says at a path, from its JSON.

        Raises:
            LostError: nobody answers.
            ClusterError: it refuses, or is no dashboard.
        """
        return self._ask("GET", path)

    def stop(self, submission_id: str) -> bool:
        """Ask a job to stop, by SIGTERM to its processes; whether it was running."""
        return bool(self._ask("POST", f"/api/jobs/{submission_id}/stop").get("stopped"))

    def _reach(self) -> None:
        parts = urlsplit(self.address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((str(parts.hostname), port), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise self._lost(error) from error

    def _ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(
            self.address + path, method=method, headers=_authorization()
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, error.read().decode(errors="replace")) from error
        except ValueError as error:
            raise self._foreign("no JSON") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> LostError:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        return LostError(
            f"no cluster answers at {self.address}: {reason}. Correct --address (the dashboard's, "
            "port 8265), start the cluster, or open a tunnel to its head: "
            "`ssh -L 8265:127.0.0.1:8265 HEAD`."
        )

    def _refused(self, status: int, text: str) -> ClusterError:
        if status == 401:
            return ClusterError(
                f"the cluster at {self.address} wants a token, and none was sent. Set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the token of the head "
                "(`ray get-auth-token` prints it there)."
            )
        if status == 403:
            return ClusterError(
                f"the cluster at {self.address} refuses the token that was sent: "
                f"{_first_line(text)}. RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH, must hold "
                "the token of the head (`ray get-auth-token` prints it there)."
            )
        if status == 404 and "does not exist" in text:
            return ClusterError(
                f"the cluster at {self.address} says: {_first_line(text)}. A head that was started "
                "again has forgotten its jobs; their runs are where they were."
            )
        if status == 404:
            return self._foreign(f"status {status}")
        return LostError(f"the cluster at {self.address} failed to answer: {_last_line(text)}.")

    def _foreign(self, what: str) -> ClusterError:
        return ClusterError(
            f"what answers at {self.address} is no dashboard of Ray ({what}). Its usual port is "
            "8265."
        )


def _port_is_number(address: str) -> bool:
    try:
        return bool(urlsplit(address).hostname) and urlsplit(address).port != 0
    except ValueError:
        return False


def _authorization() -> dict[str, str]:
    """The header with the user's token, where `RAY_AUTH_MODE` asks for one.

    Raises:
        ClusterError: it does, and there is no token.
    """
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )
    from ray.exceptions import AuthenticationError

    try:
        return dict(get_auth_headers_if_auth_enabled({}))
    except AuthenticationError as error:
        raise ClusterError(
            f"RAY_AUTH_MODE asks for a token: {str(error).partition('. ')[0]}. Set "
            "RAY_AUTH_TOKEN_PATH to a file that holds it, or RAY_AUTH_TOKEN."
        ) from error


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[0].rstrip(".")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1].rstrip(".")
