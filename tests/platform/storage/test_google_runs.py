"""Runs in Google's storage: the same code as for S3, with another library below."""

import json

import pytest

from farreach import afterwards, launch
from farreach.errors import RunDirectoryError
from farreach.rundir import RunDirectory
from farreach.storage.remote import Remote


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "count.yaml"
    path.write_text("workload: tests.platform.counting_workload\nname: count\n")
    return str(path)


def test_a_run_goes_on_and_is_evaluated_on_other_machines(google, config, tmp_path, monkeypatch):
    uri = google("runs/first")
    launch.train(config, run_dir=uri)
    with pytest.raises(RunDirectoryError, match="exists and is not empty"):
        launch.train(config, run_dir=uri)
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "second"))
    run = launch.resume(uri, ["steps=5"])
    assert [event["event"] for event in run.events()] == [
        *("started", "finished", "resumed", "finished")
    ]
    there = Remote(uri)
    assert json.loads(there.read("result.json"))["count/steps"] == 5.0
    assert json.loads(there.read("lease.json"))["released"]
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "third"))
    assert afterwards.evaluate(uri, "newest")["eval/step"] == 5.0
    assert [path.name for path in afterwards.plot(uri)] == ["1.png"]
    assert there.read("figures/1.png") == b""
    assert not RunDirectory.is_there(google("runs/second"))


def test_a_root_gets_fresh_names(google, config):
    run = launch.train(config, root=google("runs"))
    assert run.place.startswith("gs://anonymous@bucket/runs/count-")
    assert RunDirectory.is_there(run.place)
