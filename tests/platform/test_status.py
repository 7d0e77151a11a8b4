import io
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from rich.console import Console

from farreach.cli.main import main
from farreach.lines import NewLines
from farreach.metrics import MetricsWriter
from farreach.roster import Member, Roster, is_alive, is_held, is_here
from farreach.rundir import RunDirectory
from farreach.status import show
from farreach.status.run import RunFollower

HERE = socket.gethostname()
NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path):
    config = "workload: farreach_workloads.goals.online\nname: maze\n"
    return RunDirectory.create(tmp_path, "maze", config, [], seed=0, path=tmp_path / "maze")


def append(path, *records):
    with open(path, "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def text_of(status):
    console = Console(width=120, file=io.StringIO())
    console.print(show.view(status))
    return console.file.getvalue()


# A file that grows.


def test_lines_are_taken_once_and_a_torn_one_later(tmp_path):
    path = tmp_path / "lines"
    lines = NewLines(path)
    assert lines.take() == []
    path.write_text('{"a": 1}\n[2]\nno json\n{"b": 2')
    assert lines.take() == [{"a": 1}]
    assert lines.take() == []
    with open(path, "a") as file:
        file.write("}\n")
    assert lines.take() == [{"b": 2}]
    path.write_text('{"c": 3}\n')
    assert lines.take() == [{"c": 3}]


# Who takes part.


def test_members_appear_die_and_come_back():
    roster = Roster()
    roster.take({"event": "started", "time": 1.0, "pid": 5, "host": "node-a"})
    roster.take({"event": "actors", "time": 2.0, "pids": {"learner": 10, "rollout-0": 11}})
    roster.take({"event": "worker", "time": 2.0, "rank": 1, "pid": 20})
    roster.take({"event": "actor_died", "time": 3.0, "role": "rollout-0", "detail": "signal 9"})
    assert roster.members["rollout-0"].is_dead
    assert roster.members["rollout-0"].cause == "signal 9"
    nodes = {"rollout-0": "node-b (10.0.0.2)"}
    roster.take({"event": "actors", "time": 4.0, "pids": {"rollout-0": 12}, "nodes": nodes})
    back = Member("rollout-0", 12, "node-b (10.0.0.2)", 4.0, 1, False, "signal 9")
    assert roster.members["rollout-0"] == back
    assert (roster.deaths, roster.restarts) == (1, 1)
    assert list(roster.members) == ["driver", "learner", "rollout-0", "worker-1"]
    roster.take({"event": "resumed", "time": 9.0})
    assert (roster.members, roster.deaths) == ({}, 0)


def test_an_evaluator_that_dies_has_no_role_in_its_event():
    roster = Roster()
    roster.take({"event": "evaluator", "pid": 3})
    roster.take({"event": "evaluator_died", "cause": "gone"})
    assert roster.members["evaluator"].is_dead


def test_a_process_is_alive_if_it_is_here_and_old_enough():
    now = time.time()
    assert is_alive(Member("me", os.getpid(), HERE, now)) is True
    assert is_alive(Member("me", os.getpid(), f"{HERE} (10.0.0.1)", now)) is True
    assert is_alive(Member("another", os.getpid(), HERE, 1000.0)) is False
    assert is_alive(Member("far", os.getpid(), f"{HERE}-2", now)) is None
    assert is_alive(Member("dead", os.getpid(), HERE, now, is_dead=True)) is False
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_alive(Member("ended", ended.pid, HERE, now)) is False
    assert not is_here(None)


def test_the_lock_says_whether_a_process_trains_in_a_run(run):
    assert not is_held(run.path)
    with run.lock():
        assert is_held(run.path)
    assert not is_held(run.path)


# A run.


def record(step, ago_s, **values):
    return {
        "step": step,
        "time": NOW - ago_s,
        **{k.replace("__", "/"): v for k, v in values.items()},
    }


def follow(run, ago_s=600.0, **fields):
    """A run that was started some time ago."""
    started = {"event": "started", "time": NOW - ago_s, "pid": os.getpid(), "host": HERE, **fields}
    append(run.events_path, started)
    return RunFollower(run, clock=lambda: NOW)


def test_a_running_run_is_shown_with_its_speed_and_what_it_keeps(run):
    follower = follow(run)
    append(
        run.events_path,
        {"event": "actors", "time": NOW - 500, "pids": {"learner": 1}, "nodes": {"learner": "far"}},
        {"event": "checkpoint", "time": NOW - 30, "path": "step_000000000400", "env_steps": 400},
    )
    append(
        run.metrics_path,
        record(300, 60, training__share=0.3, throughput__env_steps_per_s=5.0),
        record(400, 40, evaluation__success_final=0.75),
        record(400, 39, evaluation__seconds=2.0),
        record(500, 20, training__share=0.5, busy__learner=0.8, learner__loss=0.25),
    )
    with run.lock():
        status = follower.look()
    assert (status.state, status.detail) == ("running", f"on {HERE}")
    assert status.workload == "goals.online"
    assert (status.step, status.share, status.begun_s) == (500, 0.5, 600.0)
    assert status.eta_s == pytest.approx(0.5 * 40 / 0.2)
    assert status.levels["throughput/env_steps_per_s"] == 5.0
    assert status.learning == {"learner/loss": 0.25}
    assert status.checkpoint.name == "step_000000000400"
    assert status.checkpoint.age_s == 30.0
    assert status.evaluation.step == 400
    assert status.evaluation.values == {"evaluation/success_final": 0.75, "evaluation/seconds": 2.0}
    learner = next(part for part in status.parts if part.role == "learner")
    assert (learner.state, learner.busy, learner.host) == ("unknown", 0.8, "far")
    assert status.doctor == ()
    shown = text_of(status)
    for said in ("50.0%", "step 500", "ETA 1:40", "learner", "80%", "success_final 0.75"):
        assert said in shown


def test_looking_again_reads_what_has_come_since(run):
    follower = follow(run)
    append(run.metrics_path, record(1, 50, training__share=0.1))
    assert follower.look().share == 0.1
    append(run.metrics_path, record(2, 10, training__share=0.2))
    assert follower.look().share == 0.2


def test_steps_that_are_done_again_do_not_count_towards_the_speed(run):
    follower = follow(run)
    append(run.metrics_path, record(1, 100, training__share=0.5))
    append(run.metrics_path, {"event": "resumed", "step": 0, "time": NOW - 50})
    append(run.metrics_path, record(1, 40, training__share=0.1))
    append(run.metrics_path, record(2, 30, training__share=0.2))
    with run.lock():
        assert follower.look().eta_s == pytest.approx(80.0)


def test_a_run_whose_driver_was_killed_is_told_from_one_that_ended(run):
    follower = follow(run, ago_s=7200.0)
    status = follower.look()
    assert status.state == "died"
    assert "2.0 hours ago" in status.doctor[0]
    assert f"farreach resume {run.path}" in status.doctor[0]
    append(run.events_path, {"event": "stopped", "time": NOW, "signal": "SIGTERM"})
    status = follower.look()
    assert (status.state, status.detail) == ("stopped", "SIGTERM")
    assert status.doctor == ()
    assert [part.state for part in status.parts] == ["ended"]


def test_a_run_of_another_machine_is_running_while_it_writes(run):
    follower = follow(run, host="another")
    append(run.metrics_path, record(1, 20, training__share=0.1))
    assert (follower.look().state, follower.look().detail) == ("running", "on another")


def test_a_failed_run_says_what_to_mend(run):
    follower = follow(run)
    append(run.events_path, {"event": "failed", "time": NOW, "error": "the disk is full."})
    status = follower.look()
    assert status.state == "failed"
    assert status.doctor[0].startswith("the disk is full. Once that is mended: farreach resume")


def test_what_is_wrong_is_named(run):
    follower = follow(run, ago_s=9000.0)
    append(run.events_path, {"event": "remark", "time": NOW - 8000, "text": "the loaders are slow"})
    times = [8900, 8800, 8700, 8600]
    checkpoints = [{"event": "checkpoint", "time": NOW - t, "path": "x"} for t in times]
    append(run.events_path, *checkpoints)
    append(run.events_path, {"event": "actors", "time": NOW - 900, "pids": {"memory": 7}})
    append(run.events_path, {"event": "actor_died", "time": NOW, "role": "memory", "cause": "oom"})
    append(run.metrics_path, record(1, 600, learner__critic_loss=None))
    with run.lock():
        said = follower.look().doctor
    assert said == (
        "memory is dead and nothing has taken its place yet: oom",
        "the loaders are slow",
        "no metrics for 10 minutes: something hangs; look at its process with py-spy dump, and at "
        "the logs with FARREACH_DEBUG=1",
        "the last checkpoint is 143 minutes old, and they usually come every 1.7: what comes after "
        "it would be lost",
        "learner/critic_loss is no number: training has diverged",
    )


def test_of_many_parts_those_in_trouble_are_shown(run):
    follower = follow(run)
    pids = {f"rollout-{i}": 1000 + i for i in range(100)}
    append(run.events_path, {"event": "actors", "time": NOW - 9, "pids": pids, "nodes": {}})
    append(run.events_path, {"event": "actor_died", "time": NOW - 5, "role": "rollout-77"})
    with run.lock():
        shown = text_of(follower.look())
    assert "rollout-77" in shown
    assert "… 77 more" in shown


def test_a_run_without_anything_yet_is_shown(run):
    shown = text_of(RunFollower(run, clock=lambda: NOW).look())
    assert "checkpoint  none yet" in shown


def test_what_a_metrics_writer_writes_is_understood(run):
    run.event("started", pid=os.getpid(), host=HERE)
    with run.lock(), MetricsWriter(run) as metrics:
        metrics.scalars(10, {"training/share": 0.25, "learner/loss": float("nan")})
        status = RunFollower(run).look()
    assert (status.state, status.share) == ("running", 0.25)
    assert any("learner/loss" in line for line in status.doctor)


def test_the_command_prints_once_and_json(run, capsys):
    run.event("started", pid=os.getpid(), host=HERE)
    run.event("finished")
    assert main(["status", str(run.path), "--once"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["status", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["share"]) == ("finished", 1.0)
    assert main(["status", str(run.path / "nothing")]) == 1
    assert "there is no run directory" in capsys.readouterr().err
