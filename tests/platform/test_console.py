"""What becomes of lines when nobody reads them any more, or the disk that takes them is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farreach import console
from farreach.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from farreach.progress import Progress
with Progress("maze", 10, interval_s=0.0) as progress:
    for step in range(5):
        progress.update(step)
        time.sleep(0.1)
open(sys.argv[1], "w").write("done")
"""


def shell(command, tmp_path):
    """What a line of the shell returns, in which PROGRAM notes in `done` that it has ended."""
    program, done = tmp_path / "program.py", tmp_path / "done"
    program.write_text(PROGRAM)
    command = command.replace("PROGRAM", f"{sys.executable} {program} {done}")
    command = command.replace("FARREACH", f"{sys.executable} -m farreach")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}/workloads"}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
    )
    return result, done.exists()


@pytest.mark.parametrize(
    "command",
    ["PROGRAM 2>&1 | head -n 1", "PROGRAM 2> /dev/full", "PROGRAM 2>&-", "PROGRAM >&- 2>&-"],
)
def test_a_run_goes_on_when_its_progress_can_no_longer_be_shown(command, tmp_path):
    result, is_done = shell(command, tmp_path)
    assert is_done
    assert result.returncode == 0
    assert "Error" not in result.stderr


def test_a_run_outlives_its_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    leader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream, Progress("maze", 10, stream=stream) as progress:
        progress.update(1)
        os.close(leader)
        progress.update(2)
        progress.log("nobody sees this")


def test_lines_go_nowhere_when_the_terminal_was_closed():
    leader, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        os.close(leader)
        console.write(stream, "one\n")
        console.write(stream, "two\n")


def test_other_failures_of_a_stream_are_told_and_what_was_not_written_is_not_tried_again():
    with open("/dev/full", "w") as stream:
        with pytest.raises(OSError, match="No space left"):
            console.write(stream, "one\n")
        assert console.Display(stream).write("one\n") == 4
        with pytest.raises(OSError, match="No space left"):  # later lines are tried
            console.write(stream, "two\n")
    console.write(None, "one\n")


def test_a_command_whose_results_find_no_room_fails_with_one_line(tmp_path):
    result, _ = shell("FARREACH list configs > /dev/full", tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "error: no space left on device. Free some space, or write to another disk.\n"
    )
    result, _ = shell("FARREACH --help > /dev/full", tmp_path)
    assert result.stderr == ""


def test_a_command_whose_output_is_closed_does_its_work(tmp_path):
    result, _ = shell("FARREACH list configs >&-", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    result, _ = shell("FARREACH train nothing 2>&-", tmp_path)
    assert result.returncode == 2
