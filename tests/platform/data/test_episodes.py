import json
import pickle

import numpy as np
import pyarrow as pa
import pytest

from farreach.data.episodes import (
    INDEX_FILE,
    EpisodeStore,
    Moments,
    read_index,
    read_shard,
    write_index,
    write_shard,
)
from farreach.errors import DataError

SOURCE = {"behaviour": "random", "seed": 3}
LENGTHS = [[3, 1, 4], [2, 5]]


@pytest.fixture
def rows():
    """Columns of all 15 rows of five episodes."""
    rng = np.random.default_rng(0)
    return {
        "observation": rng.normal(size=(15, 3)).astype(np.float32),
        "action": rng.uniform(-1, 1, (15, 2)).astype(np.float32),
        "physics": rng.normal(size=(15, 4)),
    }


@pytest.fixture
def folder(tmp_path, rows):
    begin, episode, records = 0, 0, []
    for number, lengths in enumerate(LENGTHS):
        part = {name: values[begin : begin + sum(lengths)] for name, values in rows.items()}
        path = tmp_path / f"shard-{number:05}.arrow"
        records.append(write_shard(path, part, lengths, episode, SOURCE))
        begin, episode = begin + sum(lengths), episode + len(lengths)
    write_index(tmp_path, "five", records)
    return tmp_path


def test_rows_come_back_from_any_shard_in_any_order(folder, rows):
    store = EpisodeStore.open(folder)
    wanted = np.array([14, 0, 7, 8, 8, 3, 14])
    for name, values in rows.items():
        np.testing.assert_array_equal(store[name][wanted], values[wanted])
        assert store[name].dtype == values.dtype
    assert store[name].dim == 4


def test_the_index_says_where_episodes_begin(folder):
    store = EpisodeStore.open(folder)
    assert (len(store), store.rows) == (5, 15)
    np.testing.assert_array_equal(store.starts, [0, 3, 4, 8, 10, 15])
    np.testing.assert_array_equal(store.lengths, [3, 1, 4, 2, 5])
    info = store.info
    assert (info["episodes"], info["rows"], info["transitions"]) == (5, 15, 10)
    assert info["source"] == SOURCE


def test_episodes_are_named_by_file_and_number(folder, rows):
    episodes = list(EpisodeStore.open(folder).episodes())
    assert [len(episode) for episode in episodes] == [3, 1, 4, 2, 5]
    assert episodes[3].where == f"{folder}/shard-00001.arrow, episode 3"
    np.testing.assert_array_equal(episodes[3].columns["action"], rows["action"][8:10])


def test_blocks_cover_a_column_in_order(folder, rows):
    blocks = list(EpisodeStore.open(folder)["observation"].blocks(5))
    assert [first for first, _ in blocks] == [0, 5, 8, 13]
    np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), rows["observation"])


def test_columns_are_mapped_and_not_loaded(folder):
    _, columns = read_shard(folder / "shard-00000.arrow")
    before = pa.total_allocated_bytes()
    again = [read_shard(folder / "shard-00000.arrow")[1] for _ in range(10)]
    assert pa.total_allocated_bytes() - before < columns["observation"].nbytes * len(again)
    assert not columns["observation"].flags.writeable


def test_statistics_are_those_of_all_rows(folder, rows):
    statistics = EpisodeStore.open(folder).info["statistics"]["observation"]
    wide = rows["observation"].astype(np.float64)
    assert statistics["count"] == 15
    np.testing.assert_allclose(statistics["mean"], wide.mean(axis=0))
    np.testing.assert_allclose(statistics["std"], wide.std(axis=0))
    np.testing.assert_allclose(statistics["low"], wide.min(axis=0))
    np.testing.assert_allclose(statistics["high"], wide.max(axis=0))


def test_moments_of_unequal_parts_merge():
    # 1, 2, 3 and 10: mean 4, variance (9 + 4 + 1 + 36) / 4
    merged = Moments.merged(
        [Moments.of(np.array([[1.0], [2], [3]])), Moments.of(np.array([[10.0]]))]
    )
    assert (merged.count, merged.mean, merged.low, merged.high) == (4, [4.0], [1.0], [10.0])
    assert merged.std == [pytest.approx(12.5**0.5)]


def test_other_programs_read_the_shards(folder, rows):
    table = pa.ipc.open_file(pa.memory_map(str(folder / "shard-00001.arrow"))).read_all()
    assert table.column("episode").to_pylist() == [3, 3, 4, 4, 4, 4, 4]
    assert table.column("step").to_pylist() == [0, 1, 0, 1, 2, 3, 4]
    read = np.array(table.column("observation").to_pylist(), np.float32)
    np.testing.assert_array_equal(read, rows["observation"][8:])


def test_a_store_travels_as_its_path(folder, rows):
    frame = pickle.dumps(EpisodeStore.open(folder))
    assert len(frame) < 500
    np.testing.assert_array_equal(
        pickle.loads(frame)["action"][np.arange(15)],
        rows["action"],
    )


def test_the_hash_depends_on_the_values_alone(tmp_path, rows):
    def content(part):
        return write_shard(tmp_path / "x.arrow", part, [15], 0, SOURCE).content

    first = content(rows)
    assert content({name: values.copy() for name, values in rows.items()}) == first
    changed = {**rows, "action": rows["action"].copy()}
    changed["action"][4, 1] = np.nextafter(changed["action"][4, 1], np.float32(2))
    assert content(changed) != first


def test_a_changed_value_is_found(folder, rows):
    path = folder / "shard-00001.arrow"
    content = path.read_bytes()
    value = rows["observation"][9].tobytes()
    assert content.count(value) == 1
    assert EpisodeStore.open(folder).damaged() == []
    path.write_bytes(content.replace(value, (rows["observation"][9] + 1).tobytes()))
    assert EpisodeStore.open(folder).damaged() == [
        f"{path}: its values have changed since it was written. Delete it and make it again."
    ]


def test_a_torn_or_missing_shard_is_named(folder):
    path = folder / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"shard-00001.arrow: is no whole shard .* make it again"):
        EpisodeStore.open(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00001.arrow: is no whole shard"):
        EpisodeStore.open(folder)


def test_a_shard_of_another_data_set_is_refused(folder, rows):
    write_shard(folder / "shard-00001.arrow", rows, [15], 3, SOURCE)
    with pytest.raises(DataError, match=r"shard-00001.arrow: is not the shard that dataset.json"):
        EpisodeStore.open(folder)


def test_an_unfinished_data_set_is_no_data_set(folder):
    (folder / INDEX_FILE).unlink()
    with pytest.raises(DataError, match=r"has no dataset.json, so it is no data set or not finis"):
        EpisodeStore.open(folder)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"format": 1, "shards": []}', "[1]"])
def test_a_malformed_index_is_named(content, tmp_path):
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(DataError, match=r"dataset.json: cannot be read"):
        read_index(tmp_path)


def test_another_format_is_refused(folder):
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(DataError, match="was written by another version"):
        EpisodeStore.open(folder)
