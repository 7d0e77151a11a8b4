"""The stages and the policy, end to end on the maze's small data set."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from farreach import afterwards, launch
from farreach import config as configs
from farreach.checkpoint import CheckpointStore
from farreach.cli.main import main
from farreach.errors import CheckpointError, ConfigError, DataError
from farreach.rundir import RunDirectory
from farreach_workloads.goals import evaluate
from farreach_workloads.goals.fresh import pipeline
from farreach_workloads.goals.fresh.side_evaluation import SideEvaluator

DEBUG = "goals/fresh_maze_debug"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Where all runs of this module find the data and keep the results of stages."""
    return tmp_path_factory.mktemp("offline")


@pytest.fixture
def train(data, tmp_path):
    def run(name, *settings):
        overrides = [f"data.path={data}/maze", f"data.cache={data}/cache", *settings]
        return launch.train(DEBUG, overrides, run_dir=tmp_path / name)

    return run


@pytest.fixture
def built(monkeypatch):
    """The stages that were built, in order."""
    done = []
    for name in ("fit_network", "build_memory", "build_graph"):
        original = getattr(pipeline, name)

        def watched(*arguments, _name=name, _original=original):
            done.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(pipeline, name, watched)
    return done


def policy(run):
    state = CheckpointStore(run.checkpoints).newest().part("learner")["agent"]["actor"]
    return np.concatenate([np.ravel(values) for values in state.values()])


def test_a_run_leaves_results_pictures_and_diagnostics(train):
    run = train("run")
    result = run.read_result()
    for name in (
        "evaluation/success_final",
        "evaluation_planned/success_final",
        "graph/components",
        "graph/connectors",
        "graph/edges",
        "graph/hop_correlation",
        "graph/mean_hops",
        "graph/shortcut_frac",
        "memory/nodes",
        "memory/tested",
        "reachability/validation_accuracy",
        "training/foundation_minutes",
    ):
        assert np.isfinite(result[name]), name
    assert result["training/updates"] == 400
    names = {path.name.partition("-")[0] for path in run.figures.glob("*.png")}
    assert {"memory", "reachability", "success", "paths", "visits"} <= names
    assert afterwards.evaluate(run.path, episodes=20)["evaluation/success_final"] <= 1
    assert afterwards.plot(run.path)


def test_unchanged_stages_are_skipped_and_changed_ones_rebuilt(train, built, capfd):
    train("first")
    built.clear()
    inputs = ("features.frequencies=1", "features.goal=full", "features.relative=false")
    train("again", "agent.lr=1e-4", "evaluation.episodes=20", *inputs)
    assert built == []
    assert capfd.readouterr().err.count("unchanged, from") >= 4
    train("graph", "graph.edge_frac=0.5")
    assert built == ["build_graph"]
    assert "graph         to be built: graph.edge_frac 1.0 → 0.5" in capfd.readouterr().err
    built.clear()
    train("memory", "memory.keep_frac=0.1")
    assert built == ["build_memory", "build_graph"]
    built.clear()
    train("network", "reachability.window=4")
    assert built == ["fit_network", "build_memory", "build_graph"]
    built.clear()
    train("angles", "features.angles=raw")
    assert built == ["fit_network", "build_memory", "build_graph"]


def test_a_full_memory_and_a_graph_in_pieces_are_warned_of(train, capfd):
    train("full", "memory.capacity=30", "graph.edge_frac=0.02")
    said = capfd.readouterr().err
    assert "warning: memory.capacity 30 was reached and" in said
    assert "edges without a transition behind them join them" in said
    assert "30 nodes, " in said


def test_edges_through_walls_are_known_and_warned_of_before_the_policy_trains(
    train, monkeypatch, capfd
):
    monkeypatch.setattr(evaluate, "SHORTCUT_THRESHOLDS", 0.5)
    run = train("run")
    assert "of the edges are long shortcuts by the oracle" in capfd.readouterr().err
    first = json.loads(run.metrics_path.read_text().splitlines()[0])
    assert first["step"] == 0
    assert first["graph/shortcut_frac"] > pipeline.SHORTCUTS_BEARABLE
    monkeypatch.setattr(evaluate, "SHORTCUT_THRESHOLDS", 50)
    train("again")
    assert "long shortcuts" not in capfd.readouterr().err


def test_the_same_seed_gives_the_same_policy_and_another_does_not(train):
    np.testing.assert_array_equal(policy(train("one")), policy(train("two")))
    assert not np.array_equal(policy(train("three", "seed=1")), policy(train("one-again")))


