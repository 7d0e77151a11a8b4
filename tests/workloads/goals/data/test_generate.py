"""Recording data sets: what comes out, and that nothing but the configuration decides it."""

import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest

from farreach import config as configs
from farreach import datasets, seeding
from farreach.data.episodes import INDEX_FILE, EpisodeStore
from farreach.errors import ConfigError, DataError, EnvironmentFault
from farreach_workloads.goals.data import generate as recorder
from farreach_workloads.goals.data.behaviours import _vertices, behaviours
from farreach_workloads.goals.environments.maze import Maze, is_free
from farreach_workloads.goals.environments.ogbench_maze import OGBenchPointMaze
from farreach_workloads.goals.environments.pusher import START, Pusher

DEBUG = "data/maze_random_debug"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return datasets.generate(DEBUG, out=tmp_path_factory.mktemp("data") / "maze")


def test_the_data_have_the_shape_that_was_asked_for(store):
    assert len(store) == 60
    assert (store.lengths == 101).all()
    assert [entry["episodes"] for entry in store.info["shards"]] == [25, 25, 10]
    assert store["observation"].dim == 7
    assert store["action"].dtype == np.float32


def test_each_action_leads_to_the_observation_of_its_row(store):
    rows = np.arange(101) + store.starts[37]
    observation, action = store["observation"][rows], store["action"][rows]
    np.testing.assert_array_equal(action[0], 0)
    env = Maze(1, np.random.default_rng(0))
    env.scatter([seeding.generator(0, "episode", 37)])
    walked = np.concatenate([env.step(action[t][None]) for t in range(1, 101)])
    # All but the reset's noise in the velocities, which is drawn and not stored.
    np.testing.assert_array_equal(walked, observation[1:])


