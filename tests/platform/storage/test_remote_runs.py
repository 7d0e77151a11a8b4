"""Runs at a URI: what is written comes there, and goes on from there on another machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach import afterwards, launch
from farreach.checkpoint import CheckpointStore
from farreach.cli import main as cli
from farreach.errors import FarreachError, RunDirectoryError, StorageError
from farreach.rundir import RunDirectory
from farreach.storage import lease, mirror
from farreach.storage.remote import Remote, cache, copy_of


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "count.yaml"
    path.write_text("workload: tests.platform.counting_workload\nname: count\n")
    return str(path)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Go to another machine, whose cache is empty."""
    count = iter(range(9))

    def go():
        monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / f"machine-{next(count)}"))

    return go


def names_of(folder):
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {file.as_posix() for file in files if not file.name.startswith(".")}


def steps_at(uri):
    names = Remote(uri).list("checkpoints")
    return sorted(int(name.split("/")[1][5:]) for name in names if name.endswith("manifest.json"))


def test_a_run_at_a_uri_has_what_a_run_in_a_folder_has(s3, config, tmp_path):
    launch.train(config, run_dir=f"{s3}/runs/first")
    launch.train(config, run_dir=tmp_path / "first")
    there = Remote(f"{s3}/runs/first")
    assert set(there.list()) == names_of(tmp_path / "first") | {"lease.json"}
    assert json.loads(there.read("result.json"))["count/steps"] == 3.0
    assert json.loads(there.read("lease.json"))["released"]
    events = [json.loads(line)["event"] for line in there.read("events.jsonl").splitlines()]
    assert events == ["started", "finished"]
    assert steps_at(f"{s3}/runs/first") == [1, 2, 3]  # the best of this workload is the first


def test_a_root_at_a_uri_gets_a_fresh_name_and_an_occupied_place_is_refused(s3, config):
    run = launch.train(config, root=f"{s3}/runs")
    assert run.place.startswith(f"{s3}/runs/count-")
    assert RunDirectory.is_there(run.place)
    assert not RunDirectory.is_there(f"{s3}/runs/other")
    with pytest.raises(RunDirectoryError, match="exists and is not empty"):
        launch.train(config, run_dir=run.place)


def test_a_place_where_a_killed_process_began_a_run_is_free(s3, config):
    Remote(f"{s3}/runs/begun").write("config.yaml", b"steps: 1\n")
    run = launch.train(config, run_dir=f"{s3}/runs/begun", go_on=True)
    assert RunDirectory.is_there(run.place)


def test_what_is_not_a_run_is_told_before_anything_starts(s3, config, monkeypatch):
    with pytest.raises(RunDirectoryError, match=f"there is no run at {s3}/none"):
        launch.resume(f"{s3}/none")
    with pytest.raises(StorageError, match="there is no bucket 'gone'"):
        launch.train(config, run_dir="s3://gone/runs/x")
    assert not list(cache().glob("runs/[!.]*"))


def test_another_machine_evaluates_and_draws_and_brings_what_it_made(s3, config, elsewhere):
    uri = f"{s3}/runs/first"
    launch.train(config, run_dir=uri)
    elsewhere()
    assert afterwards.evaluate(uri)["eval/step"] == 1.0
    assert afterwards.evaluate(uri, "newest")["eval/step"] == 3.0
    copies = sorted(path.name[-1] for path in copy_of(uri, "runs").glob("checkpoints/step_*"))
    assert copies == ["1", "3"]
    assert [path.name for path in afterwards.plot(uri)] == ["1.png"]
    assert Remote(uri).read("figures/1.png") == b""
    assert RunDirectory.open(uri).read_result()["count/steps"] == 3.0


def test_another_machine_trains_on_and_the_first_one_notices(s3, config, elsewhere, monkeypatch):
    uri, first = f"{s3}/runs/first", os.environ["FARREACH_CACHE"]
    launch.train(config, run_dir=uri)
    elsewhere()
    run = launch.resume(uri, ["steps=5"])
    assert [event["event"] for event in run.events()] == [
        *("started", "finished", "resumed", "finished")
    ]
    assert run.events()[2]["step"] == 3
    assert steps_at(uri) == [1, 3, 4, 5]  # 3 is the best that this machine has
    monkeypatch.setenv("FARREACH_CACHE", first)
    assert afterwards.evaluate(uri, "newest")["eval/step"] == 5.0
    assert RunDirectory.open(uri).read_result()["count/steps"] == 5.0
    launch.resume(uri, ["steps=6"])
    assert steps_at(uri) == [1, 5, 6]


