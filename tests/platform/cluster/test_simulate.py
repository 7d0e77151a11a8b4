"""`farreach cluster simulate`: on pretended machines, and what it says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farreach.cli.main import main
from farreach.cluster import rehearsal
from farreach.cluster.demand import Demand
from farreach.cluster.fake import NodeType
from farreach.cluster.forecast import Forecast, forecast
from farreach.cluster.plan import Group, Plan
from farreach.cluster.simulate import Moment, Simulation, cluster_of, scale_of, scaled
from farreach.errors import ClusterError

ROOT = Path(__file__).resolve().parents[3]
PLAN = Plan(
    "",
    (
        Group("head", 1, 1, {"CPU": 0}, head=True),
        Group("rollout", 0, 32, {"CPU": 16, "rollout": 14, "memory": 3 * 2**30}, spot=True),
        Group("learner", 0, 2, {"CPU": 16, "GPU": 1, "learner": 1}),
    ),
    34,
)
LEARNER = Demand("learner", 1, {"CPU": 1, "learner": 1})
FILE = """
cluster_name: small
max_workers: 3
idle_timeout_minutes: 5
provider: {type: aws, region: us-west-2}
auth: {ssh_user: ubuntu}
available_node_types:
  head:
    resources: {CPU: 0}
    node_config: {InstanceType: m6i.2xlarge, ImageId: ami-1}
  rollout:
    min_workers: 0
    max_workers: 2
    resources: {CPU: 4, rollout: 2}
    node_config:
      InstanceType: c7i.4xlarge
      ImageId: ami-1
      InstanceMarketOptions: {MarketType: spot}
  learner:
    min_workers: 0
    max_workers: 1
    resources: {CPU: 8, GPU: 1, learner: 1}
    node_config: {InstanceType: g6.4xlarge, ImageId: ami-1}
head_node_type: head
head_start_ray_commands:
  - ray stop
  - >-
    RAY_AUTH_MODE=token ray start --head --port=6379
    --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
  - ray stop
  - RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379
