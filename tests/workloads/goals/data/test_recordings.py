"""Layouts of others are read as ours, and every fault is named with file and episode."""

import zipfile

import numpy as np
import pytest

from farreach import datasets
from farreach.cli.main import main
from farreach.data.episodes import Episode, EpisodeStore
from farreach.errors import ConfigError, DataError
from farreach_workloads.goals.config import EnvironmentConfig
from farreach_workloads.goals.data.layouts import open_recording
from farreach_workloads.goals.data.recordings import (
    SHOWN,
    check_recording,
    environment_named,
    import_recording,
    misalignment,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return datasets.generate("data/maze_random_debug", out=tmp_path_factory.mktemp("data") / "maze")


@pytest.fixture
def episodes(store):
    """A few of the maze's episodes, cut to different lengths."""
    return [
        {name: values[: 40 + 10 * number].copy() for name, values in episode.columns.items()}
        for number, episode in enumerate(list(store.episodes())[:4])
    ]


def as_npz(folder, episodes, **more):
    for number, columns in enumerate(episodes):
        np.savez_compressed(folder / f"episode_{number:03}.npz", **columns, **more)
    return folder


def as_ogbench(path, episodes):
    """Their rows hold the action that leads on, and an arbitrary one at the end."""
    ends = [np.arange(len(e["action"])) == len(e["action"]) - 1 for e in episodes]
    actions = [np.concatenate([e["action"][1:], e["action"][:1] + 7]) for e in episodes]
    np.savez(
        path,
        observations=np.concatenate([e["observation"] for e in episodes]),
        actions=np.concatenate(actions),
        terminals=np.concatenate(ends).astype(np.float32),
    )
    return path


def assert_same(recording, episodes):
    read = list(recording.episodes)
    assert len(read) == len(episodes)
    for one, other in zip(read, episodes, strict=True):
        for name in ("observation", "action"):
            np.testing.assert_array_equal(one.columns[name], other[name])


def test_npz_episodes_are_read_in_order(tmp_path, episodes):
    recording = open_recording(as_npz(tmp_path, episodes))
    assert recording.layout == "npz episodes"
    assert_same(recording, episodes)


def test_exorls_further_columns_are_kept(tmp_path):
    columns = {
        "observation": np.zeros((5, 24), np.float32),
        "action": np.zeros((5, 6), np.float32),
        "physics": np.arange(90.0).reshape(5, 18),
        "reward": np.ones((5, 1), np.float32),
        "discount": np.ones(5),
        "comment": np.array("by hand"),
        "infos": np.array([{}] * 5, dtype=object),
    }
    np.savez(tmp_path / "episode_0_4.npz", **columns)
    [episode] = open_recording(tmp_path / "episode_0_4.npz").episodes
    kept = {name: (values.shape, values.dtype) for name, values in episode.columns.items()}
    assert kept == {
        "observation": ((5, 24), np.float32),
        "action": ((5, 6), np.float32),
        "physics": ((5, 18), np.float64),
        "reward": ((5, 1), np.float32),
        "discount": ((5, 1), np.float64),
    }


def test_ogbenchs_actions_are_moved_to_the_row_they_lead_to(tmp_path, episodes):
    recording = open_recording(as_ogbench(tmp_path / "maze-navigate-v0.npz", episodes))
    assert recording.layout == "OGBench"
    assert_same(recording, episodes)


def test_a_folder_of_ogbench_is_read_if_it_holds_one_file_and_asks_which_of_several(
    tmp_path, episodes
):
    as_ogbench(tmp_path / "maze-navigate-v0.npz", episodes)
    recording = open_recording(tmp_path)
    assert recording.layout == "OGBench"
    assert_same(recording, episodes)
    as_ogbench(tmp_path / "maze-navigate-v0-val.npz", episodes)
    with pytest.raises(DataError, match=r"one of them: maze-navigate-v0-val.npz, maze-navigate-v0"):
        open_recording(tmp_path)


def test_an_episode_that_marks_its_end_is_not_taken_for_ogbench(tmp_path, episodes):
    ends = np.arange(40) == 39
    as_npz(tmp_path, episodes[:1], terminals=ends.astype(np.float32))
    recording = open_recording(tmp_path / "episode_000.npz")
    assert recording.layout == "npz episodes"
    assert_same(recording, episodes[:1])


def test_any_layout_becomes_a_data_set_of_ours(tmp_path, episodes, monkeypatch):
    from farreach_workloads.goals.data import recordings

    monkeypatch.setattr(recordings, "SHARD_ROWS", 80)
    path = as_ogbench(tmp_path / "small.npz", episodes)
    assert import_recording(path, tmp_path / "out", "maze") == []
    copied = EpisodeStore.open(tmp_path / "out")
    assert [entry["episodes"] for entry in copied.info["shards"]] == [2, 2]
    assert copied.info["source"]["layout"] == "OGBench"
    np.testing.assert_array_equal(copied.lengths, [40, 50, 60, 70])
    assert_same(open_recording(tmp_path / "out"), episodes)
    assert check_recording(tmp_path / "out", "maze").faults == []


def test_a_sound_recording_has_nothing_to_report(store):
    report = check_recording(store.path, "maze")
    assert (report.layout, report.episodes, report.rows) == ("shards", 60, 6060)
    assert (report.faults, report.warnings) == ([], [])


def test_nan_is_found_at_its_step_and_dim(tmp_path, episodes):
    episodes[2]["observation"][17, 4] = np.nan
    report = check_recording(as_npz(tmp_path, episodes))
    assert report.faults == [
        f"{tmp_path}/episode_002.npz: observation holds nan at step 17, dim 4."
    ]


def test_columns_of_unequal_length_are_a_fault(tmp_path, episodes):
    episodes[1]["action"] = episodes[1]["action"][1:]
    [fault] = check_recording(as_npz(tmp_path, episodes)).faults
    assert "episode_001.npz: its columns have different lengths: observation 50, action 49" in fault
    assert "a dummy as the first action" in fault


def test_other_dims_are_a_fault(tmp_path, episodes):
    episodes[3]["observation"] = episodes[3]["observation"][:, :5]
    [fault] = check_recording(as_npz(tmp_path, episodes)).faults
    assert fault == (
        f"{tmp_path}/episode_003.npz: its observation has 5 dims, where "
        f"{tmp_path}/episode_000.npz has 7."
    )
    [fault] = check_recording(tmp_path / "episode_000.npz", "pusher").faults
    assert "its observation has 7 dims, where environment pusher has 4" in fault


@pytest.mark.parametrize("environment", [None, "maze"])
def test_a_further_column_that_a_later_episode_lacks_is_a_fault(environment, tmp_path, episodes):
    rewarded = {**episodes[0], "reward": np.ones((40, 1), np.float32)}
    folder = tmp_path / "in"
    folder.mkdir()
    as_npz(folder, [rewarded, *episodes[1:3]])
    faults = check_recording(folder, environment).faults
    assert faults == [
        f"{folder}/episode_00{number}.npz: its reward has no dims, where "
        f"{folder}/episode_000.npz has 1."
        for number in (1, 2)
    ]
    with pytest.raises(DataError, match=r"episode_001.npz: its reward has no dims"):
        import_recording(folder, tmp_path / "out", environment)


def test_a_further_column_that_the_first_episode_lacks_is_left_out_of_all_shards(
    tmp_path, episodes, monkeypatch
):
    from farreach_workloads.goals.data import recordings

    monkeypatch.setattr(recordings, "SHARD_ROWS", 80)
    rewarded = [{**e, "reward": np.ones((len(e["action"]), 1))} for e in episodes[2:]]
    folder = tmp_path / "in"
    folder.mkdir()
    [warning] = import_recording(
        as_npz(folder, [*episodes[:2], *rewarded]), tmp_path / "out", "maze"
    )
    assert warning == (
        f"{folder}/episode_002.npz: its reward is left out, since the first episode has none; so "
        "it is in 2 episodes."
    )
    copied = EpisodeStore.open(tmp_path / "out")
    assert len(copied.info["shards"]) == 2
    assert all(list(e.columns) == ["observation", "action"] for e in copied.episodes())


def test_episodes_without_a_transition_are_a_fault(tmp_path, episodes):
    short = [{name: values[:1] for name, values in episodes[0].items()}]
    [fault] = check_recording(as_npz(tmp_path, short)).faults
    assert fault.endswith("has 1 rows and so no transition.")


def test_an_episode_without_a_row_is_a_fault(tmp_path, episodes):
    empty = {name: values[:0] for name, values in episodes[0].items()}
    [fault] = check_recording(as_npz(tmp_path, [episodes[0], empty])).faults
    assert fault == f"{tmp_path}/episode_001.npz: has 0 rows and so no transition."


@pytest.mark.parametrize("observation", [np.float32(3), np.array(["a"] * 40)])
def test_what_are_no_rows_of_numbers_is_named(observation, tmp_path, episodes):
    wrong = {**episodes[0], "observation": observation}
    [fault] = check_recording(as_npz(tmp_path, [wrong])).faults
    assert "episode_000.npz: observation is no array of numbers with a row for each" in fault


def test_a_recordings_own_numbers_of_steps_do_not_move_where_episodes_begin(tmp_path, episodes):
    folder, begin = tmp_path / "in", 1
    folder.mkdir()
    for number, columns in enumerate(episodes):
        steps = begin + np.arange(len(columns["action"]))
        np.savez(folder / f"{number}.npz", **columns, step=steps, episode=0 * steps)
        begin = steps[-1] + 1
    assert import_recording(folder, tmp_path / "out", "maze") == []
    np.testing.assert_array_equal(EpisodeStore.open(tmp_path / "out").lengths, [40, 50, 60, 70])


def test_many_faults_of_a_kind_are_counted(tmp_path, episodes):
    bad = [{**episodes[0], "action": episodes[0]["action"][1:]}] * (SHOWN + 3)
    faults = check_recording(as_npz(tmp_path, bad)).faults
    assert len(faults) == SHOWN + 1
    assert faults[-1] == "... and 3 more like these."


def test_missing_keys_are_named_and_what_follows_is_not_vouched_for(tmp_path, episodes):
    as_npz(tmp_path, episodes[:3])
    np.savez(tmp_path / "episode_001.npz", observation=np.zeros((3, 7)), actions=np.zeros((3, 2)))
    [fault] = check_recording(tmp_path).faults
    assert "episode_001.npz: lacks action; it has actions, observation." in fault
    assert fault.endswith("What comes after it was not looked at.")


def test_torn_files_are_named(tmp_path, episodes):
    path = as_npz(tmp_path, episodes[:1]) / "episode_000.npz"
    path.write_bytes(path.read_bytes()[:-100])
    assert not zipfile.is_zipfile(path)
    with pytest.raises(DataError, match=r"episode_000.npz: is no whole .npz file"):
        open_recording(path)
    assert "is no whole .npz file" in check_recording(tmp_path).faults[0]


def test_a_cut_ogbench_file_is_found(tmp_path, episodes):
    path = as_ogbench(tmp_path / "x.npz", episodes)
    arrays = dict(np.load(path))
    np.savez(path, **{name: values[:-3] for name, values in arrays.items()})
    assert "its last row does not end an episode" in check_recording(path).faults[0]
    np.savez(path, **{**arrays, "actions": arrays["actions"][:-1]})
    assert "need the same" in check_recording(path).faults[0]


@pytest.mark.parametrize("layout", ["nothing", "empty folder", "text"])
def test_what_is_no_recording_is_refused(layout, tmp_path):
    path = tmp_path / "x"
    if layout == "empty folder":
        path.mkdir()
    elif layout == "text":
        path.write_text("episodes")
    expected = "no such file" if layout == "nothing" else "holds no recorded episodes. Known are"
    with pytest.raises(DataError, match=expected):
        open_recording(path)


def test_a_faulty_recording_is_not_imported(tmp_path, episodes):
    episodes[2]["observation"][17, 4] = np.inf
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"episode_002.npz: observation holds inf at step 17"):
        import_recording(as_npz(tmp_path / "in", episodes), tmp_path / "out")
    with pytest.raises(DataError, match=r"has no dataset.json"):
        EpisodeStore.open(tmp_path / "out")


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path, episodes):
    with pytest.raises(DataError, match="is not empty"):
        import_recording(as_npz(tmp_path, episodes), tmp_path)