def test_continue_begins_resumes_and_leaves_a_finished_run_alone(s3, config, capsys, elsewhere):
    uri = f"{s3}/runs/first"
    words = ["train", config, "--run-dir", uri, "--continue", "steps=2"]
    assert cli.main(words) == 0
    elsewhere()
    assert cli.main(words) == 0
    assert "is done already" in capsys.readouterr().out
    assert steps_at(uri) == [1, 2]
    assert cli.main([*words[:-1], "steps=3"]) == 0
    assert steps_at(uri)[-1] == 3


def test_a_done_run_that_trains_on_and_fails_is_not_done_for_another_machine(s3, config, elsewhere):
    uri = f"{s3}/runs/first"
    launch.train(config, ["steps=1"], run_dir=uri)
    assert Remote(uri).read("result.json") is not None
    with pytest.raises(FarreachError, match="one by nothing"):
        launch.resume(uri, ["steps=3", "mishap=bug"])
    assert Remote(uri).read("result.json") is None
    elsewhere()
    run = launch.train(config, ["steps=3"], run_dir=uri, go_on=True)
    assert run.read_result()["count/steps"] == 3.0


def started(config, uri, folder, *words):
    """A training in a process of its own, once it waits at step 2."""
    arguments = ["train", config, "--run-dir", uri, *words, "mishap=wait", "steps=4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "farreach", *arguments],
        env={**os.environ, "FARREACH_CACHE": str(folder), "PYTHONPATH": "platform:workloads:."},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.DEVNULL,
    )
    until(lambda: list(folder.glob("runs/*/waiting")), process)
    return process


def until(is_so, process=None):
    end = time.monotonic() + 90
    while not is_so():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_the_uri_with_an_empty_cache(
    s3, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(lease, "STALE_S", 3.0)
    uri = f"{s3}/runs/first"
    process = started(config, uri, tmp_path / "lost")
    until(lambda: steps_at(uri) == [1, 2], process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "lost")
    run = launch.train(config, ["mishap=''", "steps=4"], run_dir=uri, go_on=True)
    assert [event["step"] for event in run.events() if event["event"] == "resumed"] == [2]
    assert json.loads(Remote(uri).read("result.json"))["count/steps"] == 4.0
    assert steps_at(uri) == [1, 2, 3, 4]  # 2 is the best that this machine has


@pytest.mark.slow
def test_a_second_driver_is_refused_while_the_first_is_alive(s3, config, tmp_path, monkeypatch):
    uri = f"{s3}/runs/first"
    process = started(config, uri, tmp_path / "first")
    try:
        begun = time.monotonic()
        with pytest.raises(RunDirectoryError, match=f"in use: process {process.pid} on "):
            launch.resume(uri)
        assert time.monotonic() - begun < 45
        # On the machine of the driver its own lock tells, at once.
        monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "first"))
        with pytest.raises(RunDirectoryError, match="process of this machine is training in it"):
            launch.resume(uri)
        assert afterwards.evaluate(uri, "newest")["eval/step"] == 2.0
    finally:
        process.terminate()
    assert process.wait(60) == 75
    assert "stopped" in Remote(uri).read("events.jsonl").decode()


def test_a_storage_that_fails_at_the_end_loses_nothing(s3, config, monkeypatch, capsys, elsewhere):
    uri, here = f"{s3}/runs/first", os.environ["FARREACH_CACHE"]
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.0)
    push = Remote.push

    def fail(self, files):
        if "result.json" in files:
            raise StorageError("the network went home.")
        return push(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "push", fail)
        with pytest.raises(StorageError, match=r"on this machine `farreach resume s3://.*` brings"):
            launch.train(config, run_dir=uri)
    assert Remote(uri).read("result.json") is None
    assert RunDirectory(copy_of(uri, "runs")).read_result()["count/steps"] == 3.0
    launch.resume(uri)
    assert json.loads(Remote(uri).read("result.json"))["count/steps"] == 3.0
    assert os.environ["FARREACH_CACHE"] == here


