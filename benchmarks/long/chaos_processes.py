"""Drills on processes: those of a run, one after the other, and its driver. See `chaos.py`."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from farreach.actors.chaos import damage
from farreach.rundir import RunDirectory
from farreach.testing.drills import Event, Outcome, Training, newest_saved, outcomes

LIMIT_S = 1800.0
MAZE = "goals/walk_maze_debug"
MAZE_SETTINGS = (
    "runtime.placement=actor",
    "runtime.mode=async",
    "runtime.cpus={learner: 0.3, rollout: 0.3, reachability: 0.1, memory: 0.1, evaluator: 0.1, "
    "replay: 0.1}",
    "runtime.rollout_actors=2",
    "runtime.replay_shards=1",
    "runtime.max_restarts=1000",
    "training.checkpoint_every_s=3",
    "training.figures_every_steps=100000000",
    "evaluation.every_steps=20000",
)
TEXT = "retrieval/contriever_debug"
TEXT_SETTINGS = (
    "runtime.workers=2",
    "runtime.cpus=0.3",
    "runtime.evaluators=1",
    "runtime.max_failures=1000",
    "training.checkpoint_every_epochs=10",
    "training.evaluate_every_epochs=100",
)
IMAGES = "vision/msn_clipart_debug"
IMAGES_SETTINGS = (
    "runtime.workers=2",
    "runtime.cpus=0.3",
    "runtime.evaluators=1",
    "runtime.max_failures=1000",
    "training.checkpoint_every_epochs=0.05",
    "training.evaluate_every_epochs=0.5",
)
OFFLINE = "goals/fresh_maze_debug"
OFFLINE_SETTINGS = ("runtime.placement=tasks", "runtime.cpus=0.3")
# Metrics by which runs are compared.
MAZE_METRIC, TEXT_METRIC = "evaluation_planned/success_final", "evaluation/ndcg@10"
IMAGES_METRIC, OFFLINE_METRIC = "evaluation/knn_top1", "evaluation/success_final"
LEAST_SPREAD = 0.1


class Drills:
    """Runs drills in a folder.

    Attributes:
        found: what came of all faults so far.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        """Nothing is broken yet."""
        self.folder, self.seed = folder, seed
        self.rng = random.Random(seed)
        self.found: list[Outcome] = []

    def training(
        self, name: str, config: str, settings: list[str], variables: dict[str, str] | None = None
    ) -> Training:
        """One with a run directory of its own in the folder."""
        if config in (TEXT, OFFLINE):
            settings = [*settings, f"data.cache={self.folder / 'cache'}"]
        if config == OFFLINE:
            settings.append(f"data.path={self.folder / 'recorded'}")
        number = sum(1 for path in self.folder.iterdir() if path.is_dir())
        return Training(
            config, settings, self.folder / f"{number}-{name.replace(' ', '-')}", variables
        )

    def note(self, *found: Outcome) -> None:
        """Print what came of faults."""
        for outcome in found:
            print(outcome.line(), flush=True)
        self.found += found


