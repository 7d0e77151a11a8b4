"""The whole system on small settings: the same numbers wherever it runs, whatever dies."""

import os
import shutil
import signal
import threading
import time
from collections import Counter
from itertools import chain, repeat
from pathlib import Path

import pytest

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.errors import ActorError, ConfigError, EnvironmentFault
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach_workloads.goals import online
from farreach_workloads.goals.coordinator import Coordinator
from farreach_workloads.goals.counters import SUCCESS
from farreach_workloads.goals.overlapped import Overlapped
from farreach_workloads.goals.parts import PartDied

SMALL = ["training.env_steps=9600", "training.checkpoint_every_steps=3200"]
SHARDS = ["runtime.replay_shards=2", "runtime.cpus.replay=0.3"]
ACTORS = ["runtime.placement=actor", "runtime.cpus.learner=0.5"]


def train(tmp_path, name, *overrides):
    launch.train(
        "goals/walk_maze_debug", [*SMALL, *overrides], run_dir=tmp_path / name, root=tmp_path
    )
    return RunDirectory.open(tmp_path / name)


def final_state(run):
    checkpoint = CheckpointStore(run.checkpoints).newest()
    assert checkpoint is not None
    return checkpoint.parts()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), "uninterrupted")


def test_a_run_leaves_everything_that_others_rely_on(uninterrupted):
    result = uninterrupted.read_result()
    assert result["seed"] == 0
    assert result["training/env_steps"] >= 9600
    assert 0 <= result["evaluation/success_final"] <= 1
    assert result["memory/nodes_room1"] > 5
    assert "memory/nodes_room4" in result
    assert (uninterrupted.tensorboard).is_dir()
    names = {path.name.split("-")[0] for path in uninterrupted.figures.glob("*.png")}
    assert {"memory", "reachability", "success", "visits", "paths"} <= names
    assert (uninterrupted.figures / "visits.gif").exists()


def test_no_two_checkpoints_are_scored_by_one_evaluation(tmp_path):
    words = ["training.checkpoint_every_steps=800", "training.keep_checkpoints=50"]
    run = train(tmp_path, "scored", "evaluation.every_steps=3200", *words)
    store = CheckpointStore(run.checkpoints)
    scores = {path.name: store.named(path.name).score for path in run.checkpoints.glob("step_*")}
    found = {
        f"step_{line['step']:012d}": line["evaluation/success_final"]
        for line in read_metrics(run.metrics_path)
        if "evaluation/success_final" in line
    }
    assert len(scores) > len(found) > 2
    assert {name: score for name, score in scores.items() if score is not None} == found


def test_the_best_of_all_evaluations_is_kept_however_rarely_it_is_saved(tmp_path, monkeypatch):
    scores, evaluated, found = chain([0.1, 0.7, 0.4], repeat(0.2)), Coordinator._evaluated, []

    def scripted(self, at, metrics, outcome):
        found.append((at, next(scores)))
        evaluated(self, at, metrics | {SUCCESS: found[-1][1]}, outcome)

    monkeypatch.setattr(Coordinator, "_evaluated", scripted)
    rarely = "training.checkpoint_every_steps=1e9"
    run = train(tmp_path, "best", rarely, "evaluation.every_steps=1600")
    assert len(found) > 3
    best = CheckpointStore(run.checkpoints).best()
    assert (best.step, best.score) == found[1]


def test_another_seed_gives_another_run(uninterrupted, tmp_path):
    other = train(tmp_path, "other", "seed=1")
    weights = [final_state(run)["learner"]["agent"]["actor"] for run in (uninterrupted, other)]
    assert any((weights[0][k] != weights[1][k]).any() for k in weights[0])


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """Trains until a while after a checkpoint, and then from that to the end."""

    class Killed(BaseException):
        pass

    lost, take_walks = [], Coordinator._take_walks

    def take_walks_or_die(self, walks, info):
        take_walks(self, walks, info)
        counters = self._counters
        if counters.env_steps > 5000 and counters.env_steps > counters.saved_at > 3000:
            lost.append(counters.env_steps - counters.saved_at)
            raise Killed

    def run(*overrides):
        with monkeypatch.context() as patch:
            patch.setattr(Coordinator, "_take_walks", take_walks_or_die)
            with pytest.raises(Killed):
                train(tmp_path, "killed", *overrides)
        assert lost[0] > 0
        launch.resume(tmp_path / "killed")
        return RunDirectory.open(tmp_path / "killed")

    return run


def test_a_run_interrupted_between_checkpoints_continues_bit_for_bit(
    uninterrupted, interrupted, expect_equal_states
):
    """Whatever was done after the checkpoint is lost, and is done again in the same way."""
    expect_equal_states(final_state(uninterrupted), final_state(interrupted()))


