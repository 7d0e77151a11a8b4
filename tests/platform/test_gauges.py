import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from farreach import gauges, vitals
from farreach.gauges import ABOUT, COUNTED, Gauges, exported_names, gauge_name
from farreach.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
OBSERVABILITY = ROOT / "cluster/observability"
DASHBOARD = json.loads((OBSERVABILITY / "grafana_dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


class Fake:
    """What ray.util.metrics would export."""

    def __init__(self, monkeypatch):
        self.values, self.tags = {}, {}
        fake = self

        class Metric:
            def __init__(self, name, description, tag_keys):
                self.name = name
                assert re.fullmatch(r"[a-z0-9_]+", name)
                assert tag_keys == ("run", "workload")

            def set_default_tags(self, tags):
                fake.tags[self.name] = tags
                return self

            def set(self, value):
                fake.values[self.name] = value

            def inc(self, value):
                fake.values[self.name] = fake.values.get(self.name, 0.0) + value

        monkeypatch.setattr("ray.util.metrics.Gauge", Metric)
        monkeypatch.setattr("ray.util.metrics.Counter", Metric)
        monkeypatch.setattr(gauges, "is_connected", lambda: True)


@pytest.fixture
def run(tmp_path):
    config = "workload: farreach_workloads.goals.online\nname: maze\n"
    return RunDirectory.create(tmp_path, "maze", config, [], seed=0, path=tmp_path / "maze")


def test_the_newest_values_are_exported_with_the_runs_name(run, monkeypatch):
    fake = Fake(monkeypatch)
    exporter = Gauges(run)
    exporter.export(100, {"evaluation/ndcg@10": 0.25, "learner/loss": 2.0})
    exporter.export(200, {"learner/loss": 1.5})
    assert fake.values["farreach_evaluation_ndcg_10"] == 0.25
    assert fake.values["farreach_learner_loss"] == 1.5
    assert fake.values["farreach_training_step"] == 200
    assert fake.tags["farreach_learner_loss"] == {"run": "maze", "workload": "goals.online"}


def test_what_is_no_number_keeps_the_last_value(run, monkeypatch):
    fake = Fake(monkeypatch)
    exporter = Gauges(run)
    exporter.export(1, {"learner/loss": 2.0})
    exporter.export(2, {"learner/loss": float("nan")})
    assert fake.values["farreach_learner_loss"] == 2.0


def test_counters_grow_and_a_recovery_takes_nothing_back(run, monkeypatch):
    fake = Fake(monkeypatch)
    exporter = Gauges(run)
    for steps in (1000, 3000, 2000, 2500):  # a part died, and a thousand steps are done again
        exporter.export(steps, {"training/env_steps": float(steps)})
    assert fake.values["farreach_env_steps"] == 3500


def test_deaths_and_restarts_are_counted_from_the_events(run, monkeypatch):
    fake = Fake(monkeypatch)
    exporter = Gauges(run)
    run.event("started")
    run.event("actors", pids={"learner": 10, "rollout-0": 11})
    exporter.export(1, {})
    assert "farreach_deaths" not in fake.values
    run.event("actor_died", role="rollout-0", cause="signal")
    run.event("actors", pids={"rollout-0": 12})
    exporter.export(2, {})
    assert fake.values["farreach_deaths"] == 1
    assert fake.values["farreach_restarts"] == 1
    run.event("actor_died", role="rollout-0", cause="signal")
    exporter.export(3, {})
    assert fake.values["farreach_deaths"] == 2


def test_without_ray_nothing_happens(run, monkeypatch):
    monkeypatch.setattr(gauges, "is_connected", lambda: False)
    Gauges(run).export(1, {"learner/loss": 1.0})


PROBE = """
import sys, time, urllib.request
from pathlib import Path
import ray
from farreach.metrics import MetricsWriter
from farreach.rundir import RunDirectory
from farreach.vitals import StoreWatch

run = RunDirectory(Path(sys.argv[1]))
port = int(sys.argv[2])
ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
    object_store_memory=100 * 2**20, _temp_dir=sys.argv[3], _metrics_export_port=port,
)
run.event("started")
run.event("actor_died", role="learner", cause="signal")
store = StoreWatch()
assert store.newest() == {}
store.wait()
print(store.newest())
with MetricsWriter(run) as metrics:
    metrics.scalars(640, {"learner/loss": 0.125, "training/updates": 640.0})
    text, end = "", time.monotonic() + 90
    while "ray_farreach_updates_total" not in text and time.monotonic() < end:
        time.sleep(1)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
print(text)
ray.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_finds_our_numbers_at_rays_metrics_port(run):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="fr", dir="/tmp")  # paths of sockets must be short
    roots = [str(ROOT / "platform"), str(ROOT / "workloads")]
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, str(run.path), str(port), folder],
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(roots)},
            capture_output=True,
            text=True,
            timeout=200,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("ray_farreach"):
            assert 'run="maze"' in line
            assert 'workload="goals.online"' in line
            found[line.partition("{")[0]] = float(line.rpartition(" ")[2])
    assert found["ray_farreach_learner_loss"] == 0.125
    assert found["ray_farreach_training_step"] == 640
    assert found["ray_farreach_updates_total"] == 640
    assert found["ray_farreach_deaths_total"] == 1
    assert "'ray/nodes': 1.0" in done.stdout
    assert "'ray/spilled_mb': 0.0" in done.stdout


def queries():
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_panels_of_the_dashboard_have_numbers_of_their_own_and_do_not_overlap():
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers)) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_has_what_grafana_10_imports():
    assert {"uid", "title", "schemaVersion", "templating", "time", "panels"} <= DASHBOARD.keys()
    assert DASHBOARD["schemaVersion"] >= 38
    assert len(DASHBOARD["uid"]) <= 40
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert {"defaults", "overrides"} == panel["fieldConfig"].keys()
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
    used = set(re.findall(r"\$(\w+)", " ".join(queries())))
    assert used - {"__rate_interval"} <= set(variables)


def test_every_query_names_a_metric_that_is_exported():
    named = set(re.findall(r"ray_\w+", " ".join(queries())))
    ours = {name for name in named if name.startswith("ray_farreach_")}
    assert ours <= exported_names()
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

    known = set(re.findall(r"ray_\w+", Path(default_dashboard_panels.__file__).read_text()))
    assert named - ours <= known
    assert len(ours) > 20


def test_every_metric_that_is_described_is_written_somewhere():
    code = "".join(
        path.read_text()
        for folder in ("platform/farreach", "workloads/farreach_workloads")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "gauges.py"
    )
    made = {
        "training/step",
        "training/env_steps",
        "throughput/env_steps_per_s",
        "throughput/tokens_per_s",
    }  # from parts
    missing = [name for name in {*ABOUT, *COUNTED} - made if f'"{name}"' not in code]
    assert missing == []


def test_gauges_have_names_that_prometheus_takes():
    assert gauge_name("evaluation/recall@100") == "farreach_evaluation_recall_100"


def test_prometheus_is_told_where_ray_lists_the_machines():
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    assert config.keys() == {"global", "scrape_configs"}
    (scrape,) = config["scrape_configs"]
    (files,) = scrape["file_sd_configs"]
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_a_process_without_ray_is_not_connected():
    code = "import sys; from farreach.vitals import *; print(is_connected(), 'ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]


def test_a_cluster_that_does_not_answer_is_no_news(monkeypatch):
    def fail():
        raise ConnectionError("gone")

    monkeypatch.setattr(vitals, "is_connected", lambda: True)
    monkeypatch.setattr(vitals, "ray_metrics", fail)
    store = vitals.StoreWatch()
    store.newest()
    store.wait()
    assert store.newest() == {}


def test_what_was_moved_to_disks_counts_from_the_first_look(monkeypatch):
    answers = iter([300.0, 450.0])
    monkeypatch.setattr(vitals, "is_connected", lambda: True)
    monkeypatch.setattr(vitals, "ray_metrics", lambda: {"ray/spilled_mb": next(answers)})
    store = vitals.StoreWatch()
    store.newest()
    store.wait()
    assert store.newest() == {"ray/spilled_mb": 0.0}
    store.wait()
    assert store.newest() == {"ray/spilled_mb": 150.0}
    store.wait()
