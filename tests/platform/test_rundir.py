import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from farreach import rundir
from farreach.disk import atomic_write
from farreach.errors import RunDirectoryError
from farreach.rundir import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path, "maze", "seed: 3\n", ["farreach", "train"], seed=3)


def test_a_new_run_is_named_by_config_date_and_four_hex_digits(run):
    assert re.fullmatch(r"maze-\d{8}-\d{6}-[0-9a-f]{4}", run.path.name)
    assert run.config_path.read_text() == "seed: 3\n"
    assert run.checkpoints.is_dir()
    assert run.figures.is_dir()
    assert run.tensorboard.is_dir()


def test_the_manifest_says_how_the_run_was_started(run):
    manifest = run.manifest()
    assert manifest["command"] == ["farreach", "train"]
    assert manifest["seed"] == 3
    assert manifest["parent"] is None
    assert manifest["host"]["cores"] == os.cpu_count()
    assert manifest["host"]["memory_bytes"] > 2**27
    assert set(manifest["versions"]) == {
        *("farreach", "python", "ray", "torch", "numpy", "gymnasium", "mujoco", "timm"),
        *("pyarrow", "safetensors", "faiss-cpu", "bm25s", "tokenizers"),
    }
    assert manifest["versions"]["numpy"] == np.__version__


def test_a_name_that_cannot_name_a_folder_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"run name '\.\./x' cannot name a folder"):
        RunDirectory.create(tmp_path, "../x", "", [], seed=0)


def test_the_users_own_directory_is_taken_if_it_is_empty(tmp_path):
    own = tmp_path / "deep" / "own"
    assert RunDirectory.create(tmp_path, "maze", "", [], seed=0, path=own).path == own
    with pytest.raises(RunDirectoryError, match=f"not empty. `farreach resume {own}`"):
        RunDirectory.create(tmp_path, "maze", "", [], seed=0, path=own)


@pytest.mark.parametrize("moment", [".probe.7", "figures", "tensorboard", "config.yaml"])
def test_what_a_killed_process_left_of_a_new_run_is_no_obstacle(tmp_path, moment):
    path = tmp_path / "own"
    path.mkdir()
    for name in ("figures", "checkpoints", "tensorboard", "config.yaml", ".manifest.json.7.tmp"):
        if moment.startswith("."):
            (path / moment).touch()
            break
        (path / name).touch() if "." in name else (path / name).mkdir()
        if name == moment:
            break
    made = RunDirectory.create(tmp_path, "maze", "seed: 4\n", [], seed=4, path=path)
    assert made.config_path.read_text() == "seed: 4\n"
    assert made.is_run()


@pytest.mark.parametrize("mine", ["config.yaml", "checkpoints/step_000000000001", "notes.txt"])
def test_whatever_a_user_may_have_put_there_is_one(tmp_path, mine):
    file = tmp_path / "own" / mine
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not empty"):
        RunDirectory.create(tmp_path, "maze", "seed: 4\n", [], seed=4, path=tmp_path / "own")
    assert file.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (None, tmp_path / "file" / "run"):
        with pytest.raises(RunDirectoryError, match=r"cannot write .*Not a directory"):
            RunDirectory.create(tmp_path / "file", "maze", "", [], seed=0, path=path)


