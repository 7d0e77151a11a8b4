"""Progress of a long run: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from farreach import logs
from farreach.console import Display

RATE_WINDOW_S = 60.0


class _Bar(Bar):
    """A bar with a line of fields below it, so that a narrow terminal cuts neither."""

    fields_text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the fields, each on a line of its own."""
        yield from super().get_renderables()
        if self.fields_text:
            yield Text(f"  {self.fields_text}", no_wrap=True, overflow="ellipsis")


class Progress:
    """Shows how far a run is and when it will be done.

    ```
    with Progress("walk_maze", total=2_000_000) as progress:
        progress.update(env_steps, {"success": 0.42, "env steps/s": 8100})
    ```
    Lines that others print to stdout or stderr appear above the bar.
    """

    def __init__(
        self,
        label: str,
        total: float,
        unit: str = "env steps",
        stream: TextIO | None = None,
        *,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to show progress.

        Args:
            label: what is running.
            total: how many units the whole is, over 0.
            unit: what is counted.
            stream: where to, by default stderr.
            interval_s: shortest time between two plain lines.
            clock: seconds; the tests bring their own.
        """
        self._label = label
        self._total = total
        self._unit = unit
        self._stream = cast(TextIO, Display(sys.stderr if stream is None else stream))
        self._interval_s = interval_s
        self._clock = clock
        self._done = 0.0
        self._fraction = 0.0
        self._fields: dict[str, str | float] = {}
        self._seen: deque[tuple[float, float]] = deque()  # (time in s, fraction)
        self._last_line_s = clock()
        self._last_line = ""
        self._closed = False
        console = Console(file=self._stream)
        self._bar: _Bar | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = _Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[state]}", markup=False),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(label, total=1.0, state="")
            self._bar.start()

    def update(
        self,
        done: float,
        fields: Mapping[str, str | float] | None = None,
        fraction: float | None = None,
    ) -> None:
        """Show a new state.

        Args:
            done: units done since the beginning of the run.
            fields: what else to show; fields that are left out keep their last value.
            fraction: how far the run is, in [0, 1], where units do not tell (a run with a time
                limit); by default done / total.
        """
        self._done = done
        self._fraction = min(1.0, max(0.0, done / self._total if fraction is None else fraction))
        self._fields.update(fields or {})
        now = self._clock()
        self._seen.append((now, self._fraction))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        if self._bar is not None:
            self._bar.fields_text = self._fields_text()
            self._bar.update(self._task, completed=self._fraction, state=self._state())
        elif now - self._last_line_s >= self._interval_s:
            self._write_line()

    def log(self, message: str) -> None:
        """Print a message that stays."""
        if self._bar is not None:
            self._bar.console.print(Text(message))
        else:
            self._write(message)

    def close(self) -> None:
        """Show the last state and stop; calling it twice does no harm."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.stop()
        else:
            self._write_line()

    def __enter__(self) -> Progress:
        """The display itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the display."""
        self.close()

    def eta_s(self) -> float | None:
        """Seconds to go at the rate of the last minute, or None while that is unknown."""
        if len(self._seen) < 2:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last <= first or last_s <= first_s:
            return None
        return (1.0 - last) * (last_s - first_s) / (last - first)

    def _state(self) -> str:
        parts = [
            f"{100 * self._fraction:5.1f}%",
            f"{number(self._done)}/{number(self._total)} {self._unit}",
        ]
        eta_s = self.eta_s()
        if eta_s is not None and self._fraction < 1.0:
            parts.append(f"ETA {duration(eta_s)}")
        return "  ".join(parts)

    def _fields_text(self) -> str:
        return "  ".join(
            f"{name} {value if isinstance(value, str) else number(value)}"
            for name, value in self._fields.items()
        )

    def _write_line(self) -> None:
        self._last_line_s = self._clock()
        line = f"{self._label} {self._state()}  {self._fields_text()}".rstrip()
        if line != self._last_line:
            self._last_line = line
            self._write(line)

    def _write(self, line: str) -> None:
        state = {"done": self._done, "share": self._fraction, **self._fields}
        self._stream.write(logs.line(line, fields=state))


def number(value: float) -> str:
    """Whole numbers and large ones with separators, small ones with three digits."""
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
