"""Training on a cluster as one of its jobs: submitted, followed, asked to stop.

```
dashboard = Dashboard("http://127.0.0.1:8265")
job = submit(dashboard, Order("walk_maze", runtime_env(text), root="/shared"))
code = exit_code(follow(dashboard, job))      # as of `farreach train` in the job
```
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from farreach.cluster.dashboard import ADDRESS_VARIABLE, Dashboard, LostError
from farreach.cluster.shipping import CONFIG_VARIABLE, quieten
from farreach.console import say, warn
from farreach.errors import ClusterError
from farreach.stopping import STOPPED_EXIT_CODE

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# The dashboard answers some seconds before the agent that takes jobs has come up.
AGENT_TIMEOUT_S = 60.0
# A head that does not answer for so long is given up; its job may go on.
LOST_TIMEOUT_S = 60.0
# The last lines of a log may come this much later than the news that the job has ended.
LAST_LINES_S = 10.0
PENDING_SAID_S = 10.0
POLL_S = 1.0

_NO_AGENT = ("No available agent", "Agent info not found", "Failed to get head node agent")


class Job(NamedTuple):
    """A job of a cluster, and the directory of its run there."""

    submission_id: str
    run_dir: str


@dataclass(frozen=True)
class Order:
    """What to submit.

    Attributes:
        name: the run's; the job is called `<name>-<n>`, with the next number that is free.
        runtime_env: Ray's; holds the configuration, see `shipping.runtime_env`.
        run_dir: directory or URI of the run, as the cluster sees it; a run that is there goes on.
        root: where `runs/<job>-<date>-<time>` is made if no `run_dir` is given.
        cpus: reserved for the job's own process, which with 0 runs on the head.
        gpus: likewise.
        metadata: further facts that the cluster shows with the job.
    """

    name: str
    runtime_env: dict[str, Any]
    run_dir: str | None = None
    root: str = "~/farreach"
    cpus: float = 0
    gpus: float = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


def submit(dashboard: Dashboard, order: Order) -> Job:
    """Send a job to a cluster that has been checked; it goes on without this process.

    Raises:
        ClusterError: the cluster does not take it.
    """
    client = _client(dashboard)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", order.name)
    number = _next_number(name, dashboard.job_ids())
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        job = _named(order, f"{name}-{number}")
        try:
            client.submit_job(
                entrypoint=entry_point(job.run_dir),
                submission_id=job.submission_id,
                runtime_env=order.runtime_env,
                metadata={"run": job.run_dir, **order.metadata},
                entrypoint_num_cpus=order.cpus or None,
                entrypoint_num_gpus=order.gpus or None,
            )
            return job
        except (RuntimeError, ValueError, OSError) as error:
            if "already exists" in str(error):
                number += 1
                continue
            if not any(text in str(error) for text in _NO_AGENT) or time.monotonic() > deadline:
                raise _not_taken(dashboard, error) from error
        time.sleep(POLL_S)


def entry_point(run_dir: str) -> str:
    """The shell command of a job; `~/` is the home of whoever runs the cluster."""
    home = "~/" if run_dir.startswith("~/") else ""
    where = home + shlex.quote(run_dir.removeprefix("~/"))
    return f"python -m farreach train env:{CONFIG_VARIABLE} --run-dir {where} --continue"


def follow(dashboard: Dashboard, job: Job) -> dict[str, Any]:
    """Print a job's log until it ends; what the cluster knows about it then.

    Ctrl-C stops the job after a last checkpoint, and following goes on.

    Raises:
        KeyboardInterrupt: Ctrl-C came a second time; the job is left to itself.
        ClusterError: the cluster is gone, or has forgotten the job.
    """
    return asyncio.run(_Follower(dashboard, job).follow())


def exit_code(info: Mapping[str, Any]) -> int:
    """What `farreach train` returned in a job that has ended; 75 if the job was stopped."""
    if info["status"] == "STOPPED":
        return STOPPED_EXIT_CODE
    code = info.get("driver_exit_code")
    if code is None:
        return 0 if info["status"] == "SUCCEEDED" else 1
    return int(code) if code >= 0 else 128 - int(code)


class _Follower:
    def __init__(self, dashboard: Dashboard, job: Job) -> None:
        self._dashboard, self._job = dashboard, job
        self._info: dict[str, Any] = {"status": "PENDING"}
        self._stop_wanted = self._stop_sent = False
        self._asked = asyncio.Event()

    async def follow(self) -> dict[str, Any]:
        """See `follow` of the module."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted)
        log = asyncio.create_task(self._print_log())
        begin = seen = time.monotonic()
        said_pending = False
        while self._info["status"] not in ENDED:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), POLL_S)
            self._asked.clear()
            try:
                await self._exchange()
                seen = time.monotonic()
            except LostError as error:
                if time.monotonic() > seen + LOST_TIMEOUT_S:
                    raise ClusterError(
                        f"{error} Nobody has answered for {LOST_TIMEOUT_S:.0f} s; "
                        f"{self._job.submission_id} may go on."
                    ) from error
            if self._info["status"] == "PENDING" and time.monotonic() > begin + PENDING_SAID_S:
                if not said_pending:
                    warn(f"waiting   {self._info.get('message')}")
                said_pending = True
        await asyncio.wait([log], timeout=LAST_LINES_S)
        log.cancel()
        return self._info

    def _interrupted(self) -> None:
        if self._stop_wanted:
            raise KeyboardInterrupt
        self._stop_wanted = True
        self._asked.set()
        warn(
            f"\nstopping {self._job.submission_id} after a last checkpoint; "
            "Ctrl-C again leaves without waiting for it"
        )

    async def _exchange(self) -> None:
        """Ask how the job is, and ask it to stop if that is wanted."""
        name = self._job.submission_id
        if self._stop_wanted and not self._stop_sent:
            # A job that has not begun has nobody yet who could stop it.
            self._stop_sent = await asyncio.to_thread(self._dashboard.stop, name)
        self._info = await asyncio.to_thread(self._dashboard.job, name)

    async def _print_log(self) -> None:
        printed = 0
        while True:
            passed = 0
            async for text in self._log():
                passed += len(text)
                fresh = text[max(0, len(text) - max(0, passed - printed)) :]
                if fresh:
                    printed = passed
                    say(fresh.removesuffix("\n"))
            if self._info["status"] in ENDED:
                return
            await asyncio.sleep(POLL_S)

    async def _log(self) -> AsyncIterator[str]:
        """The log from its beginning, until its end or until the connection breaks."""
        import aiohttp

        with suppress(aiohttp.ClientError, RuntimeError, OSError):
            async for text in _client(self._dashboard).tail_job_logs(self._job.submission_id):
                yield text


