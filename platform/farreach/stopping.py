"""Requests to stop, which signals make, and how a run answers them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL: trying again, with `farreach resume`, is useful
CTRL_C_EXIT_CODE = 130


class Stopped(Exception):  # noqa: N818 (no error: the run did what it was asked to do)
    """The run was asked to stop, and has written its last checkpoint."""

    def __init__(self, signum: int) -> None:
        """Stopped by SIGTERM or SIGINT."""
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return CTRL_C_EXIT_CODE if self.signum == signal.SIGINT else STOPPED_EXIT_CODE


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in here, so that what was begun is ended as on Ctrl-C."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a request; a second Ctrl-C aborts at once.

    ```
    with StopRequest() as stop:
        while not done:
            step()
            if stop.signum is not None:
                save_checkpoint()
                raise Stopped(stop.signum)
    ```
    Enter it after `runtime.connect`. Outside of the main thread, where Python has no signals, it
    never asks.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None or number == signal.SIGINT:
            self.signum = number
        # Not through sys.stderr, whose lock the interrupted code may hold.
        with suppress(OSError):
            os.write(2, b"\nstopping after a last checkpoint; Ctrl-C twice aborts at once\n")
