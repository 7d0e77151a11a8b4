import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError

PARTS = {"learner": {"w": np.arange(6.0).reshape(2, 3)}, "replay": {"rows": [1, 2], "big": 2**100}}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def save(store, *steps, score=None):
    return [store.save({"a": {"step": step}}, step=step, info={}, score=score) for step in steps][
        -1
    ]


def folders(store):
    return sorted(path.name for path in store.directory.iterdir())


def steps(store):
    return [int(name.removeprefix("step_")) for name in folders(store)]


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_comes_back_with_everything_that_was_saved(store):
    path = store.save(PARTS, step=123456, info={"seed": 1, "tags": ["x"]}, score=0.5)
    assert path.name == "step_000000123456"
    assert sorted(file.name for file in path.iterdir()) == [
        "learner.msgpack",
        "manifest.json",
        "replay.msgpack",
    ]
    for found in (store.newest(), store.best(), store.load(path), CheckpointStore.load(str(path))):
        assert (found.path, found.step, found.score) == (path, 123456, 0.5)
        assert found.info == {"seed": 1, "tags": ["x"]}
        assert found.parts().keys() == PARTS.keys()
        np.testing.assert_array_equal(found.parts()["learner"]["w"], PARTS["learner"]["w"])
        assert found.part("replay") == PARTS["replay"]
    assert store.skipped == []


def test_the_manifest_is_readable_by_hand(store):
    path = store.save(PARTS, step=7, info={"note": "x"})
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["step"] == 7
    assert manifest["score"] is None
    assert manifest["info"] == {"note": "x"}
    size = (path / "learner.msgpack").stat().st_size
    assert manifest["files"]["learner.msgpack"]["size"] == size


def test_an_empty_store_has_no_checkpoint(store):
    assert store.newest() is None
    assert store.best() is None


def test_steps_are_compared_as_numbers(store):
    save(store, 10**12 + 5, 999_999_999_999)
    assert store.newest().step == 10**12 + 5


def test_the_newest_two_are_kept(store):
    save(store, 1, 2, 3, 4)
    assert steps(store) == [3, 4]


def test_the_best_is_kept_besides_the_newest(store):
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.2), (4, None), (5, 0.3)]:
        save(store, step, score=score)
    assert steps(store) == [2, 4, 5]
    assert store.best().step == 2
    assert store.newest().step == 5


def test_of_equal_scores_the_newest_is_best(store):
    save(store, 1, 2, score=0.5)
    assert store.best().step == 2


def test_a_score_of_nan_counts_as_not_measured(store):
    save(store, 1, score=float("nan"))
    assert store.newest().score is None
    assert store.best() is None


def test_saving_behind_the_newest_keeps_what_was_just_written(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 300, 250)
    assert steps(store) == [250, 300]


def test_an_invalid_checkpoint_does_not_push_out_valid_ones(tmp_path):
    flip(save(CheckpointStore(tmp_path), 100, 200, 300) / "a.msgpack")
    store = CheckpointStore(tmp_path, keep=1)
    assert store.newest().step == 200
    save(store, 250)
    assert steps(store) == [250, 300]
    assert store.newest().step == 250