@pytest.mark.ray
@pytest.mark.slow
def test_actors_give_the_same_numbers_as_one_process(
    uninterrupted, tmp_path, ray_local, expect_equal_states
):
    run = train(tmp_path, "actors", *ACTORS)
    expect_equal_states(final_state(uninterrupted), final_state(run))


@pytest.mark.ray
@pytest.mark.slow
def test_shards_of_the_replay_give_the_same_numbers_wherever_they_are_and_after_a_stop(
    tmp_path, ray_local, interrupted, expect_equal_states
):
    here = final_state(train(tmp_path, "here", SHARDS[0]))
    assert here["replay-0"]["ring"]["total"] > 0
    expect_equal_states(here, final_state(interrupted(SHARDS[0])))
    expect_equal_states(here, final_state(train(tmp_path, "there", *ACTORS, *SHARDS)))


def test_another_number_of_shards_has_all_of_the_experience(uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted.path, run)

    def resumed(shards, env_steps):
        settings = [f"runtime.replay_shards={shards}", f"training.env_steps={env_steps}"]
        launch.resume(run, settings)
        content = final_state(RunDirectory.open(run))
        roles = [f"replay-{i}" for i in range(shards)] or ["learner"]
        return content, [content[role]["ring"] for role in roles]

    before = final_state(uninterrupted)["learner"]["ring"]
    content, rings = resumed(3, 12_000)
    episodes = sum(ring["total"] for ring in rings)
    assert episodes > before["total"]
    assert content["learner"]["ring"]["total"] == 0
    every = {row.tobytes() for ring in rings for row in ring["columns"]["observations"]}
    assert {row.tobytes() for row in before["columns"]["observations"]} <= every
    assert len(every) == episodes
    content, (ring,) = resumed(0, 14_000)
    assert "replay-0" not in content
    assert every < {row.tobytes() for row in ring["columns"]["observations"]}


def actor_pid(run, role):
    for event in reversed(run.events()):
        if event.get("event", event.get("kind")) == "actors" and role in event["pids"]:
            return event["pids"][role]
    return None


def kill_when_running(path, role, kills):
    """Kill the role's process a while after the first checkpoint is there."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if not (path / "events.jsonl").exists():
            continue
        run = RunDirectory(path)
        if any("checkpoint" in str(event) for event in run.events()):
            time.sleep(0.3)
            pid = actor_pid(run, role)
            os.kill(pid, signal.SIGKILL)
            kills.append(pid)
            return


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("role", ["rollout-0", "learner", "reachability", "memory", "replay-1"])
def test_the_death_of_any_actor_is_survived(role, tmp_path, ray_local):
    kills = []
    killer = threading.Thread(target=kill_when_running, args=(tmp_path / "run", role, kills))
    killer.start()
    run = train(
        tmp_path, "run", *ACTORS, "runtime.mode=async", "training.env_steps=60000",
        "training.checkpoint_every_s=1", "evaluation.every_steps=20000",
        *(SHARDS if role.startswith("replay") else ()),
    )  # fmt: skip
    killer.join()
    assert kills
    events = run.events()
    died = [event for event in events if "cause" in event]
    assert [event["role"] for event in died] == [role]  # once, with two calls under way as well
    result = run.read_result()
    assert result["training/env_steps"] >= 60_000
    # Updates follow the steps whatever has died: 0.07 per policy step, half of the steps.
    assert result["training/updates"] == pytest.approx(0.07 * 30_000, rel=0.25)


@pytest.mark.ray
@pytest.mark.slow
def test_several_rollouts_share_the_work_of_one_run(tmp_path, ray_local):
    run = train(
        tmp_path, "run", *ACTORS, "runtime.mode=async", "training.env_steps=40000",
        "runtime.rollout_actors=2", "runtime.cpus.rollout=0.3", "runtime.cpus.learner=0.3",
    )  # fmt: skip
    result = run.read_result()
    assert result["training/env_steps"] >= 40_000
    assert result["training/updates"] == pytest.approx(0.07 * 20_000, rel=0.25)
    messages = final_state(run)["learner"]["last_seq"]  # producer → number of its last message
    assert len(messages) == 2
    # 25 messages of 8 x 200 steps; each rollout has at most two in flight, so they take turns.
    assert min(messages.values()) >= 5
    assert result["training/env_steps"] < 40_000 + 8 * 200  # nothing is collected for nobody
    written = {name for line in read_metrics(run.metrics_path) for name in line}
    seen = {"throughput/learner_waiting_share", "throughput/rollouts_held_share", "busy/rollouts"}
    assert {*seen, "weights/age_versions", "weights/age_s", "evaluation/seconds"} <= written


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("updates_per_step", "most"), [(0.01, 2), (0.5, 1)])
def test_a_rollout_has_a_second_call_only_while_the_learner_waits(
    updates_per_step, most, tmp_path, monkeypatch, ray_local
):
    seen = Counter()

    def call_rollout(self, *arguments):
        # The first chunk of updates is due only after some fragments.
        if self._ratio.updates:
            seen[self._calls[0]] += 1
        return Coordinator._call_rollout(self, *arguments)

    monkeypatch.setattr(Overlapped, "_call_rollout", call_rollout, raising=False)
    train(
        tmp_path, "run", *ACTORS, "runtime.mode=async", "training.env_steps=60000",
        "evaluation.every_steps=60000", f"agent.updates_per_policy_step={updates_per_step}",
    )  # fmt: skip
    assert max(seen) == most
    assert seen[most] >= seen.total() / 3


@pytest.mark.ray
@pytest.mark.slow
def test_an_environment_that_breaks_down_ends_the_run_with_its_own_error(tmp_path, ray_local):
    with pytest.raises(EnvironmentFault, match=r"observation \[0, 1\] is NaN"):
        train(
            tmp_path, "run", *ACTORS, "runtime.mode=async", "training.env_steps=60000",
            "environment.name=gymnasium",
            "environment.options={id: 'tests.workloads.goals.turns_nan:TurnsNan-v0'}",
        )  # fmt: skip
    run = RunDirectory.open(tmp_path / "run")
    assert final_state(run)["coordinator"]["counters"]["env_steps"] > 0
    for pid in {pid for e in run.events() for pid in e.get("pids", {}).values()}:
        assert not is_alive(pid)


def is_alive(pid, patience_s=10):
    """Whether the process is there still after a while."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.ray
