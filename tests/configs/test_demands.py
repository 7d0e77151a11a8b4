"""Every workload says what its runs ask Ray for."""

import importlib
from pathlib import Path

import pytest

from farreach import config as configs
from farreach.cluster.demand import Demand

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))


def demand(name, *overrides):
    loaded = configs.load(configs.find(name), list(overrides))
    found: list[Demand] = importlib.import_module(loaded.workload).demand(loaded.config)
    return found


@pytest.mark.parametrize(
    "name", [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FILES]
)
def test_every_configuration_asks_for_something_or_runs_without_ray(name):
    config = configs.load(configs.find(name)).config
    alone = getattr(config.runtime, "placement", "") == "inline"
    alone = alone or getattr(config.runtime, "workers", 1) == 0
    found = demand(name)
    assert (found == []) == alone
    assert len({each.role for each in found}) == len(found)
    assert all(each.count > 0 and each.asked for each in found)


def test_workers_are_placed_together_and_an_evaluator_beside_them():
    asked = {"CPU": 2.0, "GPU": 1.0, "learner": 1.0}
    words = ["runtime.workers=4", "runtime.cpus=2", "runtime.gpus=1", "runtime.evaluators=1"]
    found = demand("vision/msn_clipart", *words, "runtime.resources={learner: 1}")
    assert found == [
        Demand("worker", 4, {"CPU": 2, "GPU": 1, "learner": 1}, "PACK"),
        Demand("evaluator", 1, {"CPU": 2}),
    ]
    assert found[0].asked == asked
    assert found[0].together


def test_workers_that_may_be_fewer_begin_with_fewer():
    workers, evaluator = demand(
        "vision/msn_clipart", "runtime.workers=4", "runtime.min_workers=2", "runtime.evaluators=1"
    )
    assert (workers.count, workers.first) == (4, 2)
    assert evaluator.asked == {}


def test_an_online_run_begins_with_one_rollout_unless_it_runs_in_lockstep():
    words = ["runtime.placement=actor", "runtime.rollout_actors=8"]
    roles = demand("goals/walk_maze", *words, "runtime.mode=async", "runtime.device=cuda")
    assert [each.role for each in roles] == [
        "learner", "reachability", "memory", "evaluator", "rollout",
    ]  # fmt: skip
    assert roles[0].asked == {"CPU": 1, "GPU": 1}
    assert (roles[-1].needed, roles[-1].first, roles[-1].strategy) == (8, 1, "SPREAD")
    assert demand("goals/walk_maze", *words, "runtime.mode=sync")[-1].first == 8


def test_a_recording_begins_with_one_task():
    (tasks,) = demand("data/maze_random", "episodes=1001", "episodes_per_shard=500")
    assert (tasks.count, tasks.first) == (3, 1)


def test_shards_of_a_replay_are_asked_for_beside_the_rollouts():
    words = ["runtime.placement=actor", "runtime.replay_shards=3"]
    words += ["runtime.resources={replay: {rollout: 0.1}}"]
    (shards,) = [each for each in demand("goals/walk_maze", *words) if each.role == "replay"]
    assert shards == Demand("replay", 3, {"CPU": 0.5, "rollout": 0.1}, "SPREAD")
