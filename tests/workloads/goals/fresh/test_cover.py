"""Memory, nearest nodes and graph of a data set, against what is worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach.errors import DataError
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.fresh.config import FreshRunConfig
from farreach_workloads.goals.fresh.cover import (
    build_graph,
    build_memory,
    graph_arrays,
    graph_from_arrays,
    nearest_of_rows,
    transitions,
)


@pytest.fixture
def on_a_line(toy, tmp_path):
    """A data set of walks on the x axis, the toy's network, and a config to match."""

    def make(walks, forwards=1.0, backwards=1.0, **sections):
        columns = {
            "observation": np.concatenate([toy.points(walk) for walk in walks]),
            "action": np.zeros((sum(map(len, walks)), 2), np.float32),
        }
        record = write_shard(
            tmp_path / "shard-00000.arrow", columns, [len(walk) for walk in walks], 0, {}
        )
        write_index(tmp_path, "line", [record])
        directed = forwards != backwards
        config = FreshRunConfig(
            features={"angles": "raw", "scale": "none"},
            **{
                "reachability": {"directed": directed, "embedding": 2},
                "memory": {"keep_frac": 1.0, "capacity": 20},
                "graph": {"edge_frac": 1.0, "min_edge_probability": 0.0},
            }
            | sections,
        )
        network = toy.network(1.0, forwards, backwards)
        weights = toy.weights(network)
        store = EpisodeStore.open(tmp_path)
        memory = build_memory(store, config, toy.Plane.spec, weights)
        features = Features(
            toy.Plane.spec, config.features, config.reachability, weights.scale, weights.unit
        )
        embeddings = network.embed(features.reachability(memory.nodes))
        outward, inward = nearest_of_rows(store, features, network, embeddings, 0, store.rows)
        graph = build_graph(
            store,
            config,
            outward,
            inward,
            lambda i, j: network.all_pairs(embeddings[i], embeddings[j]),
            len(memory.nodes),
        )
        return SimpleNamespace(
            store=store, memory=memory, outward=outward, inward=inward, graph=graph
        )

    return make


def xs(made):
    return made.memory.nodes[:, 0].tolist()


# R = 1 - |distance|: within 1 a node covers a state.


def test_states_that_no_node_reaches_become_nodes_in_order(on_a_line):
    made = on_a_line([[0, 0.5, 0.9, 1.2, 2.0], [-0.5, -1.1, 3.1]])
    np.testing.assert_allclose(xs(made), [0, 1.2, -1.1, 3.1])
    np.testing.assert_array_equal(made.memory.rows, [0, 3, 6, 7])
    assert (made.memory.tested, made.memory.overwritten) == (8, 0)


def test_directed_a_state_is_new_only_if_neither_reaches_the_other(on_a_line):
    # Forwards a unit costs 1, backwards 10: 0 → 0.9 is reached, 0.9 → 0 is not.
    made = on_a_line([[0, 0.9, -0.9, 1.1, -1.1]], forwards=1.0, backwards=10.0)
    np.testing.assert_allclose(xs(made), [0, 1.1, -1.1], rtol=1e-6)


def test_outward_and_inward_nodes_differ_where_directions_do(on_a_line):
    made = on_a_line([[0, 2.0, 0.8, 1.4]], forwards=1.0, backwards=10.0)
    np.testing.assert_allclose(xs(made), [0, 2.0])
    # 0.8 gets to 2 at a cost of 1.2, to 0 at one of 8; 0 gets to it.
    np.testing.assert_array_equal(made.outward, [0, 1, 1, 1])
    np.testing.assert_array_equal(made.inward, [0, 1, 0, 0])


def test_edges_are_in_to_out_of_both_ends_and_across(on_a_line):
    made = on_a_line([[0, 2.0, 4.0], [0.8, 2.2]], forwards=1.0, backwards=10.0)
    # Nodes 0, 2, 4. Transitions: row 1 (0 → 2), row 2 (2 → 4), row 4 (0.8 → 2.2);
    # 0.8 has in 0 and out 2, 2.2 has in 2 and out 4.
    found = {
        (int(i), int(j)): sorted(
            made.graph.edge_rows[made.graph.edge_starts[e] : made.graph.edge_starts[e + 1]].tolist()
        )
        for (i, j), e in np.ndenumerate(made.graph.edge)
        if e >= 0
    }
    # Of row 4: in → out of 0.8 is (0, 1), of 2.2 (1, 2), across (0, 2).
    assert found == {(0, 1): [1, 4], (1, 2): [2, 4], (0, 2): [4]}
    assert made.graph.edges.sum() == 3
    # 2 → 0 has no transition: a connector closes the ring.
    assert len(made.graph.paths.connectors) > 0
    assert made.graph.paths.hops.max() <= 2


