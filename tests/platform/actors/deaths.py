"""Actors that die in many ways, and a program that loses machines and memory and says what it sees.

Run as `deaths.py nodes FOLDER` or `deaths.py memory FOLDER`; prints one JSON object a line.
"""

import json
import os
import sys
import time
from pathlib import Path

GB = 1 << 30


class Mortal:
    """Does what it is told to its own process."""

    def end(self, how):
        if how == "exit":
            os._exit(3)
        if how == "leave":
            sys.exit(4)
        if how == "raise":
            raise ValueError("no such room")
        os.kill(os.getpid(), int(how))
        time.sleep(60)

    def eat(self, gigabytes):
        """Takes memory, and holds it; rests at the first gigabyte, where it can be seen."""
        kept = []
        for part in range(16 * gigabytes):
            kept.append(bytearray(os.urandom(1)) * (GB // 16))
            time.sleep(5 if part == 16 else 0.05)
        time.sleep(60)

    def nap(self, seconds):
        time.sleep(seconds)


def guard_of(folder):
    from farreach.actors.chaos import ChaosConfig
    from farreach.actors.guard import Guard
    from farreach.rundir import RunDirectory

    return Guard(RunDirectory(Path(folder)), ChaosConfig(), lambda line: None)


def service_of(role, guard, **options):
    from farreach.actors.services import ActorService

    service = ActorService(role, Mortal, (), num_cpus=0.1, **options)
    service.wait_until_ready()
    guard.watch({role: service.place})
    return service


def death_of(service, guard, method, *arguments):
    """How long a call took to fail, and what is said of it."""
    from farreach.actors.services import DEATHS, fetch

    begun = time.monotonic()
    try:
        fetch(service.call(method, *arguments))
    except DEATHS as error:
        took_s = time.monotonic() - begun
        report = guard.look_into(service.role, error)
        return {"took_s": took_s, **guard.tell(report, lost="", then="").fields()}
    raise AssertionError("it has lived on")


def say(found):
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def lose_nodes(folder):
    import ray

    from farreach.actors.nodes import drain
    from farreach.testing.nodes import several_nodes

    with several_nodes([{"num_cpus": 1, "resources": {f"n{i}": 1}} for i in range(2)]) as nodes:
        ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
        guard = guard_of(folder)
        services = [service_of(f"part-{i}", guard, resources={f"n{i}": 1}) for i in range(2)]
        first, second = (service.place.node for service in services)
        assert first != second
        running = services[0].call("nap", 600)
        nodes.switch_off(first)
        found = death_of(services[0], guard, "nap", 0)
        say(found)
        del running
        assert drain(second, 6.0)
        time.sleep(1.5)
        notices = guard.news()
        assert [notice.node for notice in notices] == [second]
        assert guard.leaving() == {"part-1"}
        time.sleep(3)
        nodes.switch_off(second)
        say(death_of(services[1], guard, "nap", 600))
        guard.close()
        ray.shutdown()


def lose_memory(folder):
    total, left = (int(line.split()[1]) * 1024 for line in meminfo("MemTotal", "MemAvailable"))
    spare = min(5 * GB, left // 2)  # what runs beside must not be what reaches the threshold
    threshold = f"{(total - left + spare) / total:.3f}"
    os.environ |= {"RAY_memory_usage_threshold": threshold, "RAY_memory_monitor_refresh_ms": "100"}
    import tempfile

    import ray

    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as place:
        ray.init(
            address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
            object_store_memory=100_000_000, _temp_dir=place, logging_level="ERROR",
        )  # fmt: skip
        guard = guard_of(folder)
        service = service_of("eater", guard)
        say(death_of(service, guard, "eat", 4 + spare // GB))
        guard.close()
        ray.shutdown()


def meminfo(*names):
    lines = Path("/proc/meminfo").read_text().splitlines()
    return [next(line for line in lines if line.startswith(f"{name}:")) for name in names]


if __name__ == "__main__":
    {"nodes": lose_nodes, "memory": lose_memory}[sys.argv[1]](sys.argv[2])
