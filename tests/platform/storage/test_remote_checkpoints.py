"""Checkpoints at a URI: whole or absent for every reader, as many as in the local store."""

import json

import numpy as np
import pytest

from farreach.checkpoint import CheckpointStore
from farreach.errors import CheckpointError, StorageError
from farreach.storage.checkpoints import RemoteCheckpoints
from farreach.storage.remote import Remote
from farreach.storage.store import RemoteStore


class Sides:
    """A writer's folder, a reader's, and the URI between them."""

    def __init__(self, uri, folder, keep=2):
        self.remote = Remote(uri)
        self.store = CheckpointStore(folder / "writer", keep)
        self.writer = RemoteCheckpoints(self.remote, folder / "writer")
        self.reader = RemoteCheckpoints(self.remote, folder / "reader")

    def save(self, step, value=0.0, score=None):
        content = {"state": {"value": np.full(1000, value)}, "more": {"step": step}}
        self.store.save(content, step=step, info={"value": value}, score=score)

    def write(self, step, value=0.0, score=None):
        self.save(step, value, score)
        self.writer.push()

    def steps(self):
        found = {int(name[5:17]) for name in self.remote.list() if name.endswith("manifest.json")}
        return sorted(found)


@pytest.fixture
def sides(s3, tmp_path):
    return Sides(f"{s3}/run/checkpoints", tmp_path)


def value_of(checkpoint):
    return float(checkpoint.part("state")["value"][0])


def test_a_reader_gets_the_newest_and_the_best_and_nothing_else(sides, tmp_path):
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
        sides.write(step, step / 10, score)
    newest, skipped = sides.reader.fetch("newest", ours=False)
    assert (newest.step, value_of(newest), skipped) == (3, 0.3, [])
    assert [path.name for path in (tmp_path / "reader").iterdir()] == ["step_000000000003"]
    best, _ = sides.reader.fetch("best", ours=False)
    assert (best.step, value_of(best)) == (2, 0.2)


def test_what_the_store_prunes_is_pruned_there_and_the_best_stays(sides):
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.1), (4, None), (5, None)):
        sides.write(step, score=score)
    assert sides.steps() == [1, 4, 5]
    sides.write(6, score=1.0)
    sides.write(7)
    assert sides.steps() == [6, 7]
    assert not any("step_000000000001" in name for name in sides.remote.list())


def test_half_an_upload_is_passed_over_and_cleared_away(sides, tmp_path):
    sides.write(1, 0.1)
    sides.save(2, 0.2)
    half = tmp_path / "writer" / "step_000000000002"
    sides.remote.push({"step_000000000002/state.msgpack": half / "state.msgpack"})
    found, skipped = sides.reader.fetch("newest", ours=False)
    assert (found.step, skipped) == (1, [])
    sides.writer.push()
    assert sides.reader.fetch("newest", ours=False)[0].step == 2
    sides.remote.write("step_000000000009/state.msgpack", b"of a writer that was killed")
    sides.write(3)
    assert not any("step_000000000009" in name for name in sides.remote.list())


@pytest.mark.parametrize("damage", ["shorter", "other"])
def test_an_altered_file_is_found_by_its_checksum_and_an_older_one_taken(sides, damage):
    sides.write(1, 0.1)
    sides.write(2, 0.2)
    name = "step_000000000002/state.msgpack"
    data = sides.remote.read(name)
    sides.remote.write(name, data[:-1] if damage == "shorter" else data[:-1] + b"!")
    found, skipped = sides.reader.fetch("newest", ours=False)
    assert (found.step, value_of(found)) == (1, 0.1)
    assert len(skipped) == 1
    assert f"{sides.remote.uri}/step_000000000002/state.msgpack" in skipped[0]
    with pytest.raises(CheckpointError, match=r"state\.msgpack"):
        sides.reader.named("step_000000000002")


def test_a_manifest_that_was_altered_is_passed_over(sides):
    sides.write(1)
    sides.write(2)
    name = "step_000000000002/manifest.json"
    sides.remote.write(name, sides.remote.read(name).replace(b'"value": 0.0', b'"value": 1.0'))
    found, skipped = sides.reader.fetch("newest", ours=False)
    assert found.step == 1
    assert "was altered" in skipped[0]


def test_a_damaged_copy_is_fetched_again(sides, tmp_path):
    sides.write(1, 0.1)
    sides.reader.fetch("newest", ours=False)
    (tmp_path / "reader" / "step_000000000001" / "state.msgpack").write_bytes(b"rubbish")
    found, skipped = sides.reader.fetch("newest", ours=False)
    assert (value_of(found), skipped) == (0.1, [])


def test_a_copy_that_is_there_is_not_fetched_again(sides, server):
    sides.write(1)
    sides.reader.fetch("newest", ours=False)
    before = server.requests("GET", "state.msgpack")
    sides.reader.fetch("newest", ours=False)
    assert server.requests("GET", "state.msgpack") == before > 0


