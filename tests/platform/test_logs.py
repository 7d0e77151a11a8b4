import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farreach import console, logs
from farreach.errors import ConfigError
from farreach.progress import Progress
from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def json_lines(monkeypatch, capsys):
    """stderr as objects, and what reads it."""
    monkeypatch.setenv("FARREACH_LOG", "json")

    def read():
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return read


def test_what_the_user_is_told_is_an_object_a_line(json_lines):
    console.warn("note      two\nlines")
    console.warn("error: no")
    first, second = json_lines()
    assert first["message"] == "note      two\nlines"
    assert (first["levelname"], second["levelname"]) == ("WARNING", "ERROR")
    assert first["role"] == "driver"
    assert first["process"] == os.getpid()


def test_events_of_the_run_are_lines_too(json_lines, tmp_path):
    run = RunDirectory.create(tmp_path, "maze", "", [], seed=0, path=tmp_path / "maze")
    run.event("actor_died", role="learner", cause="signal")
    (line,) = json_lines()
    assert (line["message"], line["cause"]) == ("actor_died", "signal")
    assert line["run"] == str(run.path)
    assert line["role"] == "learner"


def test_progress_has_its_numbers_beside_its_text(json_lines):
    progress = Progress("maze", 100, interval_s=0.0)
    progress.update(25, {"loss": 0.5})
    progress.close()
    line = json_lines()[0]
    assert (line["done"], line["share"], line["loss"]) == (25, 0.25, 0.5)


def test_text_stays_text(monkeypatch, capsys):
    monkeypatch.delenv("FARREACH_LOG", raising=False)
    console.warn("plain")
    console.record("event")
    assert capsys.readouterr().err == "plain\n"
    assert logs.ray_arguments() == {}


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv("FARREACH_LOG", "xml")
    with pytest.raises(ConfigError, match="FARREACH_LOG is 'xml'"):
        logs.ray_arguments()


def test_records_of_a_process_know_its_role(caplog):
    before = logging.getLogRecordFactory()
    try:
        logs.name_process("rollout-3")
        with caplog.at_level(logging.INFO):
            logging.getLogger("farreach").info("made")
        assert caplog.records[-1].role == "rollout-3"
    finally:
        logging.setLogRecordFactory(before)


PROBE = """
import sys, time
from pathlib import Path
from farreach import runtime
from farreach.actors.services import ActorService, fetch
from farreach.errors import DataError

class Fragile:
    def work(self):
        raise DataError("no data here.")

runtime.connect(1)
service = ActorService("rollout-3", Fragile, (), num_cpus=1)
service.wait_until_ready()
try:
    fetch(service.call("work"))
except DataError:
    pass
import ray
logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
text, end = "", time.monotonic() + 60
while "work failed" not in text and time.monotonic() < end:
    time.sleep(0.5)
    text = "".join(path.read_text() for path in logs.glob("worker-*.err"))
sys.stdout.write(text)
runtime.disconnect()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_logs_that_ray_keeps_of_an_actor_are_objects_with_its_role(tmp_path):
    roots = [str(ROOT / "platform"), str(ROOT / "workloads")]
    variables = {"FARREACH_LOG": "json", "PYTHONPATH": os.pathsep.join(roots)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**kept, **variables, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stderr.splitlines():
        assert json.loads(line)["role"] == "driver"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ours = {line["message"]: line for line in found if line.get("role") == "rollout-3"}
    assert {"made", "work failed"} <= set(ours)
    assert ours["made"]["actor_id"]
    assert "no data here." in ours["work failed"]["exc_text"]