def test_what_was_not_brought_is_put_aside_when_another_machine_has_gone_on(
    s3, config, monkeypatch, capsys, elsewhere
):
    uri, first = f"{s3}/runs/first", os.environ["FARREACH_CACHE"]
    launch.train(config, run_dir=uri)
    copy = copy_of(uri, "runs")
    state = json.loads((copy / ".mirror.json").read_text())
    assert state["clean"]
    (copy / ".mirror.json").write_text(json.dumps({**state, "clean": False}))  # as if killed
    CheckpointStore(copy / "checkpoints").save({"state": {"step": 9}}, step=9, info={})
    elsewhere()
    launch.resume(uri, ["steps=4"])
    monkeypatch.setenv("FARREACH_CACHE", first)
    assert afterwards.evaluate(uri, "newest")["eval/step"] == 4.0
    assert "had not brought is in" in capsys.readouterr().err
    [aside] = [path for path in copy.parent.iterdir() if path.name.startswith(f"{copy.name}.")]
    assert (aside / "checkpoints" / "step_000000000009").is_dir()


def test_the_copy_of_the_machine_that_wrote_last_may_be_ahead(s3, config):
    uri = f"{s3}/runs/first"
    launch.train(config, run_dir=uri)
    store = CheckpointStore(copy_of(uri, "runs") / "checkpoints")
    store.save({"state": {"step": 4}}, step=4, info={})
    run = launch.resume(uri, ["steps=5"])
    assert [event["step"] for event in run.events() if event["event"] == "resumed"] == [4]
    assert steps_at(uri) == [1, 4, 5]


@pytest.mark.slow
def test_an_old_lease_is_taken_over_and_its_owner_writes_no_more(s3, config, monkeypatch):
    monkeypatch.setattr(lease, "STALE_S", 2.0)
    monkeypatch.setattr(lease, "REFRESH_S", 3600.0)
    uri = f"{s3}/runs/first"
    launch.train(config, run_dir=uri)
    remote = Remote(uri)
    first = lease.Lease(remote)
    first.take()
    other = json.loads(remote.read("lease.json")) | {"host": "far-away"}
    remote.write("lease.json", json.dumps(other).encode())
    begun = time.monotonic()
    second = lease.Lease(remote)
    assert second.take() == first.token
    assert 0.5 < time.monotonic() - begun < 20
    monkeypatch.setattr(lease, "REFRESH_S", 0.05)
    third = lease.Lease(remote)
    second.release()
    assert third.take() == second.token
    other |= {"token": "another", "released": False}
    remote.write("lease.json", json.dumps(other).encode())
    until(lambda: third.lost_to is not None)
    assert "on far-away" in third.lost_to
    third.release()
    assert json.loads(remote.read("lease.json"))["token"] == "another"


def test_a_run_that_was_taken_over_ends_with_an_error(s3, config, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "REFRESH_S", 0.1)
    uri = f"{s3}/runs/first"
    launch.train(config, run_dir=uri)
    run, remote = RunDirectory.open(uri), Remote(uri)
    other = {**json.loads(remote.read("lease.json")), "token": "x", "host": "far-away", "pid": 7}

    def go_on_for_ever():
        (run.path / "late").write_text("x")
        remote.write("lease.json", json.dumps(other).encode())
        until(lambda: run.event("remark"))

    taken = "process 7 on far-away has taken the run over"
    with pytest.raises(StorageError, match=taken), run.lock():
        go_on_for_ever()
    assert json.loads(remote.read("lease.json"))["token"] == "x"


@pytest.mark.slow
def test_files_come_while_the_run_goes_on_and_go_when_they_are_removed(s3, config, monkeypatch):
    monkeypatch.setattr(mirror, "METRICS_EVERY_S", 3600.0)
    uri = f"{s3}/runs/first"
    launch.train(config, run_dir=uri)
    run, remote = RunDirectory.open(uri), Remote(uri)
    with run.lock():
        (run.path / "metrics.jsonl").write_text("1\n")
        until(lambda: "metrics.jsonl" in remote.list())
        (run.path / "metrics.jsonl").write_text("1\n2\n")
        run.event("remark", text="soon")
        until(lambda: b"soon" in remote.read("events.jsonl"))
        assert remote.read("metrics.jsonl") == b"1\n"
        # A checkpoint brings the metrics that belong to it along.
        CheckpointStore(run.checkpoints).save({"state": {}}, step=7, info={})
        until(lambda: 7 in steps_at(uri))
        assert remote.read("metrics.jsonl") == b"1\n2\n"
        run.result_path.unlink()
        until(lambda: "result.json" not in remote.list())
        (run.path / "features").mkdir()
        (run.path / "features" / "large.npz").write_bytes(b"x")
    assert "metrics.jsonl" in remote.list()
    assert "features/large.npz" not in remote.list()