def shifted(episodes, rows):
    return [Episode("x", {**e, "action": np.roll(e["action"], rows, axis=0)}) for e in episodes]


@pytest.mark.parametrize("rows", [-1, 0, 1])
def test_shifted_actions_are_found(episodes, rows):
    assert misalignment(shifted(episodes, rows)) == rows


def test_shifted_actions_are_a_warning(tmp_path, episodes):
    wrong = [e.columns for e in shifted(episodes, -1)]
    report = check_recording(as_npz(tmp_path, wrong))
    assert report.faults == []
    [warning] = report.warnings
    assert "is explained best by the action 1 step earlier" in warning


def test_actions_that_explain_nothing_are_no_misalignment():
    rng = np.random.default_rng(0)
    columns = {
        "observation": rng.normal(size=(5000, 3)).cumsum(axis=0),
        "action": rng.uniform(-1, 1, (5000, 2)),
    }
    assert misalignment([Episode("x", columns)]) == 0
    short = {name: values[:3] for name, values in columns.items()}
    assert misalignment([Episode("x", short)]) == 0


@pytest.mark.parametrize("rows", [20, 60, 200])
def test_chance_is_not_taken_for_a_shift_in_a_few_rows(rows):
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        columns = {
            "observation": rng.normal(size=(rows, 7)).cumsum(axis=0),
            "action": rng.uniform(-1, 1, (rows, 2)),
        }
        found.append(misalignment([Episode("x", columns)]))
    assert found == [0] * 20


