"""Services: a plain object, called in this process or in a Ray actor of its own.

The object knows nothing of Ray. `InlineService` calls it at once and hands the values back;
`ActorService` gives references. Both take the results of other services as arguments, so a
program written against `call` and `fetch` runs in one process or in many without a change.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import ray

from farreach.actors.witness import Whereabouts, whereabouts
from farreach.errors import ActorError, ClusterError, FarreachError
from farreach.failures import Facts, explain
from farreach.logs import name_process

START_TIMEOUT_S = 120.0

logger = logging.getLogger(__name__)

# A process is gone, or its machine. One that Ray's memory monitor has ended is told apart from
# other dead actors by its class, which is not derived from theirs.
DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)
# What a call was to take, or has returned, was on a machine that is gone.
LOSSES = (ray.exceptions.ObjectLostError, ray.exceptions.ObjectFetchTimedOutError)


class Host:
    """Holds the object inside the actor; counts how long it was busy.

    The first call builds the object. An error in an actor's constructor would reach the caller as
    a death; one in a call reaches it as what it is.
    """

    def __init__(
        self, factory: Callable[..., Any], arguments: Sequence[Any], role: str | None = None
    ) -> None:
        """Hold what `factory(*arguments)` will make; in an actor, `role` names its process."""
        self._factory, self._arguments, self._role = factory, arguments, role
        if role is not None:
            name_process(role)
        self._busy_s = 0.0
        self._since = time.monotonic()

    def __repr__(self) -> str:
        """The role, under which Ray lists the actor."""
        return self._role or type(self).__name__

    @cached_property
    def _object(self) -> Any:
        made = self._factory(*self._arguments)
        logger.info("made")
        return made

    def invoke(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object."""
        target = self._object
        begin = time.monotonic()
        try:
            return getattr(target, method)(*arguments)
        except Exception:
            if self._role is not None:
                logger.exception("%s failed", method)
            raise
        finally:
            self._busy_s += time.monotonic() - begin

    def facts(self) -> dict[str, float]:
        """Process id, and the share of the time since the last call spent in the object."""
        _ = self._object  # built by the first call, whichever it is
        now = time.monotonic()
        share = self._busy_s / max(now - self._since, 1e-9)
        self._busy_s, self._since = 0.0, now
        return {"pid": os.getpid(), "busy_share": share}

    def settle(self) -> Whereabouts:
        """Build the object; where it lives."""
        _ = self._object
        return whereabouts()


class InlineService:
    """The object in this process."""

    place: Whereabouts | None = None
    is_ready = True

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

    Results are owned by the caller of `call`, so what an actor has returned outlives it, though not
    the machine that it ran on.

    Attributes:
        role: its name in messages.
        place: where its process is, once it is known to be ready.
    """

    def __init__(
        self,
        role: str,
        factory: Callable[..., Any],
        arguments: Sequence[Any],
        *,
        num_cpus: float,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        strategy: Any = None,
    ) -> None:
        """Start the actor; `wait_until_ready` tells when the object is built.

        Args:
            role: names it in messages.
            factory: makes the object, there.
            arguments: of the factory.
            num_cpus: logical CPUs that it reserves.
            num_gpus: GPUs that it reserves.
            resources: amounts of the cluster's own resources that it reserves besides.
            strategy: of Ray's scheduling; None packs.
        """
        self.role = role
        self.place: Whereabouts | None = None
        # A half-done update must not be repeated, and an object that comes back empty is worse
        # than one that stays away: restarts are the coordinator's business.
        options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": dict(resources or {}),
            "max_restarts": 0,
            "scheduling_strategy": strategy,
        }
        self._actor: Any = (
            ray.remote(Host).options(**options).remote(factory, list(arguments), role)
        )

    @property
    def is_ready(self) -> bool:
        """Whether the object is known to be built."""
        return self.place is not None

    def call(self, method: str, *arguments: Any, returns: int = 1) -> Any:
        """A reference to the method's result, or `returns` of them for a tuple."""
        return self._actor.invoke.options(num_returns=returns).remote(method, *arguments)

    def settling(self) -> Any:
        """A reference to where it lives, which is there once the object is built; see `settled`."""
        return self._actor.settle.remote()

    def settled(self, reference: Any) -> Whereabouts:
        """Take note of what `settling` has found; raises what building the object raised."""
        self.place = place = fetch(reference)
        assert isinstance(place, Whereabouts)
        return place

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> int:
        """Process id of the actor, once the object is built.

        Raises:
            ClusterError: the cluster has not found room for the actor in time.
            ActorError: it died before the object was built.
            FarreachError: what building the object raised.
        """
        reference = self.settling()
        if not ray.wait([reference], timeout=timeout_s)[0]:
            raise ClusterError(
                f"the {self.role} actor did not start within {timeout_s:g} s. The cluster has no "
                "room for it or is still adding nodes; see `ray status`."
            )
        try:
            return self.settled(reference).pid
        except DEATHS as error:
            raise ActorError(
                f"the {self.role} actor died while it started: {death_cause(error)}. Look at its "
                "log with FARREACH_DEBUG=1; if it ran out of memory, start fewer actors."
            ) from error

    def facts(self) -> dict[str, float]:
        """See `Host.facts`."""
        return ray.get(self._actor.facts.remote())

    def ask(self) -> Any:
        """A reference to `facts`, which an actor at work answers when it is done."""
        return self._actor.facts.remote()

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


def is_raised(error: Exception) -> bool:
    """Whether an error is what a call raised, and not that its process or its data are gone."""
    return isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error, LOSSES)


def user_error(error: Exception) -> Exception:
    """The FarreachError inside a Ray task's error, or the error itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, FarreachError) else error


def death_cause(error: Exception) -> str:
    """One line about why an actor died, from what Ray says alone; see `failures.explain`."""
    return explain(error, Facts("")).detail
