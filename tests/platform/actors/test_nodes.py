import time

import pytest

from farreach.actors import nodes
from farreach.actors.nodes import Lookout


@pytest.fixture
def cluster(monkeypatch):
    """Nodes that leave, as the test says: id → deadline."""
    leaving = {}
    monkeypatch.setattr(nodes, "leaving", lambda: dict(leaving))
    monkeypatch.setattr(nodes, "host_of", lambda node: f"host-{node}")
    return leaving


def look(lookout):
    lookout._looked_s = 0.0
    return lookout.news()


def test_a_notice_is_news_once_and_known_from_then_on(cluster):
    lookout = Lookout()
    assert look(lookout) == []
    cluster["a"] = time.time() + 30
    (notice,) = look(lookout)
    assert (notice.node, notice.host, notice.deadline) == ("a", "host-a", cluster["a"])
    cluster["b"] = None
    assert [notice.node for notice in look(lookout)] == ["b"]
    assert look(lookout) == []
    del cluster["a"]  # it is gone
    assert look(lookout) == []
    assert lookout.leaving.keys() == {"a", "b"}
    assert 0 <= lookout.notice_s("a") < 60
    assert lookout.notice_s("c") is None


def test_ray_is_asked_about_once_a_second(cluster):
    lookout = Lookout()
    look(lookout)
    cluster["a"] = None
    assert lookout.news() == []
    lookout._looked_s -= 1.0
    assert len(lookout.news()) == 1


@pytest.mark.ray
def test_what_is_asked_of_a_cluster_that_nothing_leaves(ray_local):
    (node,) = nodes.alive()
    assert nodes.leaving() == {}
    assert nodes.answers(node)
    assert not nodes.answers("f" * 56)
    assert "(" in nodes.host_of(node)
    assert nodes.host_of("f" * 56) == "f" * 56


def test_without_ray_nothing_leaves(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert nodes.leaving() == {}