class ProcessDrills(Drills):
    """Those that need no machine but this one."""

    def maze(self, faults: int, steps: int | None = None) -> None:
        """SIGKILL of each role of the maze, and damaged checkpoints in between."""
        steps = steps or 60_000 + 12_000 * faults
        settings = [f"training.env_steps={steps}", "chaos.kill_every_s=6", f"chaos.faults={faults}"]
        settings += [f"chaos.seed={self.seed}", "chaos.corrupt_checkpoint_every_s=60"]
        self._until_done("maze", self.training("maze", MAZE, [*MAZE_SETTINGS, *settings]))

    def text(self, faults: int) -> None:
        """SIGKILL of workers and of the evaluator beside them."""
        epochs = 400 + 200 * faults
        settings = [f"training.epochs={epochs}", "chaos.kill_every_s=15", f"chaos.faults={faults}"]
        settings.append(f"chaos.seed={self.seed}")
        self._until_done("text", self.training("text", TEXT, [*TEXT_SETTINGS, *settings]))

    def images(self, faults: int) -> None:
        """As `text`, of images."""
        epochs = 1 + faults
        settings = [f"training.epochs={epochs}", "chaos.kill_every_s=15", f"chaos.faults={faults}"]
        settings.append(f"chaos.seed={self.seed}")
        self._until_done("images", self.training("images", IMAGES, [*IMAGES_SETTINGS, *settings]))

    def offline(self, faults: int) -> None:
        """SIGKILL of the evaluator beside go-fresh, and damaged checkpoints in between."""
        settings = [f"training.epochs={4 + 8 * faults}", f"chaos.faults={faults}"]
        settings += ["chaos.kill_every_s=4", "chaos.corrupt_checkpoint_every_s=30"]
        settings.append(f"chaos.seed={self.seed}")
        training = self.training("offline", OFFLINE, [*OFFLINE_SETTINGS, *settings])
        training.start()
        done = training.wait(LIMIT_S) == 0
        events = training.events()
        brought = [event for event in events if event["event"] == "chaos"]
        for outcome, fault in zip(outcomes("offline", events, done), brought, strict=True):
            killed = fault["fault"] == "kill"
            self.note(replace(outcome, recovery_s=_scored_s(fault, events)) if killed else outcome)

    def _until_done(self, name: str, training: Training) -> None:
        training.start()
        done = training.wait(LIMIT_S) == 0
        self.note(*outcomes(name, training.events(), done))

    def embed(self, faults: int) -> None:
        """SIGKILL of the actors that embed documents."""
        encoder = self.training("encoder", TEXT, ["training.epochs=3"])
        encoder.start()
        encoder.wait(LIMIT_S)
        source, out = self.folder / "documents.txt", self.folder / "vectors"
        source.write_text(
            "".join(f"document {i} says {i * i}.\n" for i in range(100_000 * (3 + faults)))
        )
        words = [str(encoder.path), str(source), str(out), "workers=2", "piece_mb=1"]
        log = open(self.folder / "embed.log", "wb")  # noqa: SIM115 (closed below)
        command = [sys.executable, "-m", "farreach", "embed", *words, "max_failures=1000"]
        job = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        hits: list[float | None] = []
        for _ in range(faults):
            _until(lambda: bool(_actors(job.pid)) or job.poll() is not None, 120)
            time.sleep(self.rng.uniform(5, 10))
            before = _actors(job.pid)
            if before:
                os.kill(self.rng.choice(before), signal.SIGKILL)
                begun = time.monotonic()
                back = _until(lambda known=set(before): bool({*_actors(job.pid)} - known), 60)
                hits.append(time.monotonic() - begun if back else None)
        survived = job.wait(LIMIT_S) == 0
        log.close()
        self.note(*[Outcome("embed", "kill actor", survived, took_s) for took_s in hits])

    def driver(self, faults: int) -> None:
        """The driver is killed, and the run goes on from its newest checkpoint."""
        training = self.training("driver", MAZE, [*MAZE_SETTINGS, "training.env_steps=200000"])
        self._killed(training, faults, "kill driver", lambda: None)

    def corrupt(self, faults: int) -> None:
        """As `driver`, and the newest checkpoint is damaged while nobody is there."""
        training = self.training("corrupt", MAZE, [*MAZE_SETTINGS, "training.env_steps=200000"])

        def spoil() -> None:
            damage(training.path / "checkpoints" / f"step_{newest_saved(training.path):012d}")

        self._killed(training, faults, "damage checkpoint", spoil)

    def _killed(
        self, training: Training, faults: int, what: str, meanwhile: Callable[[], None]
    ) -> None:
        hits: list[tuple[float | None, str]] = []
        training.start()
        for _ in range(faults):
            before = newest_saved(training.path)
            if not training.until_saved(LIMIT_S, after=before):
                break
            training.until_saved(self.rng.uniform(4, 10), after=1 << 60)
            if not training.is_running():
                break
            reached, begun = training.step(), time.monotonic()
            training.kill_driver()
            meanwhile()
            known = len(training.events())
            training.start()
            back = training.until_event("checkpoint", LIMIT_S, known=known)
            lost = f"{max(0, reached - _resumed_at(training)):,} steps"
            hits.append((time.monotonic() - begun if back else None, lost))
        done = training.wait(LIMIT_S) == 0
        self.note(*[Outcome("maze", what, done and s is not None, s, lost) for s, lost in hits])

    def noise(self) -> None:
        """Are results of runs that were hit those of runs that were not?"""
        steps = 150_000
        plain = [*MAZE_SETTINGS, f"training.env_steps={steps}"]
        hit = [*plain, "chaos.kill_every_s=8", "chaos.faults=8", f"chaos.seed={self.seed}"]
        values = [
            self._result(f"plain-{seed}", MAZE, [*plain, f"seed={seed}"]) for seed in (0, 1, 2)
        ]
        numbers = [float(value[MAZE_METRIC]) for value in values]
        middle = statistics.mean(numbers)
        spread = max(LEAST_SPREAD, 3 * statistics.stdev(numbers))
        found = float(self._result("hit", MAZE, hit)[MAZE_METRIC])
        print(
            f'{{"name": "maze_noise", "hit": {found:.4f}, "undisturbed": {middle:.4f}, '
            f'"spread": {spread:.4f}, "within": {str(abs(found - middle) <= spread).lower()}}}'
        )
        plain = [*TEXT_SETTINGS, "training.epochs=600"]
        self._same("text", TEXT, TEXT_METRIC, plain, every_s=15)
        plain = [*IMAGES_SETTINGS, "training.epochs=4"]
        self._same("images", IMAGES, IMAGES_METRIC, plain, every_s=15)
        plain = [*OFFLINE_SETTINGS, "training.epochs=28"]
        self._same("offline", OFFLINE, OFFLINE_METRIC, plain, every_s=4)

    def _same(
        self, name: str, config: str, metric: str, plain: list[str], *, every_s: float
    ) -> None:
        """Is the result of a run that was hit to the last bit that of one that was not?"""
        hit = [*plain, f"chaos.kill_every_s={every_s}", "chaos.faults=3"]
        hit.append(f"chaos.seed={self.seed}")
        ours, theirs = (
            float(self._result(f"{name}-{how}", config, settings)[metric])
            for how, settings in (("hit", hit), ("plain", plain))
        )
        print(f'{{"name": "{name}_noise", "hit": {ours!r}, "undisturbed": {theirs!r}, '
              f'"equal": {str(ours == theirs).lower()}}}')  # fmt: skip

    def _result(self, name: str, config: str, settings: list[str]) -> dict[str, object]:
        training = self.training(name, config, settings)
        training.start()
        training.wait(LIMIT_S)
        return RunDirectory(training.path).read_result()


def _resumed_at(training: Training) -> int:
    found = [event["step"] for event in training.events() if event["event"] == "resumed"]
    return int(found[-1] or 0) if found else 0


def _scored_s(fault: Event, events: Sequence[Event]) -> float | None:
    """Seconds from the death of the evaluator to the checkpoint that has its work done again."""
    deaths = [e for e in events if e["event"] == "actor_died" and e["pid"] == fault["pid"]]
    told = deaths[0]["time"] if deaths else float("inf")
    saved = [e["time"] for e in events if e["event"] == "checkpoint" and e["time"] > told]
    return saved[0] - fault["time"] if saved else None


def _actors(ancestor: int) -> list[int]:
    """Actors that hold a tool or a part, of the Ray that a process has started."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(folder.name)] = int(fields[1])
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")

    def is_below(pid: int) -> bool:
        while pid > 1:
            if pid == ancestor:
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid, text in names.items() if text.startswith("ray::Host") and is_below(pid)]


def _until(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
