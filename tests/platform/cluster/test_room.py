"""Room on clusters that are only told of; `test_fake.py` has one that really grows."""

import pytest

from farreach.cluster import room
from farreach.cluster.demand import Demand
from farreach.errors import ClusterError

STATUS = """======== Autoscaler status: 2026-01-01 12:00:00.000000 ========
Node status
---------------------------------------------------------------
Active:
 (no active nodes)
Idle:
 1 head
Pending:
 541dc0b3-d759-43aa-977b-4eef67c67e40: rollout, 
 rollout, 1 launching
Recent failures:
 (no failures)

Resources
---------------------------------------------------------------
Total Usage:
 0.0/1.0 CPU
"""  # noqa: W291 (as Ray prints it)
ROLLOUTS = [Demand("rollout", 2, {"CPU": 1, "rollout": 1})]


@pytest.fixture
def cluster(monkeypatch):
    """What Ray says of a cluster; `ready` placement groups have a place."""

    class Cluster:
        def __init__(self):
            self.resources = {"CPU": 4.0}
            self.machines = [{"CPU": 2.0}, {"CPU": 2.0}]
            self.view = room.View(grows=False, status="")
            self.ready = True
            self.asked, self.removed = [], []

        def placement_group(self, bundles, strategy):
            self.asked.append((bundles, strategy))
            return Group(self, len(self.asked))

    class Group:
        def __init__(self, cluster, number):
            self.cluster, self.id = cluster, bytes([number])

        def wait(self, timeout_s):
            return self.cluster.ready

    made = Cluster()
    nodes = lambda: [{"Alive": True, "Resources": each} for each in made.machines]  # noqa: E731
    monkeypatch.setattr("ray.cluster_resources", lambda: made.resources)
    monkeypatch.setattr("ray.available_resources", lambda: made.resources)
    monkeypatch.setattr("ray.nodes", nodes)
    monkeypatch.setattr("ray.util.placement_group", made.placement_group)
    monkeypatch.setattr("ray.util.remove_placement_group", made.removed.append)
    monkeypatch.setattr(room, "look", lambda: made.view)
    return made


def test_a_run_that_asks_for_nothing_has_room(cluster):
    cluster.resources = {}
    room.check([])
    room.check([Demand("board", 1, {"CPU": 0})])
    assert cluster.asked == []


def test_a_cluster_that_does_not_grow_needs_enough_of_every_resource(cluster):
    with pytest.raises(ClusterError) as caught:
        room.check([Demand("learner", 3, {"CPU": 2, "GPU": 1})], ["runtime.workers"])
    assert str(caught.value) == (
        "the run asks for 6 CPUs and 3 GPUs and Ray has 4 and 0. Lower runtime.workers, or use a "
        "larger machine or cluster."
    )


def test_and_a_machine_that_is_large_enough(cluster):
    room.check([Demand("learner", 2, {"CPU": 2})])
    with pytest.raises(ClusterError, match=r"learner asks for 3 CPUs on one machine.*has 2 CPUs\."):
        room.check([Demand("learner", 1, {"CPU": 3})])


def test_a_role_that_can_do_with_fewer_may_have_them(cluster):
    room.check([Demand("worker", 99, {"CPU": 1}, least=4)])


def test_what_may_come_later_is_not_waited_for_but_must_be_able_to_come(cluster):
    late = [Demand("rollout", 5, {"CPU": 1}, later=4)]
    with pytest.raises(ClusterError, match="asks for 5 CPUs and Ray has 4"):
        room.check(late)
    cluster.view = room.View(grows=True, status=STATUS)
    room.check(late)
    assert cluster.asked == [([{"CPU": 1}], "PACK")]


def test_a_cluster_that_grows_is_asked_for_everything_at_once(cluster):
    cluster.view = room.View(grows=True, status=STATUS)
    workers = Demand("worker", 2, {"CPU": 4}, "PACK")
    together = Demand("learner", 2, {"CPU": 1}, "STRICT_PACK", later=1)
    room.check([*ROLLOUTS, workers, Demand("memory", 1, {"CPU": 0.2}), together])
    assert cluster.asked == [
        ([{"CPU": 1, "rollout": 1}, {"CPU": 1, "rollout": 1}, {"CPU": 0.2}], "PACK"),
        ([{"CPU": 4}, {"CPU": 4}], "PACK"),
        ([{"CPU": 1}], "STRICT_PACK"),
    ]
    assert len(cluster.removed) == 3


def test_a_run_that_waits_says_for_what_and_what_the_cluster_does(cluster, monkeypatch, capsys):
    monkeypatch.setattr(room, "POLL_S", 0.01)
    cluster.view, cluster.ready = room.View(grows=True, status=STATUS), False
    monkeypatch.setenv("FARREACH_WAIT_S", "0.2")
    with pytest.raises(ClusterError) as caught:
        room.check(ROLLOUTS, ["runtime.rollout_actors"])
    assert capsys.readouterr().out == (
        "waiting   for 2 rollout; the cluster: idle: 1 head; pending: rollout, rollout, "
        "1 launching\n"
    )
    text = str(caught.value)
    assert text.startswith(
        "after 0 s the cluster still has no room for 2 × rollout (1 CPU and 1 rollout each). Lower "
        "runtime.rollout_actors, let the cluster have more or larger machines"
    )
    assert "or wait longer (the run's start_timeout_s, or FARREACH_WAIT_S)" in text
    assert text.endswith(STATUS)
    assert len(cluster.removed) == 1


def test_a_setting_of_the_run_decides_how_long(cluster, monkeypatch):
    monkeypatch.setattr(room, "POLL_S", 0.01)
    monkeypatch.setenv("FARREACH_WAIT_S", "1e9")
    cluster.view, cluster.ready = room.View(grows=True, status=STATUS), False
    with pytest.raises(ClusterError, match="still has no room"):
        room.check(ROLLOUTS, wait_s=0.1)


def test_what_the_autoscaler_gives_up_for_good_is_not_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(room, "POLL_S", 0.01)
    monkeypatch.setattr(room, "HOPELESS_S", 0.1)
    cluster.ready = False
    cluster.view = room.View(grows=True, status=STATUS, hopeless=frozenset({"01"}))
    with pytest.raises(ClusterError, match="says that all machines it may start have no room"):
        room.check(ROLLOUTS)
    assert len(cluster.removed) == 1


def test_an_autoscaler_that_has_only_begun_is_given_some_seconds(cluster, monkeypatch):
    monkeypatch.setattr(room, "POLL_S", 0.01)
    views = [room.View(grows=False, status="", known=False)] * 3
    views.append(room.View(grows=True, status=STATUS))
    monkeypatch.setattr(room, "look", lambda: views.pop(0))
    room.check(ROLLOUTS)
    assert views == []
    assert len(cluster.asked) == 1


def test_a_time_that_is_none_is_an_error(monkeypatch):
    monkeypatch.setenv("FARREACH_WAIT_S", "soon")
    with pytest.raises(ClusterError, match="FARREACH_WAIT_S is 'soon'"):
        room.default_wait_s()
    monkeypatch.setenv("FARREACH_WAIT_S", "")
    assert room.default_wait_s() == 900