def test_an_invalid_checkpoint_does_not_count_as_the_best(store):
    flip(save(store, 1, score=0.9) / "a.msgpack")
    fresh = CheckpointStore(store.directory, keep=1)
    save(fresh, 2, score=0.5)
    save(fresh, 3, 4, score=0.1)
    assert steps(fresh) == [2, 4]
    assert fresh.best().step == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: flip(path / "a.msgpack"), r"a\.msgpack: was altered: sha256 is \w+ instead"),
        (
            lambda path: (path / "a.msgpack").write_bytes((path / "a.msgpack").read_bytes()[:-3]),
            r"a\.msgpack: has \d+ bytes instead of \d+ \(sha256 \w{64} instead of \w{64}\)",
        ),
        (lambda path: (path / "a.msgpack").unlink(), r"a\.msgpack: cannot be read: No such file"),
        (lambda path: (path / "manifest.json").unlink(), r"manifest\.json: cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"schema": 1'), "is not JSON"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text('{"name": "x"}'), "not written by farr"),
        (lambda path: (path / "manifest.json").write_text("[1]"), "was not written by farreach"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_message_and_refused_by_load(store, damage, message):
    save(store, 1, score=0.1)
    path = save(store, 2, score=0.2)
    damage(path)
    for found in (store.newest(), store.best()):
        assert found.step == 1
        assert len(store.skipped) == 1
        assert store.skipped[0].startswith(str(path))
    with pytest.raises(CheckpointError, match=message) as caught:
        store.load(path)
    assert "Delete that folder to fall back to the older checkpoint." in str(caught.value)


def test_skipped_is_about_the_last_question_only(store):
    path = save(store, 1, 2)
    flip(path / "a.msgpack")
    store.newest()
    flip(path / "a.msgpack")
    assert store.newest().step == 2
    assert store.skipped == []


def test_an_unknown_schema_version_is_refused_with_both_versions(store):
    manifest = save(store, 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 9'))
    with pytest.raises(CheckpointError, match="schema version 9, but this farreach reads 1"):
        store.load(manifest.parent)


def test_altering_any_byte_of_a_checkpoint_is_noticed_or_harmless(store):
    path = store.save({"a": {"x": 1.5}}, step=3, info={"env_steps": 40}, score=0.25)
    for file in path.iterdir():
        for position in range(file.stat().st_size):
            flip(file, position)
            try:
                found = store.load(path)
            except CheckpointError:
                pass
            else:  # white space between the entries of the manifest
                assert (found.step, found.score, found.info) == (3, 0.25, {"env_steps": 40})
                assert found.parts() == {"a": {"x": 1.5}}
            flip(file, position)


def test_checksums_are_verified_when_a_part_is_read(store):
    save(store, 1)
    checkpoint = store.newest()
    flip(checkpoint.path / "a.msgpack")
    with pytest.raises(CheckpointError, match=r"a\.msgpack: was altered"):
        checkpoint.parts()
    with pytest.raises(CheckpointError, match=r"a\.msgpack: was altered"):
        checkpoint.part("a")


def test_an_unknown_part_is_refused_with_the_known_ones(store):
    store.save(PARTS, step=1, info={})
    with pytest.raises(CheckpointError, match=r"no actor\.msgpack.*learner\.msgpack, replay"):
        store.newest().part("actor")


def test_loading_a_folder_that_is_not_there_says_so(store):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        store.load(store.directory / "step_000000000001")


@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_leaves_no_partial_checkpoint_and_the_older_one_untouched(
    store, monkeypatch, call
):
    store.save(PARTS, step=1, info={})
    calls = []
    fsync = os.fsync

    def fail_at_the_nth_call(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    # Two parts, the manifest, the new folder, the folder above.
    monkeypatch.setattr(os, "fsync", fail_at_the_nth_call)
    with pytest.raises(CheckpointError) as caught:
        store.save(PARTS, step=2, info={})
    assert str(store.directory / "step_000000000002") in str(caught.value)
    assert "No space left on device. Free space on that file system" in str(caught.value)
    monkeypatch.undo()

    # The last fsync comes after the rename: by then the new checkpoint is whole.
    assert steps(store) == ([1] if call < 5 else [1, 2])
    assert store.newest().part("replay") == PARTS["replay"]
    assert store.skipped == []
    store.save(PARTS, step=3, info={})
    assert store.newest().step == 3


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_failing_rename_never_loses_the_checkpoint_that_is_replaced(store, monkeypatch, call):
    save(store, 1)
    calls = []
    rename = os.rename

    def fail_at_the_nth_call(source, target):
        calls.append(source)
        if len(calls) == call:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    # Old folder aside, new one into place, the old one into the bin.
    monkeypatch.setattr(os, "rename", fail_at_the_nth_call)
    if call < 4:
        with pytest.raises(CheckpointError, match=r"denied\. Make that folder writable"):
            store.save({"a": "new"}, step=1, info={})
    else:
        store.save({"a": "new"}, step=1, info={})
    monkeypatch.undo()
    assert store.newest().part("a") == ("new" if call > 2 else {"step": 1})
    assert store.skipped == []
    store.save({"a": "again"}, step=1, info={})
    assert store.newest().part("a") == "again"
    assert folders(store) == ["step_000000000001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named_with_a_mend(store):
    save(store, 1)
    store.directory.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Make that folder writable"):
            save(store, 2)
    finally:
        store.directory.chmod(0o700)
    assert store.newest().step == 1


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="could not write the checkpoint"):
        save(CheckpointStore(tmp_path / "checkpoints"), 1)


@pytest.mark.parametrize(
    ("parts", "info"), [({"a": object()}, {}), ({"a": 1}, {"x": object()}), ({"../a": 1}, {})]
)
def test_what_cannot_be_written_leaves_nothing_behind(store, parts, info):
    save(store, 1)
    with pytest.raises((TypeError, ValueError)):
        store.save(parts, step=2, info=info)
    assert steps(store) == [1]


def test_saving_a_step_again_replaces_it(store):
    save(store, 1, 2)
    store.save({"b": "new"}, step=2, info={})
    assert steps(store) == [1, 2]
    assert store.newest().parts() == {"b": "new"}


def test_a_replacement_that_was_cut_short_is_read_and_then_undone(store):
    path = save(store, 2)
    path.rename(path.with_suffix(".old"))
    assert store.newest().step == 2
    save(store, 3)
    assert steps(store) == [2, 3]


def test_a_replaced_folder_that_was_left_over_is_removed(store):
    path = save(store, 2)
    path.rename(path.with_suffix(".old"))
    other = save(CheckpointStore(store.directory.parent / "other"), 2)
    other.rename(path)
    assert store.newest().path == path
    save(store, 3)
    assert steps(store) == [2, 3]


def test_leftovers_of_a_dead_writer_are_ignored_and_removed_by_the_next_save(store):
    save(store, 1)
    leftover = store.directory / ".tmp-step_000000000009-4711"
    leftover.mkdir()
    (leftover / "a.msgpack").write_bytes(b"half")
    assert store.newest().step == 1
    assert store.skipped == []
    save(store, 2)
    assert folders(store) == ["step_000000000001", "step_000000000002"]


def test_other_files_in_the_folder_are_left_alone(store):
    save(store, 1)
    (store.directory / "notes.txt").write_text("mine")
    (store.directory / "step_1").mkdir()
    save(store, 2, 3, 4)
    assert {"notes.txt", "step_1"} <= set(folders(store))
    assert store.newest().step == 4


def test_a_reader_that_meets_a_vanished_folder_looks_again(store, monkeypatch):
    path = save(store, 1)
    load = CheckpointStore.load

    def load_while_the_writer_goes_on(asked):
        if path.exists():
            save(CheckpointStore(store.directory, keep=1), 2)
        return load(asked)

    monkeypatch.setattr(store, "load", load_while_the_writer_goes_on)
    assert store.newest().step == 2
    assert store.skipped == []


@pytest.mark.parametrize(("keep", "step"), [(0, 1), (1, -1)])
def test_impossible_numbers_are_refused(tmp_path, keep, step):
    with pytest.raises(ValueError, match="must be at least"):
        save(CheckpointStore(tmp_path, keep=keep), step)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from farreach.checkpoint import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), keep=2)
newest = store.newest()
number = newest.part("cursor")["number"] if newest else 0
print("ready", flush=True)
while True:
    number += 1
    # Every number is saved under a step that often repeats, so that replacing is killed as well.
    parts = {"cursor": {"number": number}, "replay": np.full(20_000, number)}
    store.save(parts, step=number // 3, info={"number": number}, score=-number)
    print(number, flush=True)
"""


def test_killing_the_writer_at_any_time_leaves_a_valid_and_complete_newest(tmp_path):
    rng = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    reported = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.01, 0.15))
        writer.send_signal(signal.SIGKILL)
        lines = writer.communicate()[0].splitlines()
        reported = max([reported, *map(int, lines)])

        store = CheckpointStore(tmp_path)
        newest = store.newest()
        assert store.skipped == []
        if newest is None:
            assert reported == 0
            continue
        number = newest.part("cursor")["number"]
        # What save() returned for is there; at most one more had been renamed by then.
        assert number in (reported, reported + 1)
        assert newest.info == {"number": number}
        np.testing.assert_array_equal(newest.part("replay"), np.full(20_000, number))
        assert store.best() is not None
        reported = number
    assert reported > 8