@pytest.mark.slow
def test_after_a_death_before_the_first_checkpoint_all_begin_anew(
    uninterrupted, tmp_path, ray_local, monkeypatch, expect_equal_states
):
    take_walks, killed = Coordinator._take_walks, []

    def kill_and_take_walks(self, walks, info):
        if not killed:
            killed.append(self._parts.memory.place.pid)
            os.kill(killed[0], signal.SIGKILL)
        take_walks(self, walks, info)

    monkeypatch.setattr(Coordinator, "_take_walks", kill_and_take_walks)
    run = train(tmp_path, "run", *ACTORS)
    [death] = [event for event in run.events() if event["event"] == "actor_died"]
    assert (death["role"], death["pid"], death["lost"]) == ("memory", killed[0], "all so far")
    assert "begin anew" in death["next"]
    expect_equal_states(final_state(uninterrupted), final_state(run))


def test_a_part_that_dies_again_and_again_before_the_first_checkpoint_ends_the_run(
    tmp_path, monkeypatch
):
    tries = []

    def die(self):
        tries.append(1)
        raise PartDied("memory", RuntimeError("killed"))

    monkeypatch.setattr(Coordinator, "_begin", die)
    with pytest.raises(ActorError, match=r"memory died more than 2 times within 600 s, the last"):
        train(tmp_path, "run", "runtime.max_restarts=2")
    assert len(tries) == 3


def test_a_death_while_a_run_is_taken_up_again_is_survived(uninterrupted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted.path, run)
    fill, dead = Coordinator._fill, []

    def die_once(self, parts, content):
        if not dead:
            dead.append(1)
            raise PartDied("memory", RuntimeError("killed"))
        return fill(self, parts, content)

    monkeypatch.setattr(Coordinator, "_fill", die_once)
    launch.resume(run, ["training.env_steps=12800"])
    [recovered] = [e for e in RunDirectory.open(run).events() if e["event"] == "recovered"]
    assert recovered["lost_env_steps"] == 0
    assert RunDirectory.open(run).read_result()["training/env_steps"] >= 12800


def test_check_names_what_differs_from_the_paper():
    loaded = configs.load(configs.find("goals/walk_maze"))
    notes = online.check(loaded.config)
    assert any("features.goal: masked (paper: full)" in note for note in notes)
    paper = configs.load(configs.find("goals/walk_maze"), ["fidelity=paper"])
    assert online.check(paper.config) == ["every setting is the paper's"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("relabel.future=0.9", "add up to 1"),
        ("runtime.mode=async", "cannot be asynchronous"),
        ("environment.name=mase", "Did you mean 'maze'"),
        ("environment.options={wals: 3}", "environment.options"),
        ("reachability.window=100", "leaves no negatives"),
        ("goals.source=replay", "relabel.node needs"),
        ("reachability.comparator_layers=3", "comparator: metric has no layers"),
    ],
)
def test_impossible_settings_are_refused_before_anything_starts(override, message):
    with pytest.raises(ConfigError, match=message):
        online.check(configs.load(configs.find("goals/walk_maze_debug"), [override]).config)
