import pickle

import networkx as nx
import numpy as np
import pytest

from farreach import messages
from farreach_workloads.goals.bundle import Bundle


def test_an_annotation_is_valid_while_its_node_was_born_no_later(toy):
    bundle = toy.line(3, born=np.array([1, 4, 7]), version=7)
    slots = np.array([0, 1, 1, 2, 2, 3, -1])
    version = np.array([1, 3, 4, 6, 9, 9, 9])
    assert bundle.valid(slots, version).tolist() == [
        True, False, True, False, True, False, False,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def random_graph(toy):
    graph = nx.connected_watts_strogatz_graph(24, 4, 0.2, seed=0)
    return graph, toy.bundle(np.arange(24.0), graph.edges)


def test_a_path_walks_edges_and_is_as_short_as_networkx_finds(random_graph):
    graph, bundle = random_graph
    for i, lengths in nx.all_pairs_shortest_path_length(graph):
        for j, length in lengths.items():
            path = bundle.path(i, j)
            assert (path[0], path[-1]) == (i, j)
            assert len(path) - 1 == length == bundle.hops[i, j]
            assert nx.is_path(graph, path)


def test_a_subgoal_lies_so_many_hops_ahead_on_a_shortest_path_or_is_the_end(random_graph):
    graph, bundle = random_graph
    distance = dict(nx.all_pairs_shortest_path_length(graph))
    start, end = (a.ravel() for a in np.meshgrid(np.arange(24), np.arange(24)))
    ahead = np.arange(576) % 3 + 1
    found = bundle.guide("uniform").subgoal(start, end, ahead)
    assert found.shape == (576,)
    columns = (start.tolist(), end.tolist(), found.tolist(), ahead.tolist())
    for i, j, node, hops in zip(*columns, strict=True):
        steps = min(hops, distance[i][j])
        assert distance[i][node] == steps
        assert distance[node][j] == distance[i][j] - steps


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("uniform", [1, 1, 1, 1]),
        ("novelty", [1 / 1, 1 / 2, 1 / 5, 1 / 10]),
        ("chained", [1 / 1, 1 / 2, 1 / 5, 1 / 10]),
        # 3 neighbours and old, 2 and old, 2 and new, 1 and new
        ("frontier", [1 / 4, 1 / 3, 4 / 3, 4 / 2]),
    ],
)
def test_goal_weights_follow_their_formula(toy, mode, expected):
    bundle = toy.bundle(
        np.arange(4.0),
        [(0, 1), (0, 2), (0, 3), (1, 2)],
        version=5,
        born=np.array([1, 4, 5, 5]),
        passes=np.array([0.0, 1.0, 4.0, 9.0]),
    )
    np.testing.assert_allclose(bundle.goal_weights(mode), np.array(expected) / sum(expected))


def test_the_success_band_prefers_what_is_reached_sometimes(toy):
    attempts = np.array([0, 3, 4, 5, 5, 5, 100, 100, 4], float)
    successes = np.array([0, 1, 2, 1, 4, 5, 19, 81, 0], float)
    #           too few tries | half, 20 %, 80 % | 100 %, 19 %, 81 %, 0 %
    expected = np.array([1, 1, 10, 10, 10, 1, 1, 1, 1], float)
    bundle = toy.line(9, attempts=attempts, successes=successes)
    np.testing.assert_allclose(bundle.goal_weights("success_band"), expected / expected.sum())


def test_a_guide_has_the_nodes_the_ways_and_the_chances_in_a_fraction_of_the_bytes(random_graph):
    _, bundle = random_graph
    guide = bundle.guide("novelty")
    arrived = pickle.loads(pickle.dumps(guide))
    for each in (guide, arrived):
        np.testing.assert_array_equal(each.next_hop, bundle.next_hop)
        np.testing.assert_array_equal(each.chances, bundle.goal_weights("novelty"))
        np.testing.assert_array_equal(each.nodes, bundle.nodes)
        assert len(each) == len(bundle)
    assert len(guide.routes) < bundle.next_hop.nbytes / 2
    assert bundle.guide("novelty", plans=False).routes == b""


def test_another_guide_has_other_ways(toy):
    chain = toy.line(4).guide("uniform")
    star = toy.bundle(np.arange(4.0), [(0, 1), (0, 2), (0, 3)]).guide("uniform")
    assert [each.next_hop[1, 3] for each in (chain, star, chain)] == [2, 0, 2]


def test_a_bundle_survives_being_packed(toy):
    bundle = toy.bundle(
        np.arange(4.0), [(0, 1), (2, 3)], reach=2.5, version=3, added_at=np.arange(4)
    )
    again = Bundle.from_arrays(messages.unpack(messages.pack(bundle.arrays())))
    for name, value in bundle.arrays().items():
        if name == "network":
            continue
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
        assert np.asarray(getattr(again, name)).dtype == np.asarray(value).dtype
    assert len(again.connectors) == 1
    states = np.random.default_rng(0).normal(0, 3, (20, 2)).astype(np.float32)
    embeddings = again.network.embed(states)
    np.testing.assert_array_equal(again.nearest(embeddings), bundle.nearest(embeddings))
    # 2.5 - |0 - 1.5|
    np.testing.assert_allclose(
        again.network.logits(np.zeros((1, 2)), np.array([[1.5, 0.0]])), [1.0]
    )


def test_the_nearest_node_is_the_one_that_the_state_reaches_best(toy):
    network = toy.network(1.0, forwards=1.0, backwards=10.0)
    bundle = toy.bundle([0.0, 10.0], [(0, 1)], network=network)
    # From 4, node 10 is 6 forwards, node 0 is 4 backwards at ten times the cost.
    states = np.array([[4.0, 0.0], [0.1, 0.0]], np.float32)
    assert bundle.nearest(network.embed(states)).tolist() == [1, 0]
