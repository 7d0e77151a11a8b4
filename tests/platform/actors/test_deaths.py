"""Real deaths, and whether they are told apart: of processes, of machines, for want of memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.platform.actors.deaths import death_of, guard_of, service_of

from farreach.actors.services import fetch
from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("deaths.py")
KEEPS_STATUS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


@pytest.fixture
def guard(ray_local, tmp_path):
    guard = guard_of(tmp_path)
    yield guard
    guard.close()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("how", "cause", "detail"),
    [
        (str(int(signal.SIGSEGV)), "signal", "signal 11 (SIGSEGV)"),
        (str(int(signal.SIGABRT)), "signal", "signal 6 (SIGABRT)"),
        (str(int(signal.SIGKILL)), "signal", "signal 9 (SIGKILL)"),
        (str(int(signal.SIGTERM)), "signal", "signal 15 (SIGTERM)"),
        ("leave", "exit", "exit code 4"),
        ("exit", "exit", "exit code 3"),
    ],
)
def test_an_end_is_told_as_what_it_was(guard, tmp_path, how, cause, detail):
    service = service_of("mortal", guard)
    found = death_of(service, guard, "end", how)
    if how != "exit" or KEEPS_STATUS:
        assert found["cause"] == cause
        assert detail in found["detail"]
    assert found["pid"] == service.place.pid
    assert found["memory_mb"][-1][1] > 20
    (event,) = RunDirectory(tmp_path).events()
    assert event["event"] == "actor_died"
    assert event["role"] == "mortal"


@pytest.mark.ray
def test_what_a_call_raises_is_no_death_and_has_its_trace(guard):
    service = service_of("mortal", guard)
    with pytest.raises(Exception, match="no such room") as raised:
        fetch(service.call("end", "raise"))
    report = guard.look_into("mortal", raised.value)
    assert report.cause == "exception"
    assert report.detail == "it raised ValueError: no such room"
    assert "deaths.py" in report.trace
    service.stop()


@pytest.mark.ray
def test_an_actor_that_ray_ended_is_not_called_killed(guard):
    service = service_of("mortal", guard)
    service.stop()
    assert death_of(service, guard, "nap", 60)["cause"] == "ended"


def lines(*arguments, limit_s):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}:{ROOT}",
                          "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.ray
@pytest.mark.slow
def test_a_machine_that_is_lost_is_told_from_one_that_was_taken_away(tmp_path):
    lost, taken = lines("nodes", tmp_path, limit_s=300)
    assert lost["cause"] == "node_lost"
    assert taken["cause"] == "preempted"
    assert "after its notice" in taken["detail"]
    events = RunDirectory(tmp_path).events()
    (notice,) = [event for event in events if event["event"] == "preemption"]
    assert notice["roles"] == ["part-1"]
    assert notice["deadline"] == pytest.approx(time.time(), abs=300)


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_that_takes_too_much_memory_is_said_to_have_done_so(tmp_path):
    (found,) = lines("memory", tmp_path, limit_s=300)
    assert found["cause"] == "out_of_memory"
    assert "Ray's monitor" in found["detail"]
    sizes = [size for _, size in found["memory_mb"]]
    assert sizes[-1] > sizes[0]
