import os
import signal
import threading
import types

import pytest

from farreach.cluster import jobs
from farreach.cluster.dashboard import LostError
from farreach.cluster.jobs import Job, Order, entry_point, exit_code, follow, submit
from farreach.errors import ClusterError


class Cluster:
    """Takes jobs and says what the test tells it to, as dashboard and as Ray's client."""

    address = "http://head:8265"

    def __init__(self, known=(), infos=(), logs=()):
        self.known, self.infos, self.logs = list(known), list(infos), list(logs)
        self.refusals, self.taken, self.stops = [], [], 0

    def job_ids(self):
        return self.known

    def submit_job(self, **order):
        if self.refusals:
            raise self.refusals.pop(0)
        self.taken.append(order)

    def job(self, submission_id):
        assert submission_id == "maze-1"
        info = self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]
        if isinstance(info, Exception):
            raise info
        return info

    def stop(self, submission_id):
        self.stops += 1
        return self.stops > 1

    async def tail_job_logs(self, submission_id):
        for text in self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]:
            if text is None:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text


@pytest.fixture
def use(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_S", 0.02)

    def use(cluster):
        monkeypatch.setattr(jobs, "_client", lambda _: cluster)
        return cluster

    return use


RUNNING, DONE = {"status": "RUNNING"}, {"status": "SUCCEEDED", "driver_exit_code": 0}
STOPPED = {"status": "STOPPED", "driver_exit_code": None}
JOB = Job("maze-1", "/runs/maze")


def test_a_job_has_the_next_free_number_of_its_name(use):
    cluster = use(Cluster(known=["maze-2", "maze-10", "maze-x-30", "other-40", "raysubmit_1"]))
    job = submit(cluster, Order("maze", {}, run_dir="s3://bucket/runs//maze"))
    assert job == Job("maze-11", "s3://bucket/runs//maze")
    [taken] = cluster.taken
    assert taken["metadata"] == {"run": "s3://bucket/runs//maze"}
    assert "--run-dir s3://bucket/runs//maze --continue" in taken["entrypoint"]


def test_a_run_without_a_directory_gets_one_below_the_root(use):
    job = submit(use(Cluster()), Order("my maze", {}, root="/shared/"))
    assert job.submission_id == "my-maze-1"
    assert job.run_dir.startswith("/shared/runs/my-maze-1-2")


def test_somebody_else_may_take_the_number_and_the_agent_may_be_late(use):
    cluster = use(Cluster())
    cluster.refusals = [
        RuntimeError("status code 400: Job with submission_id maze-1 already exists. Please use"),
        RuntimeError("status code 500: No available agent to submit job, please try again later."),
    ]
    assert submit(cluster, Order("maze", {}, run_dir="/r")).submission_id == "maze-2"


def test_a_refusal_is_one_line(use, monkeypatch):
    cluster = use(Cluster())
    cluster.refusals = [
        RuntimeError("Request failed: Traceback\n  ...\nValueError: no such field\n")
    ]
    with pytest.raises(ClusterError, match=r"does not take the job: ValueError: no such field\."):
        submit(cluster, Order("maze", {}))
    monkeypatch.setattr(jobs, "AGENT_TIMEOUT_S", 0.0)
    cluster.refusals = [RuntimeError("No available agent to submit job.")]
    with pytest.raises(ClusterError, match="--dashboard-agent-listen-port of its own"):
        submit(cluster, Order("maze", {}))


def test_the_home_of_the_cluster_is_left_to_its_shell():
    command = "python -m farreach train env:FARREACH_CONFIG --run-dir"
    assert entry_point("~/my runs/a") == f"{command} ~/'my runs/a' --continue"
    assert entry_point("/a$b") == f"{command} '/a$b' --continue"


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 75, 75),
        ("FAILED", 130, 130),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 75),
    ],
)
def test_exit_codes_are_those_of_the_training(status, driver, code):
    assert exit_code({"status": status, "driver_exit_code": driver}) == code


def test_a_log_that_breaks_off_goes_on_where_it_was(use, capsys):
    logs = [["one\n", "two\n", None], ["one\ntw", "o\nthree\n"], ["one\ntwo\nthree\nfour\n"]]
    infos = [RUNNING, LostError("busy"), RUNNING, RUNNING, RUNNING, DONE]
    assert follow(use(Cluster(infos=infos, logs=logs)), JOB) == DONE
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


def test_a_job_that_waits_says_so_once(use, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "PENDING_SAID_S", 0.0)
    pending = {"status": "PENDING", "message": "Job has not started yet."}
    follow(use(Cluster(infos=[pending, pending, pending, DONE], logs=[[]])), JOB)
    assert capsys.readouterr().err == "waiting   Job has not started yet.\n"


def test_a_cluster_that_is_gone_is_given_up(use, monkeypatch):
    monkeypatch.setattr(jobs, "LOST_TIMEOUT_S", 0.1)
    cluster = use(Cluster(infos=[RUNNING, LostError("nobody answers.")], logs=[[None]]))
    with pytest.raises(ClusterError, match=r"nobody answers\. Nobody has .*maze-1 may go on\."):
        follow(cluster, JOB)


def interrupt_when(condition):
    """Send this process a SIGINT as soon as the condition holds."""

    def wait():
        while not condition():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_ctrl_c_asks_until_somebody_is_there_to_stop_the_job(use, capsys):
    cluster = use(Cluster(infos=[RUNNING], logs=[["training\n"]]))
    before = signal.getsignal(signal.SIGINT)
    asked = types.SimpleNamespace(times=0)

    def job(_):
        asked.times += 1
        return STOPPED if cluster.stops == 2 else RUNNING

    cluster.job = job
    interrupt_when(lambda: asked.times > 0)
    assert follow(cluster, JOB) == STOPPED
    assert cluster.stops == 2
    assert "stopping maze-1 after a last checkpoint; Ctrl-C again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_leaves_the_job_alone(use):
    cluster = use(Cluster(infos=[RUNNING], logs=[[]]))
    asked = types.SimpleNamespace(times=0)

    def job(_):
        asked.times += 1
        return RUNNING

    cluster.job = job
    interrupt_when(lambda: asked.times > 0)
    interrupt_when(lambda: cluster.stops > 1)
    with pytest.raises(KeyboardInterrupt):
        follow(cluster, JOB)