@pytest.mark.ray
def test_tasks_give_what_one_process_gives(train, data, ray_local):
    inline = policy(train("inline", f"data.cache={data}/inline"))
    tasks = policy(train("tasks", f"data.cache={data}/tasks", "runtime.placement=tasks"))
    np.testing.assert_array_equal(inline, tasks)


@pytest.mark.ray
def test_an_evaluator_that_dies_is_replaced_and_one_that_keeps_dying_ends_the_run(train, ray_local):
    from farreach.actors.chaos import ChaosConfig
    from farreach.actors.guard import Guard
    from farreach.errors import ActorError
    from farreach_workloads.goals.bundle import Bundle

    run = train("run", "runtime.placement=tasks")
    config = configs.load(run.config_path).config
    learner = CheckpointStore(run.checkpoints).newest().part("learner")
    said = []
    guard = Guard(run, ChaosConfig(), said.append)
    evaluator = SideEvaluator(config, Bundle.from_arrays(learner["bundle"]), guard)
    pid = evaluator._service.wait_until_ready()
    os.kill(pid, signal.SIGKILL)
    evaluator.begin(learner["agent"]["actor"])
    metrics, _ = evaluator.result()
    assert evaluator.is_done()
    assert metrics["evaluation/success_final"] == pytest.approx(
        afterwards.evaluate(run.path, "newest")["evaluation/success_final"]
    )
    assert [line for line in said if "died" in line] == ["evaluator died"]
    assert any("signal 9" in line for line in said)
    started = evaluator._started

    def doomed():
        service = started()
        os.kill(service.wait_until_ready(), signal.SIGKILL)
        return service

    evaluator._started = doomed
    os.kill(evaluator._service.wait_until_ready(), signal.SIGKILL)
    evaluator.begin(learner["agent"]["actor"])
    with pytest.raises(ActorError, match="the evaluator died 3 times in a row"):
        evaluator.result()
    evaluator.stop()
    guard.close()


def test_checkpoints_have_the_score_of_their_own_policy(train):
    run = train("run", "training.epochs=3", "training.keep_checkpoints=9", "evaluation.last=1")
    store = CheckpointStore(run.checkpoints)
    scores = {}
    for line in run.metrics_path.read_text().splitlines():
        record = json.loads(line)
        if "evaluation/success_final" in record:
            scores[record["step"]] = record["evaluation/success_final"]
    found = {path: store.load(path) for path in sorted(run.checkpoints.glob("step_*"))}
    assert len(found) == 3
    for checkpoint in found.values():
        assert checkpoint.score == scores[checkpoint.step]
        assert checkpoint.info["evaluated"]["evaluation/success_final"] == checkpoint.score
        assert checkpoint.part("learner")["updates"] == checkpoint.step
    assert store.held() == []


def test_the_best_of_all_evaluations_is_kept_however_rarely_the_policy_is_saved(train, monkeypatch):
    scores, result = iter([0.2, 0.6, 0.1, 0.3]), SideEvaluator.result

    def scripted(self):
        metrics, outcome = result(self)
        return metrics | {"evaluation/success_final": next(scores)}, outcome

    monkeypatch.setattr(SideEvaluator, "result", scripted)
    often = ("training.epochs=4", "training.checkpoint_every_epochs=9", "evaluation.last=1")
    run = train("run", *often, "training.keep_checkpoints=1")
    store = CheckpointStore(run.checkpoints)
    assert (store.best().step, store.best().score) == (400, 0.6)
    assert (store.newest().step, store.newest().score) == (800, 0.3)
    assert len(list(run.checkpoints.glob("step_*"))) == 2
    assert store.held() == []


