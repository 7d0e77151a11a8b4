"""Faults on purpose, so that users see what a run makes of them before they pay for spot machines.

Off unless `chaos` is set in the configuration. Every fault is an event `chaos`, written before it
happens, so that a reader of `events.jsonl` can count what was done to a run, what it survived and
how long that took.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from farreach import seeding
from farreach.actors import nodes
from farreach.checkpoint import CheckpointStore
from farreach.config import Config
from farreach.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from farreach.actors.witness import Witnesses
    from farreach.rundir import RunDirectory

# Bytes that a damaged checkpoint loses in the middle of its largest file.
DAMAGE_BYTES = 64


class ChaosConfig(Config):
    """Faults on purpose; all off by default."""

    kill_every_s: float | None = Field(None, gt=0)
    """Seconds between two kills (SIGKILL) of a process of the run, on average; None: never."""
    roles: tuple[str, ...] = ()
    """Roles that are killed, such as `learner`, `rollout` (any of them) or `worker-1`; (): all."""
    drain_node_after_s: float | None = Field(None, gt=0)
    """Seconds after which a machine other than the driver's gets its notice to leave; None: none
    does. It is taken down when the notice is over."""
    notice_s: float = Field(30.0, gt=0)
    """Seconds between that notice and the machine's end."""
    corrupt_checkpoint_every_s: float | None = Field(None, gt=0)
    """Seconds between two damages to the newest checkpoint, on average; None: never."""
    faults: int | None = Field(None, ge=1)
    """So many faults and no more; None: for as long as the run lasts."""
    seed: int = Field(0, ge=0)
    """When and whom it hits follows from this."""

    @property
    def is_on(self) -> bool:
        """Whether anything is going to happen."""
        return any((self.kill_every_s, self.drain_node_after_s, self.corrupt_checkpoint_every_s))

    @property
    def needs_processes(self) -> bool:
        """Whether it hits others than the driver."""
        return self.kill_every_s is not None or self.drain_node_after_s is not None

    @model_validator(mode="after")
    def _roles_are_killed(self) -> ChaosConfig:
        if self.roles and not self.needs_processes:
            raise ValueError(
                "roles: names whom to kill, and neither kill_every_s nor drain_node_after_s is "
                "set. Set one of them, or leave roles out"
            )
        return self


class Chaos:
    """Brings about what the configuration asks for, when the driver lets it.

    ```
    chaos = Chaos(config.chaos, run, witnesses)
    while training():
        chaos.tend()
    ```
    """

    def __init__(
        self,
        config: ChaosConfig,
        run: RunDirectory,
        witnesses: Witnesses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing happens before the first interval is over.

        Args:
            config: what is to happen.
            run: gets the events, and its checkpoints the damage.
            witnesses: know the processes.
            clock: seconds; the tests bring their own.
        """
        self._config, self._run, self._witnesses, self._clock = config, run, witnesses, clock
        self._done = 0
        if config.is_on:
            # A run that is resumed is not hit by the same again.
            self._done = sum(event["event"] == "chaos" for event in run.events())
        self._rng: np.random.Generator = seeding.generator(config.seed, "chaos", self._done)
        now = clock()
        self._kill_s = self._next(config.kill_every_s, now)
        self._corrupt_s = self._next(config.corrupt_checkpoint_every_s, now)
        drain = config.drain_node_after_s
        self._drain_s = now + drain if drain is not None else None
        self._take_down: tuple[float, str] | None = None

    def tend(self) -> None:
        """Do what is due, if anything is."""
        if not self._config.is_on:
            return
        now = self._clock()
        if self._take_down is not None and now >= self._take_down[0]:
            self._witnesses.take_down(self._take_down[1])
            self._take_down = None
        if self._config.faults is not None and self._done >= self._config.faults:
            return
        if self._kill_s is not None and now >= self._kill_s:
            self._kill_s = self._next(self._config.kill_every_s, now)
            self._kill()
        if self._corrupt_s is not None and now >= self._corrupt_s:
            self._corrupt_s = self._next(self._config.corrupt_checkpoint_every_s, now)
            self._corrupt()
        if self._drain_s is not None and now >= self._drain_s:
            self._drain_s = None
            self._drain(now)

    def _next(self, every_s: float | None, now: float) -> float | None:
        return None if every_s is None else now + float(self._rng.exponential(every_s))

    def _roles(self) -> list[str]:
        """Who may be hit now, in a fixed order."""
        wanted = self._config.roles
        return sorted(
            role
            for role in self._witnesses.places
            if not wanted or any(role == each or role.startswith(f"{each}-") for each in wanted)
            if self._witnesses.is_there(role)
        )

    def _kill(self) -> None:
        if roles := self._roles():
            role = str(self._rng.choice(roles))
            place = self._witnesses.places[role]
            self._note("kill", role=role, pid=place.pid, node=place.host)
            self._witnesses.kill(role, signal.SIGKILL)

    def _corrupt(self) -> None:
        """Damage the newest checkpoint, if that leaves an intact one."""
        store = CheckpointStore(self._run.checkpoints)
        newest = store.newest()
        folders = [] if newest is None else store.directory.glob("step_*")
        for other in folders:
            with suppress(CheckpointError):
                if newest is not None and store.load(other).step != newest.step:
                    self._note("corrupt_checkpoint", path=newest.path.name)
                    damage(newest.path)
                    return

    def _drain(self, now: float) -> None:
        places = [self._witnesses.places[role] for role in self._roles()]
        there = sorted({p.node for p in places if p.node and not self._witnesses.is_here(p.node)})
        if not there:
            self._run.event("remark", text="chaos: no machine but the driver's could leave")
            return
        node = str(self._rng.choice(there))
        notice_s = self._config.notice_s
        self._note("drain", node=nodes.host_of(node), node_id=node, notice_s=notice_s)
        nodes.drain(node, notice_s)
        self._take_down = (now + notice_s, node)

    def _note(self, fault: str, **fields: Any) -> None:
        self._done += 1
        self._run.event("chaos", fault=fault, **fields)


def damage(checkpoint: Path) -> None:
    """Overwrite a few bytes in the middle of the largest file of a checkpoint's folder."""
    largest = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    with open(largest, "r+b") as file:
        file.seek(largest.stat().st_size // 2)
        file.write(b"\xa5" * DAMAGE_BYTES)
