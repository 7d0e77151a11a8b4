import threading

import pytest

from farreach.checkpoint import CheckpointStore
from farreach.checkpoint_files import Packed
from farreach.errors import CheckpointError
from farreach.joint import JointParts


def test_a_checkpoint_waits_for_the_parts_of_all(tmp_path):
    store = CheckpointStore(tmp_path)
    first, second = JointParts(tmp_path, "one"), JointParts(tmp_path, "one")
    first.write(7, "rows-0", Packed.of({"a": 1}))
    late = threading.Timer(0.2, second.write, [7, "rows-1", Packed.of({"a": 2})])
    late.start()
    path = store.save({"own": 3}, step=7, info={}, more=first.collect(7, ["rows-0", "rows-1"]))
    late.join()
    checkpoint = CheckpointStore.load(path)
    assert checkpoint.parts() == {"own": 3, "rows-0": {"a": 1}, "rows-1": {"a": 2}}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_parts_of_later_checkpoints_are_left_alone(tmp_path):
    store, parts = CheckpointStore(tmp_path), JointParts(tmp_path, "one")
    for step in (1, 2):
        parts.write(step, "rows", Packed.of(step))
    for step in (1, 2):
        path = store.save({}, step=step, info={}, more=parts.collect(step, ["rows"]))
        assert CheckpointStore.load(path).part("rows") == step


def test_what_a_session_of_before_has_left_is_not_taken(tmp_path):
    JointParts(tmp_path, "old").write(7, "rows", Packed.of("old"))
    parts = JointParts(tmp_path, "new")
    parts.write(7, "rows", Packed.of("new"))
    parts.clear()
    assert [entry.name for entry in tmp_path.glob(".joint-old*")] == []
    path = CheckpointStore(tmp_path).save({}, step=7, info={}, more=parts.collect(7, ["rows"]))
    assert CheckpointStore.load(path).part("rows") == "new"


def test_nobody_waits_for_a_process_that_has_ended(tmp_path):
    store, parts = CheckpointStore(tmp_path), JointParts(tmp_path, "one")
    store.save({"own": 1}, step=1, info={})
    threading.Timer(0.1, parts.abandon).start()
    with pytest.raises(CheckpointError, match="rows-1: the process that was to write it has ended"):
        store.save({"own": 2}, step=2, info={}, more=parts.collect(2, ["rows-1"]))
    assert store.newest().step == 1
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_disk_that_refuses_a_part_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"could not write rows: Not a directory"):
        JointParts(tmp_path / "file", "one").write(1, "rows", Packed.of(1))
