"""Whole runs that are hit at random times: short versions of `benchmarks/long/chaos.py`."""

import pytest

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.errors import ConfigError
from farreach.rundir import RunDirectory
from farreach.testing.drills import Training, outcomes
from farreach.testing.nodes import several_nodes

MAZE, FRESH = "goals/walk_maze_debug", "goals/fresh_maze_debug"
SETTINGS = [
    "runtime.placement=actor", "runtime.mode=async", "training.checkpoint_every_s=2",
    "runtime.cpus={learner: 0.3, rollout: 0.3, reachability: 0.1, memory: 0.1, evaluator: 0.1}",
    "training.figures_every_steps=100000000", "evaluation.every_steps=20000",
]  # fmt: skip
LIMIT_S = 900


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_survives_kills_of_any_role_and_damaged_checkpoints(tmp_path):
    more = ["training.env_steps=200000", "chaos.kill_every_s=3", "chaos.faults=4", "chaos.seed=3"]
    training = Training(MAZE, [*SETTINGS, *more], tmp_path / "run")
    training.start()
    code = training.wait(LIMIT_S)
    assert code == 0, training.output
    events = training.events()
    found = outcomes("maze", events, code == 0)
    assert len(found) >= 2
    assert {event["pid"] for event in events if event["event"] == "actor_died"} <= {
        event["pid"] for event in events if event["event"] == "chaos"
    }
    assert " died\n  cause   signal 9 (SIGKILL)" in training.output
    assert "A worker died or was killed" not in training.output  # Ray's own words
    assert "Traceback" not in training.output
    result = RunDirectory(tmp_path / "run").read_result()
    policy_steps = result["training/env_steps"] / 2
    assert result["training/updates"] == pytest.approx(0.07 * policy_steps, rel=0.25)


@pytest.mark.ray
@pytest.mark.slow
def test_what_is_on_a_machine_that_leaves_goes_on_elsewhere_and_nothing_is_done_again(tmp_path):
    roles = ("learner", "memory", "reachability", "rollout", "evaluator")
    parts = ", ".join(f"{role}: {{part: 1}}" for role in roles)
    more = [
        f"runtime.resources={{{parts}}}", "runtime.max_restarts=0", "training.env_steps=100000",
        "chaos.roles=[learner]", "chaos.drain_node_after_s=3", "chaos.notice_s=12",
    ]  # fmt: skip
    two = [{"num_cpus": 2, "resources": {"part": 5}}] * 2
    with several_nodes(two, head_cpus=0) as nodes:
        variables = {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        training = Training(MAZE, [*SETTINGS, *more], tmp_path / "run", variables)
        training.start()
        code = training.wait(LIMIT_S)
    assert code == 0, training.output  # a single death that counted would have ended it
    events = training.events()
    (fault,) = [event for event in events if event["event"] == "chaos"]
    (notice,) = [event for event in events if event["event"] == "preemption"]
    assert notice["node_id"] == fault["node_id"]
    assert {"learner", "memory", "reachability"} <= set(notice["roles"])
    (moved,) = [event for event in events if event["event"] == "moved"]
    assert moved["roles"] == ["learner", "reachability", "memory"]
    assert moved["lost_env_steps"] == 0
    assert not [event for event in events if event["event"] == "recovered"]
    places = [event["node_ids"] for event in events if event["event"] == "actors"]
    assert fault["node_id"] in places[0].values()
    assert all(fault["node_id"] not in later.values() for later in places[1:])
    kept = CheckpointStore(tmp_path / "run" / "checkpoints").newest()
    before = [
        e["env_steps"] for e in events if e["event"] == "checkpoint" and e["time"] < moved["time"]
    ]
    assert kept.info["env_steps"] > before[-1]


@pytest.mark.ray
@pytest.mark.slow
def test_an_offline_run_whose_evaluator_is_killed_ends_as_one_that_was_left_alone(
    tmp_path, ray_local
):
    settings = [f"data.path={tmp_path}/maze", f"data.cache={tmp_path}/cache"]
    settings += ["training.epochs=16", "training.epoch_updates=100", "evaluation.episodes=20"]
    chaos = ["runtime.placement=tasks", "chaos.kill_every_s=1", "chaos.faults=2"]
    whole = launch.train(FRESH, settings, run_dir=tmp_path / "whole").read_result()
    run = launch.train(FRESH, [*settings, *chaos], run_dir=tmp_path / "hit")
    events = run.events()
    kills = [e for e in events if e["event"] == "chaos" and e["fault"] == "kill"]
    deaths = [e for e in events if e["event"] == "actor_died"]
    assert {e["role"] for e in kills} == {"evaluator"}
    assert [e["pid"] for e in deaths] == [e["pid"] for e in kills]
    assert {e["lost"] for e in deaths} == {"the evaluation"}
    hit = run.read_result()
    assert {name: hit[name] for name in whole if name.startswith("evaluation")} == {
        name: value for name, value in whole.items() if name.startswith("evaluation")
    }


@pytest.mark.parametrize("config", [MAZE, FRESH])
def test_there_is_no_chaos_among_one_process(config):
    with pytest.raises(ConfigError, match=r"chaos: there is nobody to kill"):
        configs.load(configs.find(config), ["chaos.kill_every_s=5"])


@pytest.mark.parametrize("role", ["lerner", "rollout-2", "replay", "learner-0", "rollout-x"])
def test_a_role_that_the_run_does_not_have_cannot_be_killed(role):
    words = ["runtime.placement=actor", "runtime.rollout_actors=2", "chaos.kill_every_s=5"]
    known = configs.load(configs.find(MAZE), [*words, "chaos.roles=[learner, rollout, rollout-1]"])
    assert known.config.chaos.roles == ("learner", "rollout", "rollout-1")
    with pytest.raises(ConfigError, match=rf"this run has no {role} to kill; its roles are learn"):
        configs.load(configs.find(MAZE), [*words, f"chaos.roles=[{role}]"])


def test_an_offline_run_has_no_role_to_kill_but_the_evaluator():
    words = ["runtime.placement=tasks", "chaos.kill_every_s=5"]
    given = configs.load(configs.find(FRESH), [*words, "chaos.roles=[evaluator]"])
    assert given.config.chaos.needs_processes
    with pytest.raises(ConfigError, match=r"chaos\.roles: a run has no learner beside its driver"):
        configs.load(configs.find(FRESH), [*words, "chaos.roles=[evaluator, learner]"])


@pytest.mark.parametrize("override", ["runtime.resources={pilot: {a: 1}}", "chaos.kill_every_s=0"])
def test_roles_and_rates_that_make_no_sense_are_refused(override):
    with pytest.raises(ConfigError):
        configs.load(configs.find(MAZE), [override])
