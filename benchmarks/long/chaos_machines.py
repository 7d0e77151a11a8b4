"""Drills on machines: their power, their network, their disk and their memory. See `chaos.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos_processes import LIMIT_S, MAZE, MAZE_SETTINGS, TEXT, TEXT_SETTINGS, Drills
from far_node import LOST_AFTER_S, FarNode, far_node

from farreach.memory import available_bytes, usable_bytes
from farreach.testing.drills import Outcome, Training, newest_saved, outcomes
from farreach.testing.nodes import Nodes, several_nodes

MIB = 2**20
# Takes memory until so much of all is in use, and holds it.
HUNGRY = """
import sys, time
from farreach.memory import available_bytes, usable_bytes
kept = []
while True:
    if 1 - available_bytes() / usable_bytes() < float(sys.argv[1]):
        kept.append(bytearray(b"x") * (64 << 20))
    time.sleep(0.05)
"""


class MachineDrills(Drills):
    """Those that need several nodes, a disk of their own, or all the memory."""

    def node(self, faults: int) -> None:
        """The machine of one part is switched off; another is there."""
        for number in range(faults):
            role = ("learner", "rollout-0", "worker-0")[number % 3]
            with self._on_machines(f"off, {role}", role, []) as (training, nodes):
                training.until_saved(self.rng.uniform(4, 10), after=1 << 60)
                begun = time.time()
                nodes.switch_off(_place_of(role, training))
                done = training.wait(LIMIT_S) == 0
            after = [e for e in training.events() if e["time"] > begun]
            back = [e for e in after if e["event"] in ("recovered", "actors")]
            took_s = back[-1]["time"] - begun if back else None
            lost = next((e["lost"] for e in after if e["event"] == "actor_died"), "")
            self.note(Outcome(_workload(role), f"machine of {role} off", done, took_s, lost))

    def drain(self, faults: int) -> None:
        """That machine gets a notice of 8 s and is taken away; another is there."""
        for number in range(faults):
            role = ("learner", "rollout", "worker")[number % 3]
            settings = [f"chaos.roles=[{role}]", "chaos.drain_node_after_s=20", "chaos.notice_s=8"]
            with self._on_machines(f"notice, {role}", role, settings) as (training, _):
                done = training.wait(LIMIT_S) == 0
            self.note(*outcomes(f"{_workload(role)} ({role})", training.events(), done))

    @contextmanager
    def _on_machines(
        self, name: str, role: str, settings: list[str]
    ) -> Iterator[tuple[Training, Nodes]]:
        """A run that has begun, of what has that role; its driver has a machine to itself."""
        if _workload(role) == "text":
            config, machines = TEXT, [{"num_cpus": 1, "resources": {"part": 1}}] * 3
            own = [*TEXT_SETTINGS, "runtime.evaluators=0", "runtime.resources={part: 1}"]
            own += ["training.epochs=1500"]
        else:
            config, machines = MAZE, [{"num_cpus": 2, "resources": {"part": 6}}] * 2
            roles = ("learner", "memory", "reachability", "rollout", "evaluator")
            parts = ", ".join(f"{each}: {{part: 1}}" for each in roles)
            own = [*MAZE_SETTINGS, f"runtime.resources={{{parts}}}", "training.env_steps=400000"]
        with several_nodes(machines, head_cpus=0) as nodes:
            address = {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
            training = self.training(name, config, [*own, *settings], address)
            training.start()
            training.until_saved(LIMIT_S)
            yield training, nodes

    def head(self, faults: int) -> None:
        """The cluster's head dies with all machines; the run goes on in another cluster."""
        training = self.training("head", MAZE, [*MAZE_SETTINGS, "training.env_steps=120000"])
        hits: list[float | None] = []
        begun = 0.0
        for number in range(faults + 1):
            with several_nodes([{"num_cpus": 2}], head_cpus=0) as nodes:
                known = len(training.events())
                training.start(RAY_ADDRESS=nodes.address, RAY_AUTH_MODE="disabled")
                back = training.until_event("checkpoint", LIMIT_S, known=known)
                if number:
                    hits.append(time.monotonic() - begun if back else None)
                if number < faults:
                    training.until_saved(LIMIT_S, after=newest_saved(training.path))
                    begun = time.monotonic()
                    for node in nodes.ids()[::-1]:
                        nodes.switch_off(node)
                    training.wait(180)
                else:
                    done = training.wait(LIMIT_S) == 0
        self.note(*[Outcome("maze", "kill head", done, took_s) for took_s in hits])

    def disk(self, faults: int) -> None:
        """The run's disk is full; the run ends with a message and goes on when there is room."""
        for _ in range(faults):
            with _small_disk(self.folder / "disk", 260 * MIB) as place:
                if place is None:
                    print("disk: no tmpfs can be mounted here", file=sys.stderr)
                    return
                settings = [*MAZE_SETTINGS, "training.env_steps=60000"]
                training = Training(MAZE, settings, place / "run")
                training.start()
                training.until_saved(LIMIT_S)
                begun = time.monotonic()
                with suppress(OSError), open(place / "ballast", "wb") as file:
                    while True:
                        file.write(bytes(MIB))
                        file.flush()
                code = training.wait(LIMIT_S)
                told = code == 1 and "Free" in training.output
                (place / "ballast").unlink()
                training.start()
                back = training.until_saved(LIMIT_S, after=newest_saved(training.path))
                took_s = time.monotonic() - begun if back else None
                done = training.wait(LIMIT_S) == 0
                self.note(Outcome("maze", "full disk", told and done, took_s))

    def memory(self, faults: int) -> None:
        """A process beside the run eats memory until Ray's monitor ends one of its actors."""
        share = 1 - (available_bytes() - 6 * 1024 * MIB) / usable_bytes()
        settings = [*MAZE_SETTINGS, "training.env_steps=120000"]
        variables = {"RAY_memory_usage_threshold": f"{share:.3f}"}
        training = self.training("memory", MAZE, settings, variables)
        training.start()
        hits: list[float] = []
        for _ in range(faults):
            training.until_saved(LIMIT_S, after=newest_saved(training.path))
            known = len(training.events())
            hits.append(time.time())
            with _hungry(share):
                training.until_event("actor_died", 120, known=known)
            training.until_event("checkpoint", LIMIT_S, known=known)
        done = training.wait(LIMIT_S) == 0
        for begun in hits:
            after = [e for e in training.events() if e["time"] > begun]
            died = [e for e in after if e["event"] == "actor_died"][:1]
            told = bool(died) and died[0]["cause"] == "out_of_memory"
            back = [e for e in after if e["event"] in ("recovered", "actors")]
            again = [e["time"] for e in back if died and e["time"] > died[0]["time"]]
            took_s = again[0] - died[0]["time"] if again else None
            lost = died[0]["lost"] if died else ""
            self.note(Outcome("maze", "eaten memory", done and told, took_s, lost))

    def network(self, faults: int) -> None:
        """The cable to a machine with all parts but the driver is pulled for 2 s, then for 20 s.

        A call outlasts the first; the machine is lost in the second, and another is there.
        """
        for number in range(2 * faults):
            with far_node(self.folder) as node:
                if node is None:
                    print("network: namespaces are not permitted here", file=sys.stderr)
                    return
                self._pulled(node, 2.0 if number % 2 == 0 else 20.0)

    def _pulled(self, node: FarNode, seconds: float) -> None:
        where = {"RAY_ADDRESS": node.address, "RAY_AUTH_MODE": "disabled"}
        parts = "{rollout: {far: 1}, memory: {far: 1}}"
        settings = [f"runtime.resources={parts}", "training.env_steps=80000"]
        training = self.training("network", MAZE, [*MAZE_SETTINGS, *settings], where)
        training.start()
        training.until_saved(LIMIT_S)
        known, begun = len(training.events()), time.monotonic()
        node.pull(seconds)
        if seconds > LOST_AFTER_S:
            node.replace()
        back = training.until_event("checkpoint", LIMIT_S, known=known)
        took_s = time.monotonic() - begun if back else None
        done = training.wait(LIMIT_S) == 0
        self.note(Outcome("maze", f"network cut for {seconds:.0f} s", done, took_s))


def _workload(role: str) -> str:
    return "text" if role.startswith("worker") else "maze"


def _place_of(role: str, training: Training) -> str:
    """Node of a role's process."""
    for event in reversed(training.events()):
        if event["event"] == "actors" and role in event["node_ids"]:
            return str(event["node_ids"][role])
        if event["event"] == "worker" and f"worker-{event['rank']}" == role:
            return str(event["node_id"])
    raise LookupError(role)


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Path | None]:
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    try:
        yield place if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=False)


@contextmanager
def _hungry(share: float) -> Iterator[None]:
    """Have a process take memory, until a little more than a share of all is in use."""
    words = [sys.executable, "-c", HUNGRY, str(share + 0.02)]
    process = subprocess.Popen(words)
    try:
        yield
    finally:
        process.kill()
        process.wait()
