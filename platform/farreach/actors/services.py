"""Services: a plain object, called in this process or in a Ray actor of its own.

The object knows nothing of Ray. `InlineService` calls it at once and hands the values back;
`ActorService` gives references. Both take the results of other services as arguments, so a
program written against `call` and `fetch` runs in one process or in many without a change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import ray

from farreach.errors import ActorError, ClusterError, FarreachError

START_TIMEOUT_S = 120.0


class Host:
    """Holds the object inside the actor; counts how long it was busy.

    The first call builds the object. An error in an actor's constructor would reach the caller as
    a death; one in a call reaches it as what it is.
    """

    def __init__(self, factory: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Hold what `factory(*arguments)` will make."""
        self._factory, self._arguments = factory, arguments
        self._busy_s = 0.0
        self._since = time.monotonic()

    @cached_property
    def _object(self) -> Any:
        return self._factory(*self._arguments)

    def invoke(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object."""
        target = self._object
        begin = time.monotonic()
        try:
            return getattr(target, method)(*arguments)
        finally:
            self._busy_s += time.monotonic() - begin

    def facts(self) -> dict[str, float]:
        """Process id, and the share of the time since the last call spent in the object."""
        _ = self._object  # built by the first call, whichever it is
        now = time.monotonic()
        share = self._busy_s / max(now - self._since, 1e-9)
        self._busy_s, self._since = 0.0, now
        return {"pid": os.getpid(), "busy_share": share}


class InlineService:
    """The object in this process."""

    def __init__(self, role: str, factory: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Build it now; `role` names it in messages."""
        self.role = role
        self._host = Host(factory, arguments)
        self._host.facts()

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """The method's result itself."""
        return self._host.invoke(method, *arguments)

    def facts(self) -> dict[str, float]:
        """See `Host.facts`."""
        return self._host.facts()

    def stop(self) -> None:
        """Let the object go."""
        del self._host


class ActorService:
    """The object in an actor; a death is reported to the caller, never hidden by a retry.

    Results are owned by the caller of `call`, so what an actor has returned outlives it.
    """

    def __init__(
        self,
        role: str,
        factory: Callable[..., Any],
        arguments: Sequence[Any],
        *,
        num_cpus: float,
        num_gpus: float = 0,
    ) -> None:
        """Start the actor; `wait_until_ready` tells when the object is built."""
        self.role = role
        # A half-done update must not be repeated, and an object that comes back empty is worse
        # than one that stays away: restarts are the coordinator's business.
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0}
        self._actor: Any = ray.remote(Host).options(**options).remote(factory, list(arguments))

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """A reference to the method's result, or `returns` of them for a tuple."""
        return self._actor.invoke.options(num_returns=returns).remote(method, *arguments)

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Process id of the actor, once the object is built.

        Raises:
            ClusterError: the cluster has not found room for the actor in time.
            ActorError: it died before the object was built.
            FarreachError: what building the object raised.
        """
        try:
            return int(ray.get(self._actor.facts.remote(), timeout=timeout_s)["pid"])
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"the {self.role} actor did not start within {timeout_s:g} s. The cluster has no "
                "room for it or is still adding nodes; see `ray status`."
            ) from None
        except ray.exceptions.RayActorError as error:
            raise ActorError(
                f"the {self.role} actor died while it started: {death_cause(error)}. Look at its "
                "log with FARREACH_DEBUG=1; if it ran out of memory, start fewer actors."
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise user_error(error) from error

    def facts(self) -> dict[str, float]:
        """See `Host.facts`."""
        return ray.get(self._actor.facts.remote())

    def stop(self) -> None:
        """End the actor now."""
        ray.kill(self._actor)


Service = InlineService | ActorService


def fetch(result: Any) -> Any:
    """The value behind a result of `call`, whichever service it came from.

    Raises:
        FarreachError: what the object raised, as it was raised there.
    """
    if not isinstance(result, ray.ObjectRef):
        return result
    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise user_error(error) from error


def user_error(error: Exception) -> Exception:
    """The FarreachError inside a Ray task's error, or the error itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, FarreachError) else error


def death_cause(error: Exception) -> str:
    """One line about why an actor died, from Ray's long message."""
    text = " ".join(str(error).split())
    for mark in ("The actor died because", "The actor is dead because", "exit_detail"):
        if mark in text:
            return text[text.index(mark) :][:300]
    return text[:300]
