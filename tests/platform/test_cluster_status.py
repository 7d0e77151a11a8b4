import io
import socket
import time

import pytest
from rich.console import Console

from farreach.errors import ClusterError
from farreach.status import cluster, show


def text_of(status):
    console = Console(width=120, file=io.StringIO())
    console.print(show.view(status))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:6379", True),
        ("head.cluster-1:6379", True),
        ("[::1]:6379", True),
        ("http://127.0.0.1:8265", True),
        ("auto", True),
        ("latest", False),
        ("runs/walk_maze-1", False),
        ("s3://bucket/run", False),
    ],
)
def test_addresses_are_told_from_runs(text, expected):
    assert cluster.is_address(text) is expected


def test_actors_are_grouped_by_role_and_state():
    actors = [("rollout-0", "ALIVE", 0), ("rollout-12", "ALIVE", 2), ("rollout-3", "DEAD", 1)]
    assert cluster.grouped([*actors, ("Host", "ALIVE", 0)]) == (
        cluster.ActorGroup("Host", "ALIVE", 1, 0),
        cluster.ActorGroup("rollout", "ALIVE", 2, 2),
        cluster.ActorGroup("rollout", "DEAD", 1, 1),
    )


class Answers:
    """A dashboard that says what a test wants."""

    address = "http://head:8265"

    def __init__(self, answers):
        self.answers = answers

    def check(self):
        pass

    def get(self, path):
        return self.answers[path.partition("?")[0]]


def node(name, state="ALIVE", **more):
    raylet = {"state": state, "resourcesTotal": {"CPU": 4.0, "memory": 8e9}, **more}
    return {"hostname": name, "ip": "10.0.0.1", "cpu": 50.0, "raylet": raylet}


def test_a_dashboards_answers_become_a_status():
    actor = {"class_name": "Host", "repr_name": "learner", "state": "RESTARTING"}
    usage = {"CPU": [3.0, 8.0], "objectStoreMemory": [95.0, 100.0], "node:10.0.0.1": [0.0, 1.0]}
    job = {"submission_id": "maze-1", "status": "RUNNING", "start_time": 1_700_000_000_000}
    report = {"clusterStatus": {"loadMetricsReport": {"usage": usage}}}
    gone = node("c", "DEAD", stateMessage="drained")
    answers = {
        "/nodes": {"data": {"summary": [node("b"), node("a", isHeadNode=True), gone]}},
        "/api/v0/actors": {"data": {"result": {"result": [{**actor, "num_restarts": "2"}]}}},
        "/api/cluster_status": {"data": report},
        "/api/jobs/": [{**job, "entrypoint": "farreach train"}],
    }
    status = cluster.from_dashboard(Answers(answers))
    assert [one.host for one in status.nodes] == ["a", "b", "c"]
    assert status.resources == {"CPU": (3.0, 8.0), "object_store_memory": (95.0, 100.0)}
    assert status.actors == (cluster.ActorGroup("learner", "RESTARTING", 1, 2),)
    assert status.jobs == (cluster.Job("maze-1", "RUNNING", 1_700_000_000.0, "farreach train"),)
    assert [line.split()[0] for line in status.doctor] == ["1", "1", "the"]
    shown = text_of(status)
    for said in ("2 of 3 machines", "a 10.0.0.1 (head)", "drained", "maze-1", "RESTARTING"):
        assert said in shown


def test_ray_client_is_no_address_to_ask():
    with pytest.raises(ClusterError, match="Ask its head"):
        cluster.look("ray://head:10001")


def test_a_port_where_nobody_listens_is_named():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            cluster.look(f"127.0.0.1:{port}")


@pytest.mark.ray
def test_a_head_tells_its_machines_actors_and_that_no_dashboard_is_there(ray_local):
    class Host:
        def __repr__(self):
            return "rollout-5"

        def ready(self):
            return True

    actor = ray_local.remote(num_cpus=1)(Host).remote()
    assert ray_local.get(actor.ready.remote())
    time.sleep(1.0)
    status = cluster.look(ray_local.get_runtime_context().gcs_address)
    (machine,) = [one for one in status.nodes if one.state == "ALIVE"]
    assert machine.is_head
    assert status.resources["CPU"][1] == 4.0
    assert any(group.name == "rollout" and group.state == "ALIVE" for group in status.actors)
    assert status.jobs is None
    assert any("no dashboard answers" in line for line in status.doctor)
    assert "no dashboard answers" in text_of(status)
    ray_local.kill(actor)