def test_a_checkpoint_that_was_lost_with_its_evaluation_gets_its_score(
    train, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    settings = ("training.epochs=3", "training.keep_checkpoints=9", "evaluation.last=1")
    whole = train("whole", *settings)
    result, calls = SideEvaluator.result, []

    def die(self):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return result(self)

    with monkeypatch.context() as patch:
        patch.setattr(SideEvaluator, "result", die)
        with pytest.raises(Killed):
            train("killed", *settings)
    run = RunDirectory.open(tmp_path / "killed")
    store = CheckpointStore(run.checkpoints)
    assert store.held() == [store.newest().path]
    assert store.newest().score is None
    launch.resume(run.path)
    np.testing.assert_array_equal(policy(run), policy(whole))
    scores = [
        [CheckpointStore.load(path).score for path in sorted(one.checkpoints.glob("step_*"))]
        for one in (run, whole)
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3
    assert store.held() == []


def test_a_killed_policy_training_resumes_to_the_same_end(train, data, tmp_path):
    whole = train("whole", "training.epochs=4")
    settings = [f"data.path={data}/maze", f"data.cache={data}/cache", "training.epochs=4"]
    program = [sys.executable, "-m", "farreach"]
    run = RunDirectory(tmp_path / "killed")
    process = subprocess.Popen(
        [*program, "train", DEBUG, *settings, "--run-dir", str(run.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    until = time.monotonic() + 120
    while not any(run.checkpoints.glob("step_*")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.result_path.exists()
    launch.resume(run.path)
    np.testing.assert_array_equal(policy(run), policy(whole))
    assert run.read_result()["training/updates"] == 800


STAGES = ["fit_network", "build_memory", "nearest_of_all", "build_graph"]
KILLED_IN_A_STAGE = """
import os, signal, sys
from pathlib import Path
from farreach import config as configs
from farreach import launch, afterwards
from farreach_workloads.goals.fresh import pipeline
from farreach_workloads.goals.fresh.side_evaluation import SideEvaluator

stage, config, run, *settings = sys.argv[1:]
setattr(pipeline, stage, lambda *given: os.kill(os.getpid(), signal.SIGKILL))
launch.train(config, settings, run_dir=Path(run))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_killed_in_a_stage_redoes_none_that_was_finished(
    stage, data, train, tmp_path, monkeypatch
):
    whole = train("whole")
    run = RunDirectory(tmp_path / "killed")
    settings = [f"data.path={data}/maze", f"data.cache={tmp_path}/cache"]
    program = [sys.executable, "-c", KILLED_IN_A_STAGE, stage, DEBUG, str(run.path)]
    assert subprocess.run([*program, *settings], capture_output=True).returncode == -signal.SIGKILL
    done = []
    for name in STAGES:
        original = getattr(pipeline, name)

        def watched(*arguments, _name=name, _original=original):
            done.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(pipeline, name, watched)
    launch.resume(run.path)
    assert done == STAGES[STAGES.index(stage) :]
    np.testing.assert_array_equal(policy(run), policy(whole))


def test_sigterm_leaves_a_checkpoint_and_resume_ends_the_same(train, data, tmp_path):
    whole = train("whole", "training.epochs=4", "training.checkpoint_every_epochs=4")
    settings = [f"data.path={data}/maze", f"data.cache={data}/cache", "training.epochs=4"]
    settings += ["training.checkpoint_every_epochs=4"]
    run = RunDirectory(tmp_path / "stopped")
    process = subprocess.Popen(
        [sys.executable, "-m", "farreach", "train", DEBUG, *settings, "--run-dir", str(run.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    until = time.monotonic() + 120
    # The first evaluation follows the first epoch, so that there is something to lose.
    while not (run.metrics_path.exists() and "evaluation/" in run.metrics_path.read_text()):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    records = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    evaluated = {r["step"] for r in records if "evaluation/success_final" in r}
    last = CheckpointStore(run.checkpoints).newest()
    assert (last.score is not None) == (last.step in evaluated)
    launch.resume(run.path)
    np.testing.assert_array_equal(policy(run), policy(whole))


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("hindsight.negative_actions=uniform",),
        ("hindsight.negative_actions=policy", "hindsight.random_goals=value"),
    ],
)
def test_the_baselines_train_on_the_same_stages(settings, train, built):
    fresh = train("fresh")
    built.clear()
    run = train("baseline", "method=hindsight", *settings)
    assert built == []
    assert np.isfinite(run.read_result()["evaluation/success_final"])
    assert not np.array_equal(policy(run), policy(fresh))


@pytest.mark.parametrize("kind", ["gcbc", "gcivl", "gciql", "crl", "qrl", "hiql"])
def test_other_agents_train_on_the_same_stages_and_plan(kind, train, built):
    train("fresh")
    built.clear()
    small = ["agent.hidden=16", "agent.layers=1", "agent.batch=64", "training.epoch_updates=20"]
    run = train(kind, f"agent.kind={kind}", *small)
    assert built == []
    result = run.read_result()
    assert np.isfinite(result["evaluation/success_final"])
    assert np.isfinite(result["evaluation_planned/success_final"])
    assert afterwards.evaluate(run.path, episodes=20)["evaluation/success_final"] <= 1
    assert afterwards.plot(run.path)


def test_another_agent_resumes_to_the_same_end(train):
    small = ["agent.kind=gcivl", "agent.hidden=16", "agent.layers=1", "agent.batch=64"]
    small += ["training.epoch_updates=20"]
    whole = train("whole", *small)
    part = train("part", *small, "training.epochs=1")
    launch.resume(part.path, ["training.epochs=2"])
    np.testing.assert_array_equal(policy(part), policy(whole))


def test_a_policy_is_not_continued_on_other_stages(train, monkeypatch):
    run = train("run")
    monkeypatch.setitem(pipeline.VERSIONS, "memory", 99)
    with pytest.raises(CheckpointError, match=r"step_000000000400: its policy stands on graph-"):
        launch.resume(run.path, ["training.epochs=3"])


def test_recordings_in_another_layout_are_copied_once(data, train, tmp_path, capfd):
    train("first")  # so that the data are there
    from farreach.data.episodes import EpisodeStore

    folder = tmp_path / "episodes"
    folder.mkdir()
    for number, episode in enumerate(EpisodeStore.open(data / "maze").episodes()):
        np.savez(folder / f"{number:03}.npz", **episode.columns)
    settings = [f"data.path={folder}", "data.config=null"]
    one = train("npz", *settings)
    assert "import        not built yet" in capfd.readouterr().err
    two = train("npz-again", *settings)
    assert "import        unchanged, from" in capfd.readouterr().err
    np.testing.assert_array_equal(policy(one), policy(two))


def test_mistakes_are_refused_before_a_run_begins(data, train, tmp_path):
    train("first")
    with pytest.raises(ConfigError, match=r"data.path: there is nothing at .*nowhere. Record a"):
        train("x", f"data.path={tmp_path}/nowhere", "data.config=null")
    with pytest.raises(DataError, match=r"maze: has 7 observation and 2 action dims, environment"):
        train("x", "environment.name=pusher")
    nowhere = f"data.path={tmp_path}/nowhere"
    with pytest.raises(ConfigError, match=r"data.config: data/pusher_random records 'pusher' wi"):
        train("x", nowhere, "data.config=data/pusher_random")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no recorded episodes"):
        train("x", f"data.path={tmp_path}/empty", "data.config=null")
    with pytest.raises(ConfigError, match=r"path \+ future \+ node is 1.1"):
        train("x", "relabel.path=0.5")
    with pytest.raises(
        ConfigError, match=r"agent.kind: there is no kind 'qlr'. Did you mean 'qrl'"
    ):
        train("x", "agent.kind=qlr")
    with pytest.raises(ConfigError, match=r"agent.entropy_weight: unknown key"):
        train("x", "agent.kind=crl", "agent.entropy_weight=1")
    with pytest.raises(ConfigError, match=r"method: hindsight trains SAC"):
        train("x", "agent.kind=crl", "method=hindsight")
    with pytest.raises(ConfigError, match=r"fidelity: paper is go-fresh's and trains SAC, not crl"):
        train("x", "agent.kind=crl", "fidelity=paper")
    with pytest.raises(ConfigError, match=r"reward.distance: lengths needs reachability.compar"):
        train("x", "reward.distance=lengths", "reachability.comparator=network")
    with pytest.raises(ConfigError, match=r"hindsight: it has no part in method: fresh; set"):
        train("x", "hindsight.negative_actions=uniform")
    for ignored in ("every_steps=1000", "stop_success=0.5", "stop_worst=0.1"):
        with pytest.raises(ConfigError, match=r"evaluation\.\w+ is of runs that learn online; an"):
            train("x", f"evaluation.{ignored}")
    with pytest.raises(ConfigError, match=r"walk_maze.yaml: trains and describes no data set"):
        train("x", f"data.path={tmp_path}/nowhere", "data.config=goals/walk_maze")
    assert not (tmp_path / "x").exists()


def test_the_paper_preset_says_what_it_changes(data, capsys):
    paths = [f"data.path={data}/none", "data.config=data/maze_random_debug"]
    assert main(["check", "goals/fresh_maze", "fidelity=paper", *paths]) == 0
    assert "every setting is the paper's" in capsys.readouterr().out
    assert main(["check", "goals/fresh_maze", *paths]) == 0
    assert "features.goal: masked (paper: full)" in capsys.readouterr().out


def test_the_result_is_json_with_seed_and_versions(train):
    run = train("run")
    content = json.loads(run.result_path.read_text())
    assert content["seed"] == 0
    assert "farreach" in content["versions"]


def test_paths_are_those_of_the_directory_that_the_run_was_started_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["data.path=here/maze", "data.cache=there"]
    config = configs.load(configs.find("goals/fresh_maze_debug"), settings).config
    assert config.data.path == str(tmp_path / "here" / "maze")
    assert config.data.cache == str(tmp_path / "there")
