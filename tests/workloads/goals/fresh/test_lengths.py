"""Lengths of ways along a small graph, worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from farreach_workloads.goals.folded import FoldedMetric, FoldedReachability
from farreach_workloads.goals.fresh.lengths import PathLengths

# A metric whose unit, the distance at which a state just counts as reached, is 2.
OFFSET = 2.0


def bundle(places, edges, directed=False, connectors=(), two_way=2):
    """Nodes at places in the plane, whose embedding is where they are."""
    count = len(places)
    linked = np.zeros((count, count), bool)
    for i, j in edges:
        linked[i, j] = True
        linked[j, i] |= not directed
    return SimpleNamespace(
        network=FoldedReachability([], FoldedMetric(OFFSET, two_way)),
        embeddings=np.array(places, np.float32),
        edges=linked,
        connectors=np.array(connectors, np.int64).reshape(-1, 2),
        directed=directed,
    )


def length(found, start, node, goal, goal_node, seen=None):
    start, goal, seen = (np.array([one], np.float32) for one in (start, goal, seen or goal))
    return float(found.lengths(start, np.array([node]), goal, np.array([goal_node]), seen)[0])


@pytest.fixture
def corner():
    """Nodes 0 (0, 0), 1 (4, 0), 2 (4, 4), 3 (0, 4) in a row: from 0 to 3 it is a detour."""
    return PathLengths(bundle([(0, 0), (4, 0), (4, 4), (0, 4)], [(0, 1), (1, 2), (2, 3)]))


def test_paths_are_as_long_as_their_edges_in_units(corner):
    expected = np.array([[0, 2, 4, 6], [2, 0, 2, 4], [4, 2, 0, 2], [6, 4, 2, 0]])
    np.testing.assert_allclose(corner.between, expected)


def test_a_state_joins_the_graph_where_the_way_is_shortest(corner):
    # At (3, 0), of node 0 by its annotation: over node 1 it is 0.5 + 4, over node 0 1.5 + 6.
    assert length(corner, (3, 0), 0, (0, 4), 3) == pytest.approx(0.5 + 4)
    # A neighbour may be no help: at (-1, 0), over node 0 it is 0.5 + 6, over 1 2.5 + 4.
    assert length(corner, (-1, 0), 0, (0, 4), 3) == pytest.approx(6.5)


def test_the_way_ends_at_the_goal_and_not_at_its_node(corner):
    assert length(corner, (0, 0), 0, (1, 4), 3) == pytest.approx(6 + 0.5)


def test_a_goal_within_reach_is_as_far_as_it_is_and_others_at_least_a_unit(corner):
    assert length(corner, (0, 0), 0, (1, 0.5), 0) == pytest.approx(0.75)
    # (0, 0) and (1, 1.5) are 1.25 units apart; over node 0 it is as far.
    assert length(corner, (0, 0), 0, (1, 1.5), 0) == pytest.approx(1.25)
    # The state's own node is the goal's, and both are near it, but not near each other.
    assert length(corner, (-1.2, 0), 0, (1.2, 0), 0) == pytest.approx(1.2)


def test_whether_a_goal_is_near_is_judged_by_what_is_seen_of_it(corner):
    # The goal lies two units away, and half a unit in what defines it.
    assert length(corner, (0, 0), 0, (1, 3), 0, seen=(1, 0)) == pytest.approx(0.5)
    # Further than a unit in what defines it: the way leads over its node, 0 + 1.5 units on.
    assert length(corner, (0, 0), 0, (3, 0), 0, seen=(2.2, 0)) == pytest.approx(1.5)


def test_connectors_count_as_edges_both_ways_in_an_undirected_graph():
    found = PathLengths(bundle([(0, 0), (4, 0), (8, 0)], [(0, 1)], connectors=[(1, 2)]))
    np.testing.assert_allclose(found.between[[0, 2], [2, 0]], [4, 4])


def test_a_directed_graph_has_ways_of_its_own_in_each_direction():
    # All dims count only where they grow, so the way back of an edge is free, but is no edge.
    found = PathLengths(
        bundle([(0, 0), (4, 0), (0, 4)], [(0, 1), (1, 2), (2, 0)], directed=True, two_way=0)
    )
    # 0 → 1 is 2 units, 1 → 2 is 2 (y grows by 4), 2 → 0 nothing.
    expected = [[0, 2, 4], [2, 0, 2], [0, 2, 0]]
    np.testing.assert_allclose(found.between, expected, atol=1e-5)


def test_many_neighbours_are_cut_to_the_nearest(corner):
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 9, (40, 2))
    found = PathLengths(bundle(places, [(0, j) for j in range(1, 40)]))
    # All ways lead over node 0. From a state at node 7, to the goal at node 9:
    apart = np.abs(places[:, None] - places[None]).sum(axis=2) / OFFSET
    expected = min(apart[7, 0], 99) + apart[0, 9]
    assert length(found, tuple(places[7]), 7, tuple(places[9]), 9) == pytest.approx(
        max(expected, 1), rel=1e-5
    )