file_mounts: {"~/.ray/auth_token": "~/.ray/auth_token"}
"""
RUN = [
    "goals/walk_maze_debug", "runtime.placement=actor", "runtime.rollout_actors=3",
    "runtime.resources={learner: {learner: 1}, rollout: {rollout: 1}}",
]  # fmt: skip


def rollouts(count):
    return Demand("rollout", count, {"CPU": 1, "rollout": 1}, "SPREAD")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def found(monkeypatch):
    """What the pretended cluster was asked, and a finding that takes its place."""
    calls = []
    finding = Simulation([], Forecast({"rollout": 2, "learner": 1}, {"rollout": 1}))
    finding.moments = [Moment(0.0, {}), Moment(8.25, {"rollout": 2, "learner": 1})]
    finding.placed = {"learner": {"learner": 1}, "rollout": {"rollout": 2}}
    finding.reasons = {"rollout": "there are no more"}
    finding.up_s, finding.down_s = 8.25, 6.5

    def simulate(plan, demands, **options):
        calls.append((plan, demands, options["version"]))
        finding.demands = demands
        options["tell"](finding.moments[1])
        return finding

    monkeypatch.setattr("farreach.cluster.simulate.simulate", simulate)
    return calls


def test_what_this_machine_bears_is_tried_out_as_it_is():
    demands = [LEARNER, rollouts(15)]
    assert scale_of(demands, forecast(PLAN, demands)) == 1
    assert scaled(PLAN, demands, 1) == (PLAN, demands)


def test_of_more_machines_and_processes_fewer_are_tried_out():
    demands = [LEARNER, rollouts(111)]  # 112 processes for the 32 that are borne
    expected = forecast(PLAN, demands)
    assert expected.nodes == {"rollout": 8, "learner": 1}  # for the 6 that are borne
    assert scale_of(demands, expected) == 4
    plan, fewer = scaled(PLAN, demands, 4)
    assert [group.most for group in plan.groups] == [1, 8, 1]
    assert plan.most_workers == 9
    assert [demand.count for demand in fewer] == [1, 28]


def test_pretended_machines_have_what_the_file_says_and_count_its_memory_apart():
    cluster = cluster_of(PLAN)
    assert cluster._types["rollout"] == NodeType(
        {"CPU": 16, "rollout": 14, "declared_memory_gib": 3.0}, 0, 32
    )
    assert set(cluster._types) == {"rollout", "learner"}
    assert cluster._head_resources == {"CPU": 0}
    assert cluster._most == 34


def test_a_rehearsal_needs_cpus_alone_and_few_machines():
    rehearsal.check(PLAN, [LEARNER, rollouts(3)])
    with pytest.raises(ClusterError, match="learner would train on GPUs, which are only pretended"):
        rehearsal.check(PLAN, [Demand("learner", 1, {"CPU": 1, "GPU": 1})])
    with pytest.raises(ClusterError, match="about 7 times as many"):
        rehearsal.check(PLAN, [rollouts(112)])


def test_a_rehearsal_notes_which_machines_come_and_go(monkeypatch):
    counts = iter([{}, {"rollout": 1}, {"rollout": 1}, {"rollout": 2}])
    last = {"rollout": 2}

    class Cluster:
        def counts(self):
            return next(counts, last)

    monkeypatch.setattr(rehearsal, "POLL_S", 0.01)
    moments, told = [], []
    with rehearsal._watched(Cluster(), moments, told.append):
        deadline = time.monotonic() + 30
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [moment.nodes for moment in moments] == [{}, {"rollout": 1}, {"rollout": 2}]
    assert told == moments[1:]


def test_the_command_asks_for_what_the_workload_demands_of_the_machines_of_the_file(
    file, found, capsys
):
    assert main(["cluster", "simulate", str(file), "--config", *RUN, "--autoscaler", "1"]) == 0
    ((plan, demands, version),) = found
    assert version == 1
    assert [(group.name, group.most) for group in plan.groups] == [
        ("head", 1), ("rollout", 2), ("learner", 1),
    ]  # fmt: skip
    assert demands[0] == Demand("learner", 1, {"CPU": 1, "learner": 1})
    assert demands[-1] == Demand("rollout", 3, {"CPU": 0.5, "rollout": 1}, "SPREAD")
    printed = capsys.readouterr()
    assert printed.err == "   8.2 s  2 rollout, 1 learner\n"
    lines = printed.out.splitlines()
    assert lines[0] == f"file      {file}: a file of Ray's launcher, for aws"
    assert lines[1] == "asks      learner: 1 CPU and 1 learner"
    assert lines[5] == "asks      3 × rollout: 0.5 CPUs and 1 rollout each, SPREAD"
    assert lines[6:] == [
        "machines  2 rollout, 1 learner",
        "placed    learner: 1 on learner",
        "placed    rollout: 2 on rollout (spot)",
        "left      1 × rollout have no place: there are no more",
        "up        all machines were there after 8.2 s; a cloud takes minutes",
        "down      all were removed 6.5 s after the end; idle for 6 s here, by the file: "
        "rollout 300 s, learner 300 s",
    ]


@pytest.mark.parametrize(
    ("prices", "line"),
    [
        # Two machines of 4 CPUs and one of 8, which has a GPU.
        (["--core-hour", "0.05"], "0.80 an hour: 16 CPUs at 0.05, without 1 GPU and the head"),
        (
            ["--core-hour", "0.05", "--gpu-hour", "1.5"],
            "2.30 an hour: 16 CPUs at 0.05 and 1 GPU at 1.5, without the head",
        ),
    ],
)
def test_with_prices_it_says_what_the_machines_cost(prices, line, file, found, capsys):
    assert main(["cluster", "simulate", str(file), "--config", *RUN, *prices]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[6:8] == ["machines  2 rollout, 1 learner", f"cost      {line}"]
    assert main(["cluster", "simulate", str(file), "--config", *RUN, *prices, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cost_per_hour"] == pytest.approx(float(line.split()[0]))


def test_a_price_is_a_number(file, capsys):
    words = ["cluster", "simulate", str(file), "--config", *RUN, "--core-hour", "-1"]
    assert main(words) == 2
    assert "should be 0 or more (got '-1')" in capsys.readouterr().err


def test_with_json_it_says_nothing_else(file, found, capsys):
    assert main(["cluster", "simulate", str(file), "--config", *RUN, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["autoscaler"] == 2
    assert told["forecast"] == {"nodes": {"rollout": 2, "learner": 1}, "unplaced": {"rollout": 1}}
    assert told["moments"][1] == {"seconds": 8.25, "nodes": {"rollout": 2, "learner": 1}}
    assert told["demands"][-1]["role"] == "rollout"
    assert told["idle_s_by_file"] == {"rollout": 300, "learner": 300}
    assert told["cost_per_hour"] is None


def test_a_run_without_ray_asks_for_nothing(file, capsys):
    assert main(["cluster", "simulate", str(file), "--config", "goals/walk_maze_debug"]) == 2
    assert "trains in one process and asks a cluster for nothing" in capsys.readouterr().err


def test_a_demand_that_no_machine_meets_is_named_before_anything_is_started(file, capsys):
    words = ["cluster", "simulate", str(file), "--config", *RUN, "runtime.cpus.learner=12"]
    assert main(words) == 1
    assert (
        "error: learner asks for 12 CPUs and 1 learner on one machine, and no kind of machine has "
        "that: the nearest has 8 CPUs and 1 learner."
    ) in capsys.readouterr().err


def test_a_file_with_mistakes_is_refused(file, capsys):
    file.write_text(FILE.replace("max_workers: 2", "max_worker: 2"))
    assert main(["cluster", "simulate", str(file), "--config", *RUN]) == 2
    assert "max_worker" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_version_2_starts_what_the_forecast_says_and_leaves_the_rest_without_a_place(
    file,
):
    """Five rollouts fill two machines of two, and one is left; the learner has its own machine."""
    roots = [str(ROOT / folder) for folder in ("platform", "workloads")]
    words = [*RUN, "runtime.rollout_actors=5", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "farreach", "cluster", "simulate", file, "--config", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["forecast"] == {"nodes": {"rollout": 2, "learner": 1}, "unplaced": {"rollout": 1}}
    assert told["moments"][0]["nodes"] == {}
    assert told["moments"][-1]["nodes"] == {"rollout": 2, "learner": 1}
    assert told["placed"]["rollout"] == {"rollout": 4}
    assert told["placed"]["learner"] == {"learner": 1}
    assert sum(told["placed"]["memory"].values()) == 1
    assert told["unplaced"] == {"rollout": 1}
    assert told["reasons"]["rollout"].startswith("each has room on rollout (at most 2)")
    assert told["up_s"] > 0
    assert told["down_s"] > 0