def test_actions_out_of_bounds_are_a_warning(tmp_path, episodes):
    for columns in episodes[1:]:
        columns["action"] *= 2
    [warning] = check_recording(as_npz(tmp_path, episodes)).warnings
    assert "episode_001.npz: actions lie outside of [-1, 1], as in 3 episodes" in warning


def test_the_command_tells_faults_by_its_exit_code(tmp_path, episodes, capsys, store):
    assert main(["data", "check", str(store.path), "--environment", "maze"]) == 0
    assert f"{store.path} is fine" in capsys.readouterr().out
    episodes[0]["action"][3, 1] = np.nan
    folder = tmp_path / "in"
    folder.mkdir()
    assert main(["data", "check", str(as_npz(folder, episodes))]) == 1
    said = capsys.readouterr()
    assert "fault: " in said.out
    assert "1 faults, see above" in said.err
    assert main(["data", "import", str(folder), str(tmp_path / "out")]) == 1
    assert "action holds nan at step 3, dim 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("maze", "maze", {}),
        ("gymnasium:id=Pendulum-v1", "gymnasium", {"id": "Pendulum-v1"}),
        (
            "gymnasium:id=PointMaze_UMaze-v3,reset_cell=[1,1],make={reward_type: dense}",
            "gymnasium",
            {"id": "PointMaze_UMaze-v3", "reset_cell": [1, 1], "make": {"reward_type": "dense"}},
        ),
    ],
)
def test_an_environment_is_named_with_its_options(text, name, options):
    assert environment_named(text) == EnvironmentConfig(name=name, options=options)


def test_an_option_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"options.id': should read key=value"):
        environment_named("gymnasium:id")


def test_an_unknown_environment_is_refused(store):
    with pytest.raises(ConfigError, match="Did you mean 'maze'"):
        check_recording(store.path, "mase")