def _named(order: Order, submission_id: str) -> Job:
    if order.run_dir is not None:
        return Job(submission_id, order.run_dir)
    # A head that was started again counts from 1: the date tells runs of equal names apart.
    root, now = order.root.rstrip("/"), datetime.now()
    return Job(submission_id, f"{root}/runs/{submission_id}-{now:%Y%m%d-%H%M%S}")


def _next_number(name: str, known: list[str]) -> int:
    numbers = [re.fullmatch(rf"{re.escape(name)}-(\d+)", job) for job in known]
    return 1 + max((int(found[1]) for found in numbers if found), default=0)


def _not_taken(dashboard: Dashboard, error: Exception) -> ClusterError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = f"the cluster at {dashboard.address} does not take the job: {lines[-1].strip()}"
    if any(text in str(error) for text in _NO_AGENT):
        message += (
            ". Its agent has not come up; where two Rays share a machine, start each with a "
            "--dashboard-agent-listen-port of its own"
        )
    return ClusterError(message.rstrip(".") + ".")


def _client(dashboard: Dashboard) -> Any:
    from ray.job_submission import JobSubmissionClient

    quieten()
    with _without("RAY_ADDRESS", ADDRESS_VARIABLE):
        return JobSubmissionClient(dashboard.address)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide variables that Ray's client prefers to the address it is given."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
