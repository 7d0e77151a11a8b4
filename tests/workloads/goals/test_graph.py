import networkx as nx
import numpy as np

from farreach_workloads.goals.graph import shortest_paths


def no_score(i, j):
    return np.zeros((len(i), len(j)))


def random_graph(seed, count=40):
    graph = nx.gnm_random_graph(count, 70, seed=seed)
    return graph, nx.to_numpy_array(graph, nodelist=range(count)).astype(bool)


def test_hops_equal_an_independent_breadth_first_search():
    for seed in range(10):
        graph, adjacency = random_graph(seed)
        paths = shortest_paths(adjacency, no_score)
        graph.add_edges_from(paths.connectors.tolist())
        for i, row in nx.all_pairs_shortest_path_length(graph):
            for j, length in row.items():
                assert paths.hops[i, j] == length


def test_following_the_next_hop_walks_edges_and_takes_as_many_steps_as_there_are_hops():
    graph, adjacency = random_graph(3)
    paths = shortest_paths(adjacency, no_score)
    graph.add_edges_from(paths.connectors.tolist())
    for i in range(40):
        assert paths.next_hop[i, i] == i
        for j in range(40):
            node, steps = i, 0
            while node != j:
                following = int(paths.next_hop[node, j])
                assert graph.has_edge(node, following)
                node, steps = following, steps + 1
            assert steps == paths.hops[i, j]


def test_the_smallest_component_is_joined_by_the_best_pair():
    adjacency = np.zeros((5, 5), bool)
    adjacency[0, 1] = adjacency[1, 0] = adjacency[1, 2] = adjacency[2, 1] = True
    adjacency[3, 4] = adjacency[4, 3] = True
    scores = np.full((5, 5), -10.0)
    scores[2, 3] = -1.0  # the best, outside → inside
    scores[4, 0] = -2.0
    paths = shortest_paths(adjacency, lambda i, j: scores[np.ix_(i, j)])
    assert paths.components == 2
    assert paths.connectors.tolist() == [[3, 2]]
    assert paths.hops[0, 4] == 4
