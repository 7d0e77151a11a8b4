import pickle

import msgpack
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from farreach.errors import DataError
from farreach_workloads.goals.data.rllib_episodes import read_rllib_episodes


def packed(array):
    return {
        b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape,
        b"data": array.tobytes(),
    }  # fmt: skip


def buffer(steps, lookback=0):
    return {"data": [packed(np.float32(step)) for step in steps], "lookback": lookback}


def episode(name, states, actions, start=0, lookback=0):
    """An episode of one-dimensional states and actions."""
    return {
        "id_": name,
        "t_started": start,
        "observations": buffer([[state] for state in states], lookback),
        "actions": buffer([[action] for action in actions], lookback),
    }


def write(path, *rows):
    rows = [row if isinstance(row, bytes) else msgpack.packb(row) for row in rows]
    parquet.write_table(pyarrow.table({"item": pyarrow.array(rows, pyarrow.binary())}), path)
    return path


def test_box_episodes_come_in_the_order_of_the_files(tmp_path):
    (tmp_path / "run-000000-00001").mkdir()
    write(tmp_path / "run-000000-00001" / "1.parquet", episode("b", [7, 8, 9], [5, 6]))
    write(tmp_path / "a.parquet", episode("a", [1, 2, 3], [3, 4]))
    read = read_rllib_episodes(tmp_path)
    np.testing.assert_array_equal(read["observations"], [[[1], [2], [3]], [[7], [8], [9]]])
    np.testing.assert_array_equal(read["actions"], [[[3], [4]], [[5], [6]]])


@pytest.mark.parametrize("is_batched", [False, True])
def test_the_achieved_goal_comes_first_where_the_environment_has_it_so(is_batched, tmp_path):
    steps = [{"observation": [t, t, t], "achieved_goal": [9, t], "infos": None} for t in range(3)]
    row = episode("a", [0, 0, 0], [3, 4])
    if is_batched:
        data = {key: [step[key] for step in steps] for key in ("observation", "achieved_goal")}
        row["observations"]["data"] = {key: packed(np.float32(v)) for key, v in data.items()}
    else:
        row["observations"]["data"] = steps
    file = write(tmp_path / "x.parquet", row)
    plain = [[[0, 0, 0], [1, 1, 1], [2, 2, 2]]]
    np.testing.assert_array_equal(read_rllib_episodes(file)["observations"], plain)
    np.testing.assert_array_equal(read_rllib_episodes(file, 3)["observations"], plain)
    np.testing.assert_array_equal(read_rllib_episodes(file, 4)["observations"], plain)
    goal_first = [[[9, 0, 0, 0, 0], [9, 1, 1, 1, 1], [9, 2, 2, 2, 2]]]
    np.testing.assert_array_equal(read_rllib_episodes(file, 5)["observations"], goal_first)


def test_pieces_are_joined_without_what_they_repeat(tmp_path):
    later = episode("a", [1, 2, 3], [10, 20], start=1, lookback=1)
    file = write(tmp_path / "x.parquet", later, episode("a", [1, 2], [10]))
    read = read_rllib_episodes(file)
    np.testing.assert_array_equal(read["observations"], [[[1], [2], [3]]])
    np.testing.assert_array_equal(read["actions"], [[[10], [20]]])


def test_what_rllib_writes_again_counts_once(tmp_path):
    first, second = episode("a", [1, 2], [10]), episode("b", [5, 6], [7])
    write(tmp_path / "1.parquet", first)
    write(tmp_path / "2.parquet", first, second)
    read = read_rllib_episodes(tmp_path)
    np.testing.assert_array_equal(read["actions"], [[[10]], [[7]]])
    write(tmp_path / "3.parquet", episode("a", [1, 2], [11]))
    with pytest.raises(DataError, match=r"3.parquet, row 0: episode a: step 0 .* not what .*1.par"):
        read_rllib_episodes(tmp_path)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def test_pickled_infos_are_not_unpickled(tmp_path):
    content = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": (1,)}
    bomb = {**content, b"data": pickle.dumps(Bomb())}
    row = {**episode("a", [1, 2], [3]), "infos": {"data": bomb, "lookback": 0}}
    assert read_rllib_episodes(write(tmp_path / "x.parquet", row))["actions"].shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([episode("a", [1, 2], [3]), b"\xc1"], r"x.parquet, row 1: episode \?: is no packed"),
        ([{"id_": "a"}], r"x.parquet, row 0: episode a: is no packed .*KeyError: 't_started'"),
        ([episode("a", [1, 2], [3, 4])], "row 0: episode a: has 2 observations for 2 actions"),
        (
            [episode("a", [1, 2], [3]), episode("b", [1, 2, 3], [3, 4])],
            r"row 1: episode b: observations have shape \(3, 1\), those of the first episode \(2",
        ),
        (
            [episode("a", [1, 2], [3], start=5)],
            "row 0: episode a: continues at step 5, but 0 steps were recorded before it",
        ),
        ([], "holds no recorded episode"),
    ],
)
def test_a_malformed_episode_is_named_with_its_file(rows, message, tmp_path):
    file = write(tmp_path / "x.parquet", *rows)
    with pytest.raises(DataError, match=message):
        read_rllib_episodes(file)


def test_other_files_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match="holds no recorded episode"):
        read_rllib_episodes(tmp_path / "missing")
    parquet.write_table(pyarrow.table({"obs": [1.0], "actions": [2.0]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has columns obs, actions instead of item"):
        read_rllib_episodes(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_rllib_episodes(tmp_path)
