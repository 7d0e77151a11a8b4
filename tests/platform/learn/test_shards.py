from pathlib import Path

import numpy as np
import pytest

from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError
from farreach.learn.shards import COUNT, OUTLINE, part_name, whole_state
from farreach.testing.ranks import several

PROGRAM = Path(__file__).with_name("shard_rows.py")
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
MOMENT = WEIGHT + 100


def outline(array):
    return {OUTLINE: list(array.shape)}


def saved(folder, rows):
    """A checkpoint as two workers write it; rows: of the weights, by worker."""
    learner = {
        "model": {"layer.weight": outline(WEIGHT), "count": np.array(7)},
        "companions": [{"layer.weight": outline(WEIGHT)}],
        "optimizer": {"state": {"layer.weight": {"exp_avg": outline(MOMENT)}}},
        "step": 5,
        COUNT: 2,
    }
    parts = {"learner": learner}
    for rank, (begin, end) in enumerate(rows):
        parts[part_name("weights", rank, 2)] = {
            "/model/layer.weight": [begin, WEIGHT[begin:end]],
            "/companions/0/layer.weight": [begin, -WEIGHT[begin:end]],
        }
        moments = {"/optimizer/state/layer.weight/exp_avg": [begin, MOMENT[begin:end]]}
        parts[part_name("optimizer", rank, 2)] = moments
    store = CheckpointStore(folder)
    return CheckpointStore.load(store.save(parts, step=5, info={}))


def test_rows_of_all_workers_make_the_whole(tmp_path):
    state = whole_state(saved(tmp_path, [(0, 3), (3, 4)]))
    np.testing.assert_array_equal(state["model"]["layer.weight"], WEIGHT)
    np.testing.assert_array_equal(state["companions"][0]["layer.weight"], -WEIGHT)
    assert state["model"]["count"] == 7
    assert state["step"] == 5
    assert state["optimizer"]["state"]["layer.weight"]["exp_avg"] == outline(MOMENT)


def test_the_optimizers_state_is_read_where_it_is_asked_for(tmp_path):
    state = whole_state(saved(tmp_path, [(0, 2), (2, 4)]), ("weights", "optimizer"))
    moments = state["optimizer"]["state"]["layer.weight"]["exp_avg"]
    np.testing.assert_array_equal(moments, MOMENT)


def test_who_wants_the_weights_reads_no_other_file(tmp_path):
    checkpoint = saved(tmp_path, [(0, 2), (2, 4)])
    for path in checkpoint.path.glob("optimizer-*"):
        path.unlink()
    np.testing.assert_array_equal(whole_state(checkpoint)["model"]["layer.weight"], WEIGHT)


def test_what_is_not_split_is_as_it_is(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save({"learner": {"model": {"a": np.ones(2)}}}, step=1, info={})
    assert whole_state(CheckpointStore.load(path))["model"]["a"].tolist() == [1, 1]


def test_rows_that_are_missing_are_named(tmp_path):
    checkpoint = saved(tmp_path, [(0, 2), (3, 4)])
    with pytest.raises(CheckpointError, match=r"holds 3 of 4 rows of /model/layer\.weight"):
        whole_state(checkpoint)


def test_a_part_that_was_altered_is_named(tmp_path):
    checkpoint = saved(tmp_path, [(0, 2), (2, 4)])
    path = checkpoint.path / "weights-00001-of-00002.msgpack"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"weights-00001-of-00002\.msgpack: was altered"):
        whole_state(checkpoint)


def test_each_worker_writes_its_own_rows(tmp_path):
    """None of the parts holds the whole: the layer of eight rows is in four of two each."""
    [files, *others] = several(PROGRAM, 4, tmp_path, [tmp_path, "rows"])
    assert all(other == files for other in others)
    kinds = [
        f"{kind}-{rank:05d}-of-00004.msgpack"
        for kind in ("weights", "optimizer")
        for rank in range(4)
    ]
    assert sorted(files) == sorted([*kinds, "learner.msgpack"])
    checkpoint = CheckpointStore(tmp_path / "checkpoints").newest()
    for rank in range(4):
        rows = checkpoint.part(part_name("weights", rank, 4))
        first, own = rows["/model/layers.0.0.weight"]
        assert (first, own.shape) == (2 * rank, (2, 3))
        # A single row is the first worker's.
        assert ("/model/layers.1.weight" in rows) == (rank == 0)


def test_a_network_of_another_shape_is_refused(tmp_path):
    told = several(PROGRAM, 2, tmp_path, [tmp_path, "wide"])
    for message in told:
        assert "/model/layers.1.weight has shape (1, 8), and (2, 8) is needed" in message
