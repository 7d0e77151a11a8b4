import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach.testing import networks, processes
from farreach.testing.networks import network

pytestmark = pytest.mark.skipif(networks.obstacle() is not None, reason=str(networks.obstacle()))

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 47001))
print("listens", flush=True)
while True:
    with server.accept()[0] as end:
        while data := end.recv(1 << 16):
            end.sendall(data)
"""
# Seconds of an echo of so many bytes, or "silence".
ASK = """
import socket, sys, time
data = bytes(int(sys.argv[2]))
try:
    with socket.create_connection((sys.argv[1], 47001), timeout=1.5) as end:
        begun = time.monotonic()
        end.sendall(data)
        got = 0
        while got < len(data):
            got += len(end.recv(1 << 16))
        print(time.monotonic() - begun)
except OSError:
    print("silence")
"""


def made_by(pid):
    """Interfaces and namespaces of a process's networks."""
    names = [*os.listdir("/sys/class/net"), *networks._try("ip", "netns", "list").split()]
    return [name for name in names if name.startswith(f"fr{pid}n")]


@pytest.fixture
def pair():
    """Two hosts, of which the first echoes; and what the second hears of so many bytes."""
    with network(2) as (server, client):
        process = server.start([sys.executable, "-c", ECHO, server.address], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"listens\n"

        def ask(size=10):
            command = [sys.executable, "-c", ASK, server.address, str(size)]
            return client.run(command, capture_output=True, text=True, check=True).stdout.strip()

        yield server, client, ask
        process.stdout.close()
    process.wait(10)


def test_a_delay_is_met_on_the_way_there_and_on_the_way_back(pair):
    _, client, ask = pair

    def quickest():
        return min(float(ask()) for _ in range(4))

    assert quickest() < 0.12
    client.shape(delay_ms=60)
    assert quickest() >= 0.12
    client.shape()
    assert quickest() < 0.12


def test_a_rate_limits_what_is_sent_and_all_of_it_is_counted(pair):
    server, client, ask = pair
    client.shape(mbit_per_s=8)
    sent = client.traffic().sent, server.traffic().received
    # 1 MB takes a second at 1 MB/s, but for the 0.13 MB that go at once.
    assert float(ask(1_000_000)) > 0.8
    now = client.traffic().sent, server.traffic().received
    assert all(1_000_000 <= now[i] - sent[i] < 1_200_000 for i in range(2))


def test_a_cut_cable_is_silent_until_it_is_mended_with_a_delay_and_without(pair):
    _, client, ask = pair
    client.cut()
    assert ask() == "silence"
    client.shape(delay_ms=5)
    assert ask() == "silence"
    client.mend()
    assert float(ask()) >= 0.01
    client.cut()
    client.shape()
    assert ask() == "silence"
    client.mend()
    assert float(ask()) > 0


def test_at_the_end_nothing_is_left_of_it(monkeypatch):
    monkeypatch.setattr(processes, "TERM_S", 0.2)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True);"
    started = []

    def fail():
        with network(2) as hosts:
            command = [sys.executable, "-c", stubborn + "time.sleep(100)"]
            started.append(hosts[0].start(command, stdout=subprocess.PIPE))
            started[0].stdout.readline()
            started[0].stdout.close()
            hosts[1].shape(delay_ms=1)
            assert hosts[0].pids() == [started[0].pid]
            assert made_by(os.getpid())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert started[0].wait(5) == -9
    assert not made_by(os.getpid())


def test_what_a_killed_maker_left_behind_is_removed_by_the_next():
    program = (
        "import sys, time; from farreach.testing.networks import network;\n"
        "with network(1) as (host,):\n"
        "    host.start(['sleep', '100'])\n"
        "    while not host.pids(): time.sleep(0.05)\n"
        "    print(host.pids()[0], flush=True); time.sleep(100)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    maker = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    left = int(maker.stdout.readline())
    maker.kill()
    maker.wait()
    maker.stdout.close()
    assert made_by(maker.pid)
    assert Path(f"/proc/{left}").exists()
    with network(1):
        pass
    assert not made_by(maker.pid)
    deadline = time.monotonic() + 10
    while processes.runs(left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes.runs(left)