def test_another_save_of_the_same_step_replaces_the_first_and_one_is_always_there(sides):
    sides.write(1, 0.1)
    push, seen = sides.remote.push, []

    def push_and_look(files):
        size = push(files)
        seen.append(value_of(sides.reader.fetch("newest", ours=False)[0]))
        return size

    sides.remote.push = push_and_look
    sides.write(1, 0.7)
    assert seen == [0.1, 0.7]
    assert {name.partition("/")[0] for name in sides.remote.list()} == {"step_000000000001"}


def test_a_checkpoint_that_is_pruned_on_its_way_arrives_whole(sides, tmp_path):
    sides.store.keep = 1
    sides.save(1, 0.1)
    push = sides.remote.push

    def push_while_training_goes_on(files):
        if sides.store.newest().step == 1:
            sides.save(2, 0.2)
            assert not (tmp_path / "writer" / "step_000000000001").exists()
        size = push(files)
        if any(name.endswith("1/manifest.json") for name in files):
            seen.append(value_of(sides.reader.fetch("newest", ours=False)[0]))
        return size

    seen = []
    sides.remote.push = push_while_training_goes_on
    sides.writer.push()
    assert seen == [0.1]
    assert sides.steps() == [2]
    assert not list((tmp_path / "writer").glob(".push*"))


def test_the_manifest_comes_last_and_goes_first(sides, server):
    sides.store.keep = 1
    sides.write(1)
    sides.write(2)
    lines = [line for line in server.lines() if "/step_000000000001/" in line]
    written = [line for line in lines if '"PUT' in line and "msgpack" in line]
    removed = [line for line in lines if "DELETE" in line]
    last = [line for line in lines if '"PUT' in line and "manifest.json" in line]
    assert len(written) == 2
    assert lines.index(last[0]) > max(lines.index(line) for line in written)
    assert "manifest.json" in removed[0]


def test_scores_that_are_found_later_arrive(sides):
    sides.write(1, score=None)
    sides.write(2, score=0.2)
    sides.store.add_score(sides.store.load(sides.store.directory / "step_000000000001"), 0.8, {})
    assert sides.writer.has_news()
    sides.writer.push()
    assert not sides.writer.has_news()
    found, _ = sides.reader.fetch("best", ours=False)
    assert (found.step, found.score) == (1, 0.8)


def test_old_ones_that_were_left_out_are_not_brought_later(sides, tmp_path):
    for step in (1, 2):
        sides.save(step)
    other = RemoteCheckpoints(sides.remote, tmp_path / "writer")
    CheckpointStore(tmp_path / "far").save({"state": {}}, step=9, info={})
    RemoteCheckpoints(sides.remote, tmp_path / "far").push()
    other.push()
    assert sides.steps() == [9]


def test_a_store_of_workers_counts_what_is_there(s3, tmp_path):
    remote = Remote(f"{s3}/run/checkpoints")
    first, second = (RemoteStore(remote, tmp_path / name, 1) for name in ("a", "b"))
    assert first.newest() is None
    first.save({"state": {"x": 1}}, step=1, info={}, score=0.5)
    first.save({"state": {"x": 2}}, step=2, info={})
    assert second.newest().part("state") == {"x": 2}
    assert second.best().part("state") == {"x": 1}
    # The first machine is lost with a checkpoint that never arrived; the second goes on.
    CheckpointStore(tmp_path / "a", 1).save({"state": {"x": 3}}, step=3, info={})
    second.save({"state": {"x": 4}}, step=4, info={})
    again = RemoteStore(remote, tmp_path / "a", 1)
    assert again.newest().part("state") == {"x": 4}
    assert not (tmp_path / "a" / "step_000000000003").exists()


def test_a_held_checkpoint_gets_its_score_from_another_machine_and_is_let_go(s3, tmp_path):
    remote = Remote(f"{s3}/run/checkpoints")
    worker, driver = (RemoteStore(remote, tmp_path / name, 1) for name in ("a", "b"))
    for step in (1, 2, 3):
        worker.save({"state": {}}, step=step, info={}, held=True)
    assert [path.name[-1] for path in driver.held()] == ["3", "2", "1"]
    driver.add_score(driver.named("step_000000000002"), 0.7, {"evaluated": {"a/b": 1.0}})
    driver.release(driver.directory / "step_000000000001")
    assert [path.name[-1] for path in driver.held()] == ["3"]
    worker.save({"state": {}}, step=4, info={})
    names = {name.partition("/")[0][-1] for name in remote.list()}
    assert names == {"2", "3", "4"}
    assert driver.best().score == 0.7
    driver.release_all()
    driver.tidy()
    assert {name.partition("/")[0][-1] for name in remote.list()} == {"2", "4"}


def test_a_store_is_patient_with_a_storage_that_fails(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("farreach.storage.store.AGAIN_S", 0.01)
    remote = Remote(f"{s3}/run/checkpoints")
    store = RemoteStore(remote, tmp_path / "a", 1)
    push, faults = remote.push, [StorageError("the network went home.")] * 2

    def fail_twice(files):
        if faults:
            raise faults.pop()
        return push(files)

    remote.push = fail_twice
    store.save({"state": {}}, step=1, info={})
    assert json.loads(remote.read("step_000000000001/manifest.json"))["step"] == 1
    assert capsys.readouterr().err.count("Trying again") == 2
