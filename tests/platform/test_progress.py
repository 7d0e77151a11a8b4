import io
import re
import sys

import pytest

from farreach.progress import Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with Progress("maze", 2000, stream=stream, clock=clock) as progress:
        for step in range(1, 26):
            clock.now += 1
            progress.update(step * 80, {"success": 0.5})
    assert stream.getvalue().splitlines() == [
        "maze  40.0%  800/2,000 env steps  ETA 0:15  success 0.5",
        "maze  80.0%  1,600/2,000 env steps  ETA 0:05  success 0.5",
        "maze 100.0%  2,000/2,000 env steps  success 0.5",
    ]


def test_the_time_to_go_follows_the_rate_of_the_last_minute(clock):
    progress = Progress("maze", 1000, stream=io.StringIO(), clock=clock)
    assert progress.eta_s() is None
    progress.update(0)
    assert progress.eta_s() is None
    for step in range(1, 101):
        clock.now += 1
        progress.update(step)
    assert progress.eta_s() == pytest.approx(900.0)  # 1 per s
    for step in range(1, 101):
        clock.now += 1
        progress.update(100 + 4 * step)
    assert progress.eta_s() == pytest.approx(125.0)  # 500 to go, 4 per s


def test_a_fraction_takes_the_place_of_done_by_total(clock):
    stream = io.StringIO()
    progress = Progress("maze", 1000, unit="updates", stream=stream, clock=clock)
    progress.update(10, fraction=0.0)
    clock.now += 10
    progress.update(20, fraction=0.25)
    progress.update(30, fraction=7.0)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "maze  25.0%  20/1,000 updates  ETA 0:30",
        "maze 100.0%  30/1,000 updates",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(8123.7, "8,124"), (3.0, "3"), (0.12345, "0.123"), (float("nan"), "nan"), ("2/3", "2/3")],
)
def test_fields_are_short(clock, value, text):
    stream = io.StringIO()
    progress = Progress("maze", 10, stream=stream, clock=clock)
    progress.update(1, {"x": value})
    progress.close()
    assert stream.getvalue().endswith(f"  x {text}\n")


def test_hours_are_written_out(clock):
    stream = io.StringIO()
    progress = Progress("maze", 3724, stream=stream, clock=clock)
    progress.update(0)
    clock.now += 1
    progress.update(1)
    progress.close()
    assert "ETA 1:02:03" in stream.getvalue()


def test_messages_are_lines_of_their_own(clock):
    stream = io.StringIO()
    progress = Progress("maze", 10, stream=stream, clock=clock)
    progress.log("checkpoint [3] saved")
    assert stream.getvalue() == "checkpoint [3] saved\n"


def test_on_a_terminal_other_lines_do_not_tear_the_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with Progress("maze", 10, stream=terminal, clock=clock) as progress:
        progress.update(5, {"success": 0.5})
        sys.stdout.write("printed by somebody\n")
        progress.log("[1] logged")
    shown = terminal.getvalue()
    assert re.search(r"50\.0%  5/10 env steps *\n  success 0\.5\n", shown)
    assert "printed by somebody\n" in shown
    assert "[1] logged\n" in shown


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Progress("maze", 10, stream=terminal, clock=clock) as progress:
        progress.update(5)
    assert terminal.getvalue() == "maze  50.0%  5/10 env steps\n"


def test_a_narrow_terminal_cuts_the_fields_and_not_the_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    with Progress("walk_maze_debug", 10, stream=terminal, clock=clock) as progress:
        progress.update(5, {f"field {number}": number for number in range(20)})
    shown = terminal.getvalue()
    assert re.search(r"walk_maze_debug \S.* 50\.0%  5/10 env steps", shown)
    assert "field 3 3  field 4 4" in shown
    assert "…" in shown