def test_a_nearly_full_disk_is_refused_before_anything_starts(tmp_path, monkeypatch):
    disk = SimpleNamespace(f_bavail=10 * 2**20 // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    with pytest.raises(RunDirectoryError, match=r"only 10 MiB are free .* needs 200 MiB"):
        RunDirectory.create(tmp_path, "maze", "", [], seed=0)


def test_opening_finds_what_was_created(run):
    assert RunDirectory.open(run.path).path == run.path
    assert RunDirectory.open(str(run.path)).config_path == run.config_path


def test_opening_a_missing_run_names_the_nearest_one(run):
    wrong = run.path.with_name(run.path.name[:-1] + "x")
    with pytest.raises(RunDirectoryError, match=f"no run directory .*'{run.path.name}'"):
        RunDirectory.open(wrong)


def test_a_foreign_folder_is_not_a_run(tmp_path):
    for manifest in ("{}", "[1]", '{"versions": 3}', "{", '{"versions": {"other": "1"}}'):
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(RunDirectoryError, match="is not a run directory"):
            RunDirectory.open(tmp_path)


def test_latest_is_the_run_that_was_created_last(tmp_path):
    with pytest.raises(RunDirectoryError, match="there is no run under"):
        RunDirectory.open("latest", tmp_path)
    RunDirectory.create(tmp_path, "zzz", "", [], seed=0)
    newest = RunDirectory.create(tmp_path, "aaa", "", [], seed=0)
    (tmp_path / "notes").mkdir()
    assert RunDirectory.open("latest", tmp_path).path == newest.path


def test_events_are_lines_of_strict_json(run):
    run.event("checkpoint", step=np.int64(4), score=math.nan, path=run.path)
    line = json.loads(run.events_path.read_text())
    assert line.pop("time") > 1.6e9
    assert line == {"event": "checkpoint", "step": 4, "score": None, "path": str(run.path)}


def test_an_event_after_a_torn_line_stands_on_its_own_line(run):
    run.event("started")
    with open(run.events_path, "a") as file:
        file.write('{"event": "chec')
    run.event("resumed")
    lines = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "resumed"]


def test_events_are_read_without_a_torn_last_line(run):
    assert run.events() == []
    run.event("started")
    with open(run.events_path, "a") as file:
        file.write('{"event": "chec')
    assert [event["event"] for event in run.events()] == ["started"]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"event": "chec',
        b"\0\0\0\0",
        b'{"event": "re{"event": "stopped"}',
        b"7",
        b"",
        b'{"a": "\xff',
    ],
)
def test_a_damaged_event_is_left_out_and_named_once(run, capsys, damage):
    run.event("started")
    with open(run.events_path, "ab") as file:
        file.write(damage + b"\n")
    run.event("resumed")
    for _ in range(2):
        assert [event["event"] for event in run.events()] == ["started", "resumed"]
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"skipped   {run.events_path}, line 2")


@pytest.mark.parametrize(
    ("before", "after"),
    [("a\nb", "a\n"), ("a\nb\n", "a\nb\n"), ("b", ""), ("", ""), ("a\n" + "b" * 200_000, "a\n")],
)
def test_only_what_follows_the_last_newline_is_cut(tmp_path, before, after):
    (tmp_path / "lines").write_text(before)
    rundir.cut_torn_line(tmp_path / "lines")
    assert (tmp_path / "lines").read_text() == after


def test_the_result_is_one_flat_object(run):
    metrics = {"eval/success": np.float32(0.5), "a/b": math.nan}
    run.write_result(metrics, seed=3, wall_time_s=1.25, versions={"ray": "2"})
    expected = {
        "a/b": None,
        "eval/success": 0.5,
        "seed": 3,
        "wall_time_s": 1.25,
        "versions": {"ray": "2"},
    }
    assert run.read_result() == expected
    assert json.loads(run.result_path.read_text()) == expected


def test_an_evaluation_does_not_take_the_place_of_one_with_other_settings(run):
    first = run.write_evaluation("search-7", {"x": 1, "settings": {"path": "a"}})
    second = run.write_evaluation("search-7", {"x": 2, "settings": {"path": "b"}})
    again = run.write_evaluation("search-7", {"x": 3, "settings": {"path": "b"}})
    assert first.name == "search-7.json"
    assert re.fullmatch(r"search-7-[0-9a-f]{8}\.json", second.name)
    assert again == second
    assert [json.loads(file.read_text())["x"] for file in (first, second)] == [1, 3]
    assert run.write_evaluation("search-7", {"x": 4, "settings": {"path": "a"}}) == first


def test_a_run_without_result_says_how_to_go_on(run):
    with pytest.raises(RunDirectoryError, match="farreach resume"):
        run.read_result()


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        atomic_write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_cannot_write_one_run(run):
    code = (
        "import sys; from farreach.rundir import RunDirectory\n"
        "with RunDirectory.open(sys.argv[1]).lock(): pass"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(run.path)]
    with run.lock():
        other = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert "is in use: another farreach process" in other.stderr
    assert subprocess.run(command, env=environment).returncode == 0