def test_actions_are_uniform_and_starts_anywhere(store):
    action = store["action"][np.setdiff1d(np.arange(store.rows), store.starts)]
    assert np.abs(action).max() <= 1
    np.testing.assert_allclose(action.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(action.std(axis=0), 3**-0.5, atol=0.02)
    starts = store["observation"][store.starts[:-1]]
    assert is_free(starts[:, :2]).all()
    assert starts[:, :2].std(axis=0).min() > 5
    assert len(np.unique(starts[:, 0])) == len(store)


def test_the_data_do_not_depend_on_how_the_work_is_split(store, tmp_path):
    other = datasets.generate(DEBUG, ["episodes_per_shard=7"], tmp_path / "maze")
    rows = np.arange(store.rows)
    for name in ("observation", "action"):
        np.testing.assert_array_equal(other[name][rows], store[name][rows])


@pytest.mark.ray
def test_tasks_record_what_one_process_records(store, ray_local, tmp_path):
    other = datasets.generate(DEBUG, ["runtime.placement=tasks"], tmp_path / "maze")
    assert other.info["content"] == store.info["content"]


def test_another_seed_gives_other_data(store, tmp_path):
    other = datasets.generate(DEBUG, ["seed=1"], tmp_path / "maze")
    assert other.info["content"] != store.info["content"]


def test_the_pushers_data_all_begin_at_its_start(tmp_path):
    store = datasets.generate("data/pusher_random_debug", out=tmp_path / "pusher")
    starts = store["observation"][store.starts[:-1]]
    np.testing.assert_array_equal(starts, np.tile(START.astype(np.float32), (len(starts), 1)))
    assert store["observation"][np.arange(store.rows)].std(axis=0).min() > 0


def test_what_is_there_is_not_recorded_again(store, tmp_path, monkeypatch):
    folder = tmp_path / "maze"
    datasets.generate(DEBUG, out=folder)
    (folder / INDEX_FILE).unlink()
    (folder / "shard-00001.arrow").unlink()
    recorded = []
    original = recorder.record_shard

    def watched(config, number, *rest):
        recorded.append(number)
        return original(config, number, *rest)

    monkeypatch.setattr(recorder, "record_shard", watched)
    again = datasets.generate(DEBUG, out=folder)
    assert recorded == [1]
    assert again.info == {**store.info, "name": again.info["name"]}


@pytest.mark.slow
def test_a_killed_recorder_goes_on_where_it_was(store, tmp_path):
    folder = tmp_path / "maze"
    settings = ["episodes_per_shard=3", "steps=4000"]
    command = [sys.executable, "-m", "farreach", "data", "generate", DEBUG, *settings]
    process = subprocess.Popen(
        [*command, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not (folder / "shard-00001.arrow").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / INDEX_FILE).exists()
    with pytest.raises(DataError, match="not finished"):
        EpisodeStore.open(folder)
    written = (folder / "shard-00000.arrow").stat().st_mtime_ns
    resumed = datasets.generate(DEBUG, settings, folder)
    assert (folder / "shard-00000.arrow").stat().st_mtime_ns == written
    whole = datasets.generate(DEBUG, settings, tmp_path / "whole")
    assert resumed.info["content"] == whole.info["content"]


def test_a_folder_of_another_data_set_is_refused(tmp_path):
    folder = tmp_path / "maze"
    datasets.generate(DEBUG, out=folder)
    with pytest.raises(DataError, match=r"dataset.json: belongs to another data set, whose seed d"):
        datasets.generate(DEBUG, ["seed=1"], folder)
    (folder / INDEX_FILE).unlink()
    with pytest.raises(
        DataError, match=r"00000.arrow: belongs to .*, whose episodes, steps differ"
    ):
        datasets.generate(DEBUG, ["steps=50", "episodes=30"], folder)
    (folder / "shard-00000.arrow").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"shard-00000.arrow: is no whole shard"):
        datasets.generate(DEBUG, out=folder)


def test_mistakes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown behaviour 'randon'. Did you mean 'random'"):
        datasets.generate(DEBUG, ["behaviour=randon"], tmp_path / "x")
    with pytest.raises(ConfigError, match="Did you mean 'maze'"):
        datasets.generate(DEBUG, ["environment.name=mase"], tmp_path / "x")
    with pytest.raises(ConfigError, match=r"walk_maze_debug.yaml: trains and describes no data s"):
        datasets.generate("goals/walk_maze_debug", out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_episodes_that_jump_are_not_kept(tmp_path, monkeypatch):
    def walk(self, actions):
        self.diverged += 2
        return np.zeros((len(actions), self.num_envs, 4), np.float32)

    monkeypatch.setattr(Pusher, "walk", walk)
    config = configs.load(configs.find("data/pusher_random_debug")).config
    with pytest.raises(EnvironmentFault, match="pusher: the physics of 2 episodes diverged"):
        recorder.record_shard(config, 0, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def giant():
    return OGBenchPointMaze(40, np.random.default_rng(0), maze="giant")


def ways(giant, behaviour, steps):
    rngs = [np.random.default_rng(seed) for seed in range(giant.num_envs)]
    return behaviours.get(behaviour)(lambda copies: giant, rngs, steps)


def test_stitch_goes_four_cells_and_stays(giant):
    observations, actions = ways(giant, "stitch", 200)
    original = gymnasium.make("pointmaze-giant-v0").unwrapped
    moved = []
    for first, last in zip(observations[:, 0], observations[:, -1], strict=True):
        _, steps = original.get_oracle_subgoal(first, last)
        moved.append(steps[tuple(giant.cell_of(first[None])[0])])
    # Noise of 0.5 on moves of 0.2 hardly ever leaves a cell of 4.
    assert np.mean(np.array(moved) == 4) > 0.9
    assert np.abs(np.diff(observations[:, 150:], axis=1)).max() <= 0.2 + 1e-5
    assert np.abs(actions).max() == 1


def test_without_noise_actions_lead_to_the_next_cell_of_ogbenchs_way(giant, monkeypatch):
    monkeypatch.setattr("farreach_workloads.goals.data.behaviours.WAYPOINT_NOISE", 0.0)
    observations, actions = ways(giant, "stitch", 150)
    original = gymnasium.make("pointmaze-giant-v0").unwrapped
    for walk, moves in zip(observations[:5], actions[:5], strict=True):
        for t in range(0, 100, 7):
            subgoal, _ = original.get_oracle_subgoal(walk[t], walk[-1])
            gap = subgoal - walk[t]
            if np.linalg.norm(gap) > 0.1:
                np.testing.assert_allclose(moves[t], gap / np.linalg.norm(gap), atol=1e-3)


def test_navigate_goes_on_to_new_goals_that_are_no_corridors(giant):
    observations, _ = ways(giant, "navigate", 1500)
    visited = [len(np.unique(giant.cell_of(walk), axis=0)) for walk in observations]
    # One goal lies at most 40 cells away; going on visits more.
    assert np.mean(visited) > 25
    cells, _ = giant.next_cells()
    vertices = cells[_vertices(giant.free, cells, 0)]
    # By hand on OGBench's map: of row 1, columns 4, 5, 7, 12 and 13 are straight corridors.
    row = vertices[vertices[:, 0] == 1][:, 1].tolist()
    assert row == [1, 3, 6, 8, 11, 14]


def test_ways_need_a_map():
    env = Maze(1, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="navigate and stitch need a map, which environment 'maz"):
        behaviours.get("navigate")(lambda copies: env, [np.random.default_rng(0)], 3)
