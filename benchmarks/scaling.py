"""What more rollout actors bring, and what having them in Ray costs.

`python benchmarks/scaling.py [ROW …]` prints one JSON line per row; rows without a note of their
own give ours over the peer's, and CPU seconds are those of the whole process tree, less what an
idle Ray takes meanwhile.

- `two_actors`: environment steps per second of two rollout actors and of one, without a learner.
- `two_actors_cpu`: CPU seconds per environment step of the same; smaller is better.
- `rollout_1000`, `rollout_200`: CPU seconds per environment step with calls of so many steps of one
  copy of gymnasium's HalfCheetah-v5, over the same environment and policy in a plain loop; smaller
  is better.
- `rollout_1000_walker`, `rollout_200_walker`, `rollout_1000_maze`, `rollout_200_maze`: the same
  with our walker and maze, whose steps are shorter, while a call adds as much.
- `learner_beside`: updates per CPU-second of the learner with a rollout running, over alone.
- `learner_shards`: the same with rows that a shard of the replay draws, over its own replay.
- `bytes_per_step`: see `networked.py`; smaller is better.
- `weights_88mb`: see `weights.py`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import networked
import numpy as np
import processes
import ray
import torch
import weights

from farreach import config as configs
from farreach import runtime
from farreach.actors.services import ActorService, fetch
from farreach.actors.weights import Loans
from farreach.checkpoint import CheckpointStore
from farreach_workloads.goals import parts
from farreach_workloads.goals.bundle import Bundle, Guide
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.experience import dealt_out
from farreach_workloads.goals.rollout import guide_for_rollouts
from farreach_workloads.goals.sac import Policy

ROUNDS = 5
STORE_BYTES = 1_500_000_000
# Calls of a rollout that are under way at once while the learner waits.
CALLS = 2
# Fragments for each actor in a round of `two_actors`, and steps in one of `rollout_*`. The last one
# leaves a core without work for up to its length.
FRAGMENTS, STEPS = 60, {"maze": 48_000, "walker": 16_000, "cheetah": 12_000}
UPDATES = 640
# More fragments than are collected while the learner takes so many updates.
BESIDE = 300


@dataclass(frozen=True)
class Setting:
    """An environment, and the preset that trains there for a moment."""

    preset: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def environment(self) -> dict[str, Any]:
        """The section of a configuration."""
        return {"name": self.name, "options": self.options}


SETTINGS = {
    "maze": Setting("goals/walk_maze_debug", "maze"),
    "walker": Setting("goals/walk_walker_debug", "walker"),
    "cheetah": Setting("goals/walk_pointmaze_debug", "gymnasium", {"id": "HalfCheetah-v5"}),
}


@dataclass(frozen=True)
class Trained:
    """What a short training has come to: its setting, state of the learner, policy, memory."""

    setting: str
    learner: dict[str, Any]
    policy: dict[str, np.ndarray]
    bundle: Bundle

    def guide(self, config: GoalsRunConfig) -> Guide:
        """What a rollout takes beside the policy."""
        return guide_for_rollouts(self.bundle, config)

    def config(self, **sections: Any) -> GoalsRunConfig:
        """Defaults for its environment, with these settings."""
        environment = SETTINGS[self.setting].environment() | sections.pop("environment", {})
        return GoalsRunConfig.model_validate({"environment": environment, **sections})

    @classmethod
    def briefly(cls, setting: str, folder: Path) -> Trained:
        """Train for a moment."""
        run, chosen = folder / setting, SETTINGS[setting]
        command = [sys.executable, "-m", "farreach", "train", chosen.preset, "--run-dir", str(run)]
        settings = ["training.env_steps=6000", "evaluation.episodes=12"]
        settings.append(f"environment={json.dumps(chosen.environment())}")
        # Standard output is for the rows alone.
        subprocess.run([*command, *settings], check=True, stdout=sys.stderr)
        checkpoint = CheckpointStore(run / "checkpoints").newest()
        assert checkpoint is not None
        state = checkpoint.parts()["learner"]
        learner = parts.make_learner(configs.load(run / "config.yaml").config)
        learner.restore(state)
        return cls(setting, state, learner.policy(), Bundle.from_arrays(state["bundle"]))


@dataclass(frozen=True)
class Spent:
    """What a piece of work has taken."""

    wall_s: float
    cpu_s: float


def spent(work: Callable[[], object], process: int | None = None) -> Spent:
    """Do a work; CPU seconds are of a process, or of this one and all below it."""
    watched = processes.family(os.getpid()) if process is None else [process]
    before, begun = processes.total_cpu_s(watched), time.perf_counter()
    work()
    wall_s = time.perf_counter() - begun
    return Spent(wall_s, processes.total_cpu_s(watched) - before)


def warm(work: Callable[[int], object], count: int, process: int | None = None) -> Spent:
    """What so much of a work takes when it goes on: processes that sleep lose their caches."""
    work(max(1, count // 10))
    return spent(lambda: work(count), process)


def in_turns(works: Sequence[Callable[[], Spent]], rounds: int = ROUNDS) -> list[Spent]:
    """Medians over rounds in which the works take turns; a first round does not count."""
    taken: list[list[Spent]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, each in zip(works, taken, strict=True):
            found = work()
            if number:
                each.append(found)
    return [
        Spent(
            statistics.median(one.wall_s for one in each),
            statistics.median(one.cpu_s for one in each),
        )
        for each in taken
    ]


def idle() -> Spent:
    """What Ray takes when there is nothing to do."""
    return spent(lambda: time.sleep(2.0))


def busy_cpu_s(whole: Spent, nothing: Spent) -> float:
    """CPU seconds of a work, without what an idle Ray takes in its time."""
    return whole.cpu_s - nothing.cpu_s / nothing.wall_s * whole.wall_s


def actors_of(config: GoalsRunConfig, count: int) -> list[ActorService]:
    """Rollout actors, ready."""
    actors = [
        ActorService(f"rollout-{i}", parts.make_rollout, (config, i, 0), num_cpus=0.5)
        for i in range(count)
    ]
    for actor in actors:
        actor.wait_until_ready()
    return actors


def collect(actors: Sequence[ActorService], policy: Any, guide: Any, fragments: int) -> None:
    """So many fragments of all actors, as a run has them while its learner waits for data."""
    left = iter(range(fragments))
    flight: dict[Any, int] = {}
    loans = Loans(CALLS)

    def ask(index: int) -> None:
        if next(left, None) is None:
            return
        boxes = (
            loans.box(actors[index].role, name, value)
            for name, value in (("policy", policy), ("guide", guide))
        )
        results = actors[index].call("collect_newest", *boxes, 0, returns=3)
        flight[results[2]] = index

    for _ in range(CALLS):
        for index in range(len(actors)):
            ask(index)
    while flight:
        for reference in ray.wait(list(flight), num_returns=1)[0]:
            fetch(reference)
            ask(flight.pop(reference))


def two_actors(trained: Trained) -> None:
    """Rows `two_actors` and `two_actors_cpu`."""
    config = trained.config()
    phases = config.phases
    steps = FRAGMENTS * config.environment.num_envs * (phases.policy_steps + phases.random_steps)
    actors = actors_of(config, 2)
    policy, guide = ray.put(trained.policy), ray.put(trained.guide(config))
    one, two, nothing = in_turns(
        [
            lambda: spent(lambda: collect(actors[:1], policy, guide, FRAGMENTS)),
            lambda: spent(lambda: collect(actors, policy, guide, 2 * FRAGMENTS)),
            idle,
        ]
    )
    for actor in actors:
        actor.stop()
    rates = 2 * steps / two.wall_s, steps / one.wall_s
    costs = [1e6 * busy_cpu_s(two, nothing) / (2 * steps), 1e6 * busy_cpu_s(one, nothing) / steps]
    extra = {"ray_idle_cpu_share": round(nothing.cpu_s / nothing.wall_s, 3), "cores": cores()}
    measure.row(
        "two_actors",
        *rates,
        "env steps per s",
        rates[0] / rates[1],
        cpu_us_per_step=[round(cost, 2) for cost in costs],
        **extra,
    )
    measure.row("two_actors_cpu", costs[0], costs[1], "CPU µs per env step", costs[0] / costs[1])


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


class Bare:
    """The plain loop: one environment, one policy, arrays that keep what happened."""

    def __init__(self, config: GoalsRunConfig, trained: Trained) -> None:
        """Pursue nodes of the memory."""
        self._config, self._bundle = config, trained.bundle
        self._env = make_environment(config.environment, config.environment.num_envs)
        features = trained.bundle.features(config, self._env.spec)
        self._policy = Policy(config.agent, features, self._env.spec.action_dim)
        self._policy.load(trained.policy)
        self._rng = np.random.default_rng(0)

    def fragment(self) -> None:
        """Both phases, as a rollout does them."""
        env, rng, phases = self._env, self._rng, self._config.phases
        count, actions = env.num_envs, env.spec.action_dim
        goals = self._bundle.nodes[rng.integers(0, len(self._bundle), count)]
        current = env.reset()
        kept = np.empty((count, phases.policy_steps + 1, current.shape[1]), np.float32)
        chosen = np.empty((count, phases.policy_steps, actions), np.float32)
        kept[:, 0] = current
        for t in range(phases.policy_steps):
            chosen[:, t] = self._policy.act(current, goals, rng)
            current = env.step(chosen[:, t])
            kept[:, t + 1] = current
        shape = (phases.random_steps, count, actions)
        env.walk(rng.uniform(-1.0, 1.0, shape).astype(np.float32))


def rollout(trained: Trained, fragment: int) -> None:
    """A row `rollout_…`."""
    half = fragment // 2
    config = trained.config(
        environment={"num_envs": 1}, phases={"policy_steps": half, "random_steps": half}
    )
    steps = STEPS[trained.setting]
    fragments = steps // fragment
    guide_here = trained.guide(config)
    policy, guide = ray.put(trained.policy), ray.put(guide_here)
    bare, inline = Bare(config, trained), parts.make_rollout(config, 1, 0)

    def served() -> Spent:
        """In an actor of its own every time: one start is up to a tenth faster than another."""
        actors = actors_of(config, 1)
        collect(actors, policy, guide, fragments)
        found = warm(lambda count: collect(actors, policy, guide, count), fragments)
        actors[0].stop()
        return found

    def plainly(count: int) -> None:
        for _ in range(count):
            bare.fragment()

    def here(count: int) -> None:
        for _ in range(count):
            inline.collect(trained.policy, guide_here, 0)

    ours, plain, without_ray, nothing = in_turns(
        [
            served,
            lambda: warm(plainly, fragments, os.getpid()),
            lambda: warm(here, fragments, os.getpid()),
            idle,
        ]
    )
    costs = [1e6 * busy_cpu_s(ours, nothing) / steps, 1e6 * plain.cpu_s / steps]
    added_us = costs[0] - costs[1]
    name = f"rollout_{fragment}"
    measure.row(
        name if trained.setting == "cheetah" else f"{name}_{trained.setting}",
        *costs,
        "CPU µs per env step",
        costs[0] / costs[1],
        over_the_same_without_ray=round(busy_cpu_s(ours, nothing) / without_ray.cpu_s, 4),
        added_ms_per_call=round(added_us * fragment / 1000, 2),
        ray_idle_cpu_share=round(nothing.cpu_s / nothing.wall_s, 3),
    )


def learner_beside(trained: Trained) -> None:
    """Row `learner_beside`."""
    config = trained.config()
    learner = ActorService("learner", parts.make_learner, (config,), num_cpus=1)
    process = learner.wait_until_ready()
    fetch(learner.call("restore", trained.learner))
    (actor,) = actors_of(config, 1)
    policy, guide = ray.put(trained.policy), ray.put(trained.guide(config))

    def update() -> None:
        for _ in range(UPDATES // config.runtime.learner_chunk):
            fetch(learner.call("update", config.runtime.learner_chunk, 0.0, returns=2)[0])

    def beside() -> Spent:
        fragments = [
            actor.call("collect_newest", [policy], [guide], 0, returns=3)[2] for _ in range(BESIDE)
        ]
        ray.wait(fragments, num_returns=1)
        found = spent(update, process)
        assert ray.wait(fragments, num_returns=BESIDE, timeout=0)[1], "the rollout was done first"
        for reference in fragments:
            ray.cancel(reference)
        ray.wait(fragments, num_returns=BESIDE)
        return found

    alone, together = in_turns([lambda: spent(update, process), beside])
    for part in (learner, actor):
        part.stop()
    rates = UPDATES / together.cpu_s, UPDATES / alone.cpu_s
    measure.row(
        "learner_beside",
        *rates,
        "updates per CPU-second",
        rates[0] / rates[1],
        wall_ratio=round(alone.wall_s / together.wall_s, 4),
        updates_per_s=round(UPDATES / together.wall_s, 1),
        cores=cores(),
    )


def learner_shards(trained: Trained) -> None:
    """Row `learner_shards`."""
    config = trained.config(runtime={"replay_shards": 1})
    content = dealt_out({"learner": trained.learner}, config)
    alone = ActorService("learner", parts.make_learner, (trained.config(),), num_cpus=1)
    served = ActorService("learner", parts.make_learner, (config,), num_cpus=1)
    shard = ActorService("replay-0", parts.make_replay, (config, 0), num_cpus=0.5)
    pids = [part.wait_until_ready() for part in (alone, served, shard)]
    fetch(alone.call("restore", trained.learner))
    fetch(served.call("restore", content["learner"]))
    fetch(shard.call("restore", content["replay-0"], ray.put(trained.bundle)))
    chunk, size = config.runtime.learner_chunk, config.agent.batch

    def update(learner: ActorService, drawn: bool) -> None:
        """Chunks of updates, of which two are under way, as in a run."""
        flight: list[Any] = []
        for _ in range(UPDATES // chunk):
            rows = shard.call("draw", chunk * size, returns=2)[:1] if drawn else ()
            flight.append(learner.call("update", chunk, 0.0, *rows, returns=2)[0])
            if len(flight) == 2:
                fetch(flight.pop(0))
        for reference in flight:
            fetch(reference)

    own, theirs = in_turns(
        [
            lambda: spent(lambda: update(alone, False), pids[0]),
            lambda: spent(lambda: update(served, True), pids[1]),
        ]
    )
    rows = fetch(shard.call("draw", chunk * size, returns=2)[0])
    for part in (alone, served, shard):
        part.stop()
    rates = UPDATES / theirs.cpu_s, UPDATES / own.cpu_s
    measure.row(
        "learner_shards",
        *rates,
        "updates per CPU-second",
        rates[0] / rates[1],
        wall_ratio=round(own.wall_s / theirs.wall_s, 4),
        bytes_per_update=round(networked.stored_bytes(rows) / chunk),
        batch=size,
        cores=cores(),
    )


def rollout_of(fragment: int) -> Callable[[Trained], None]:
    """Rows with calls of so many steps."""
    return lambda trained: rollout(trained, fragment)


long_calls, short_calls = rollout_of(1000), rollout_of(200)
# Row → the setting it is for, and what measures it.
ROWS: dict[str, tuple[str, Callable[[Trained], None]]] = {
    "two_actors": ("maze", two_actors),
    "two_actors_cpu": ("maze", two_actors),
    "rollout_1000": ("cheetah", long_calls),
    "rollout_200": ("cheetah", short_calls),
    "rollout_1000_walker": ("walker", long_calls),
    "rollout_200_walker": ("walker", short_calls),
    "rollout_1000_maze": ("maze", long_calls),
    "rollout_200_maze": ("maze", short_calls),
    "learner_beside": ("maze", learner_beside),
    "learner_shards": ("maze", learner_shards),
    "weights_88mb": ("maze", lambda _: weights.weights_88mb()),
}


def main() -> None:
    """Print the rows that are asked for, or all."""
    asked = measure.rows_asked(__doc__, [*ROWS, "bytes_per_step"])
    torch.set_num_threads(1)
    # Actors import what these files define.
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    for name, value in (runtime.ENVIRONMENT | runtime.LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    here = dict.fromkeys(ROWS[name] for name in asked if name in ROWS)
    if here:
        with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp") as folder:
            settings = dict.fromkeys(setting for setting, _ in here)
            trained = {name: Trained.briefly(name, Path(folder)) for name in settings}
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=STORE_BYTES,
                runtime_env=runtime.local_runtime_env(),
                _temp_dir=folder,
            )
            try:
                for setting, row in here:
                    row(trained[setting])
            finally:
                ray.shutdown()
    if "bytes_per_step" in asked:
        networked.bytes_per_step()


if __name__ == "__main__":
    main()