def test_edges_need_their_support(on_a_line):
    made = on_a_line(
        [[0, 2.0, 4.0], [0.8, 2.2]],
        forwards=1.0,
        backwards=10.0,
        graph={"edge_frac": 1.0, "min_edge_support": 2, "min_edge_probability": 0.0},
    )
    assert np.argwhere(made.graph.edges).tolist() == [[0, 1], [1, 2]]
    assert made.graph.edge[0, 2] == -1


def test_a_transition_supports_an_edge_once_and_keeps_its_rows(on_a_line):
    # Both ends of row 3 (0.8 → 0.9) have in 0 and out 1: its three edges are all (0, 1).
    walks, graph = [[0, 2.0], [0.8, 0.9]], {"edge_frac": 1.0, "min_edge_probability": 0.0}
    made = on_a_line(walks, 1.0, 10.0, graph={**graph, "min_edge_support": 2})
    assert made.graph.edges[0, 1]
    np.testing.assert_array_equal(np.sort(made.graph.edge_rows), [1, 3, 3, 3])
    made = on_a_line(walks, 1.0, 10.0, graph={**graph, "min_edge_support": 3})
    assert not made.graph.edges.any()


def test_undirected_a_way_there_and_back_is_support_once(on_a_line):
    made = on_a_line([[0, 2.0], [2.0, 4.0]])
    config = FreshRunConfig(graph={"edge_frac": 1.0, "min_edge_support": 2})

    def built(outward, inward):
        nodes = (np.array(outward), np.array(inward))
        return build_graph(made.store, config, *nodes, lambda i, j: np.ones((len(i), len(j))), 3)

    # Edges 0 → 1 of one end of a transition and 1 → 0 of the other.
    assert not built(outward=[1, 0, 2, 2], inward=[0, 1, 2, 2]).edges.any()
    # A transition from 0 to 1, and one back.
    twice = built(outward=[0, 1, 1, 0], inward=[0, 1, 1, 0])
    assert np.argwhere(twice.edges).tolist() == [[0, 1], [1, 0]]


def test_edges_that_the_network_contradicts_are_removed_with_their_transitions(on_a_line):
    # 0 → 4 in one transition: the logit is 1 - 4 = -3, a probability of 0.047.
    walks = [[0, 2.0, 4.0, 2.0, 0], [0, 4.0]]
    kept = on_a_line(walks)
    assert kept.graph.edges[0, 2]
    removed = on_a_line(walks, graph={"edge_frac": 1.0, "min_edge_probability": 0.05})
    assert not removed.graph.edges[0, 2]
    assert removed.graph.edge[0, 2] == -1
    assert removed.graph.contradicted == 2  # both directions of an undirected edge
    assert removed.graph.edges[0, 1]
    assert removed.graph.paths.hops[0, 2] == 2


def test_a_full_memory_gives_up_other_nodes_than_the_first(on_a_line):
    made = on_a_line([np.arange(0, 60, 3.0)], memory={"keep_frac": 1.0, "capacity": 5})
    assert len(made.memory.nodes) == 5
    assert made.memory.overwritten == 15
    assert made.memory.rows[0] == 0
    np.testing.assert_allclose(made.memory.nodes[:, 0], 3.0 * made.memory.rows)


def test_data_that_fall_to_one_node_are_refused(on_a_line):
    with pytest.raises(DataError, match=r"memory.threshold 0: every one of 3 .* has one node"):
        on_a_line([[0, 0.1, 0.2]])


def test_only_a_share_of_the_observations_are_candidates(on_a_line):
    made = on_a_line([np.arange(0, 900, 3.0)], memory={"keep_frac": 0.1, "capacity": 500})
    assert 15 < made.memory.tested < 50
    assert len(made.memory.nodes) == made.memory.tested


def test_transitions_lead_to_all_rows_but_the_first_of_episodes(on_a_line):
    made = on_a_line([[0, 2.0, 4.0], [0.8, 2.2]])
    np.testing.assert_array_equal(transitions(made.store), [1, 2, 4])


def test_a_graph_survives_a_file(on_a_line):
    graph = on_a_line([[0, 2.0, 4.0], [0.8, 2.2]], forwards=1.0, backwards=10.0).graph
    copy = graph_from_arrays(graph_arrays(graph))
    for name in ("edges", "edge", "edge_starts", "edge_rows", "contradicted"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(graph, name))
    np.testing.assert_array_equal(copy.paths.hops, graph.paths.hops)
