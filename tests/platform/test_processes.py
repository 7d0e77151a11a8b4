import os
import subprocess
import sys

import pytest

from farreach.testing import processes
from farreach.testing.processes import Processes, descendants, runs

CHILD = "import signal, time; signal.signal(15, {}); print(1, flush=True); time.sleep(100)"
PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(100)"
)


@pytest.fixture
def family():
    """A parent that obeys and its child that does not."""
    child = CHILD.format("signal.SIG_IGN")
    command = [sys.executable, "-c", PARENT, child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            yield parent, int(parent.stdout.readline())
        finally:
            parent.kill()


def test_the_children_of_children_are_found(family):
    parent, child = family
    assert descendants(parent.pid) == [child]
    assert {parent.pid, child} <= set(descendants(os.getpid()))
    assert descendants(child) == []


def test_what_does_not_end_when_asked_is_killed_and_the_others_are_left(family, monkeypatch):
    monkeypatch.setattr(processes, "TERM_S", 0.3)
    parent, child = family
    Processes(descendants(parent.pid)).end()
    assert not runs(child)
    assert runs(parent.pid)
    Processes([parent.pid]).end()
    assert parent.wait(5) == -15


def test_a_process_that_has_ended_meanwhile_is_not_taken_for_another(family):
    parent, _ = family
    held = Processes([parent.pid])
    parent.kill()
    parent.wait()
    held.end()
    assert not runs(parent.pid)
    assert descendants(parent.pid) == []
    Processes([parent.pid]).end()
