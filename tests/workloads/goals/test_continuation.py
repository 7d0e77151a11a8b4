"""An offline run goes on online: what is taken over, and what must fit."""

import shutil

import numpy as np
import pytest

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.data.episodes import EpisodeStore
from farreach.errors import ConfigError, RunDirectoryError
from farreach.rundir import RunDirectory
from farreach_workloads.goals import continuation

OFFLINE, ONLINE = "goals/fresh_maze_debug", "goals/walk_maze_debug"
SAME = ["features.frequencies=4"]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continuation")
    paths = [f"data.path={folder}/maze", f"data.cache={folder}/cache"]
    return launch.train(OFFLINE, paths, run_dir=folder / "offline")


def config_of(*settings):
    return configs.load(configs.find(ONLINE), settings).config


def learner_state(run, which):
    store = CheckpointStore(run.checkpoints)
    return store.load(sorted(run.checkpoints.glob("step_*"))[which]).part("learner")


def test_walks_and_experience_are_pieces_of_the_data_set(offline):
    config = config_of(f"start.run={offline.path}", "start.data_steps=2000", *SAME)
    start = continuation.load(config)
    steps, pursued = config.phases.random_steps, config.phases.policy_steps
    assert start.walks.shape == (2000 // steps, steps + 1, 7)
    assert start.actions.shape[1:] == (pursued, 2)
    assert start.observations.shape == (len(start.actions), pursued + 1, 7)
    store = EpisodeStore.open(offline.path.parent / "maze")
    every = [(e.columns["observation"], e.columns["action"]) for e in store.episodes()]
    for piece, acted in zip(start.observations[:5], start.actions[:5], strict=True):
        found = [
            (observations, actions, t)
            for observations, actions in every
            for t in np.flatnonzero((observations == piece[0]).all(axis=1))
        ]
        assert len(found) == 1
        observations, actions, t = found[0]
        np.testing.assert_array_equal(observations[t : t + pursued + 1], piece)
        np.testing.assert_array_equal(actions[t + 1 : t + pursued + 1], acted)


def test_the_online_run_begins_with_the_offline_policy_and_covers_all_rooms(offline, tmp_path):
    settings = ["training.env_steps=3000", f"start.run={offline.path}", *SAME]
    settings += ["training.keep_checkpoints=9"]
    run = launch.train(ONLINE, settings, run_dir=tmp_path / "online")
    first = learner_state(run, 0)
    before = CheckpointStore(offline.checkpoints).best().part("learner")
    for name in ("actor", "critic", "target"):
        for key, value in before["agent"][name].items():
            np.testing.assert_array_equal(first["agent"][name][key], value)
    np.testing.assert_array_equal(first["bundle"]["scale"], before["bundle"]["scale"])
    # Walks from the start alone stay in its room for long.
    result = run.read_result()
    assert all(result[f"memory/nodes_room{room}"] > 0 for room in (1, 2, 3, 4))
    last = learner_state(run, -1)
    assert any(
        not np.array_equal(last["agent"]["actor"][key], value)
        for key, value in before["agent"]["actor"].items()
    )


def test_a_run_that_has_begun_resumes_without_the_offline_one(offline, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(offline.path, gone)
    settings = ["training.env_steps=3000", f"start.run={gone}", *SAME]
    run = launch.train(ONLINE, settings, run_dir=tmp_path / "online")
    shutil.rmtree(gone)
    launch.resume(run.path, ["training.env_steps=4500"])
    assert run.read_result()["training/env_steps"] >= 4500


def test_a_run_on_a_recording_goes_on_from_the_copy_of_it(offline, tmp_path, capfd):
    folder = tmp_path / "npz"
    folder.mkdir()
    store = EpisodeStore.open(offline.path.parent / "maze")
    for number, episode in enumerate(store.episodes()):
        columns = {name: values.astype(np.float64) for name, values in episode.columns.items()}
        np.savez(folder / f"{number:03}.npz", **columns)
    settings = [f"data.path={folder}", "data.config=null", f"data.cache={tmp_path}/cache"]
    settings += ["training.epochs=1", "training.epoch_updates=3", "evaluation.episodes=5"]
    run = launch.train(OFFLINE, settings, run_dir=tmp_path / "on-recording")
    start = continuation.load(config_of(f"start.run={run.path}", *SAME))
    assert start.walks.dtype == start.observations.dtype == start.actions.dtype == np.float32
    same = continuation.load(config_of(f"start.run={offline.path}", *SAME))
    np.testing.assert_array_equal(start.actions, same.actions)
    assert "import        unchanged, from" in capfd.readouterr().out
    settings = ["training.env_steps=3000", f"start.run={run.path}", *SAME]
    online = launch.train(ONLINE, settings, run_dir=tmp_path / "online")
    assert online.read_result()["training/env_steps"] >= 3000
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"start.run: the data set of .*recording is no longer"):
        continuation.load(config_of(f"start.run={run.path}", *SAME))


def test_what_does_not_fit_is_refused_before_a_run_begins(offline, tmp_path):
    def refused(match, *settings, error=ConfigError):
        with pytest.raises(error, match=match):
            launch.train(ONLINE, settings, run_dir=tmp_path / "online")
        assert not (tmp_path / "online").exists()

    start = f"start.run={offline.path}"
    refused(r"does not fit: features.frequencies is 4 there and \d here", start, SAME[0][:-1] + "2")
    refused(r"agent.hidden is 128 there and 32 here", start, *SAME, "agent.hidden=32")
    refused(r"environment.name is maze there and pusher here", start, "environment.name=pusher")
    refused("nowhere", f"start.run={tmp_path}/nowhere", error=RunDirectoryError)
    refused("no episode has 900 steps", start, *SAME, "phases.random_steps=900")


def test_only_an_offline_run_of_sac_goes_on(offline, tmp_path):
    folder = offline.path.parent
    other = launch.train(
        OFFLINE,
        [
            f"data.path={folder}/maze",
            f"data.cache={folder}/cache",
            "agent.kind=gcbc",
            "agent.hidden=8",
            "training.epochs=1",
        ],
        run_dir=tmp_path / "gcbc",
    )
    with pytest.raises(ConfigError, match="gcbc is no offline run whose agent is SAC"):
        continuation.load(config_of(f"start.run={other.path}"))


def test_the_latest_run_is_the_one_that_was_there_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunDirectoryError, match="there is no run under runs/"):
        continuation.load(config_of("start.run=latest"))
    first = RunDirectory.create(tmp_path / "runs", "maze", "", [], seed=0)
    config = config_of("start.run=latest")
    RunDirectory.create(tmp_path / "runs", "other", "", [], seed=0)
    assert config.start.run == str(first.path)
