import os
import signal
import subprocess
import sys
import time

import pytest

from farreach.actors.witness import Witness, Witnesses, oom_kills, resident_bytes, whereabouts

KEEPS_STATUS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)


@pytest.fixture
def witness():
    witness = Witness(sample_s=0.05)
    yield witness
    witness.stop()


@pytest.fixture
def sleeper():
    code = "import time; print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_process_takes_is_what_the_kernel_says(sleeper):
    with open(f"/proc/{sleeper.pid}/status") as file:
        line = next((line for line in file if line.startswith("VmRSS")), "VmRSS: 0 kB")
    assert resident_bytes(sleeper.pid) == pytest.approx(int(line.split()[1]) * 1024, rel=0.5)
    assert resident_bytes(2**22 + 1) == 0
    assert oom_kills() >= 0


@pytest.mark.skipif(not KEEPS_STATUS, reason="older kernels keep no status for others")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_signal_that_ended_a_process_is_known_without_being_its_parent(
    witness, sleeper, tmp_path, number
):
    log = tmp_path / "log"
    log.write_text("x" * 10_000 + "the end")
    witness.watch(sleeper.pid, str(log))
    time.sleep(1.0)
    assert not witness.has_crashed(sleeper.pid)
    witness.kill(sleeper.pid, number)
    sleeper.wait()
    assert witness.has_crashed(sleeper.pid)
    seen = witness.testify(sleeper.pid)
    assert seen.status == number
    assert seen.log.endswith("the end")
    assert len(seen.log) < 10_000
    assert len(seen.samples) > 1
    ago = [seconds for seconds, _ in seen.samples]
    assert ago == sorted(ago, reverse=True)
    assert all(size > 1e6 for _, size in seen.samples)


@pytest.mark.skipif(not KEEPS_STATUS, reason="older kernels keep no status for others")
def test_an_exit_code_is_known_as_well(witness):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3); exit(3)"])
    witness.watch(process.pid, "")
    process.wait()
    assert witness.testify(process.pid).status == 3 << 8


def test_of_a_process_that_nobody_watched_nothing_is_known(witness):
    seen = witness.testify(1)
    assert (seen.status, seen.log, seen.samples, seen.oom_kills) == (None, "", [], 0)


def test_a_process_that_is_not_watched_is_not_killed(witness, sleeper):
    witness.kill(sleeper.pid, signal.SIGKILL)
    assert sleeper.poll() is None


def test_roles_are_places_and_forgotten_with_their_facts(sleeper):
    witnesses = Witnesses()
    here = whereabouts()
    assert here.pid == os.getpid()
    place = type(here)(sleeper.pid, here.node, "this one", "")
    witnesses.watch("sleeper", place)
    assert witnesses.is_there("sleeper")
    witnesses.kill("sleeper")
    sleeper.wait()
    assert not witnesses.is_there("sleeper")
    facts = witnesses.facts("sleeper", notice_s=2.0)
    assert (facts.role, facts.pid, facts.node, facts.notice_s) == (
        "sleeper", sleeper.pid, "this one", 2.0,
    )  # fmt: skip
    assert not facts.node_is_gone
    assert witnesses.places == {}
    assert witnesses.facts("sleeper").pid is None
    witnesses.stop()
