import networkx as nx
import numpy as np

from farreach_workloads.goals.graph import directed_paths, shortest_paths


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


def random_directed(seed, count=40, edges=90):
    graph = nx.gnm_random_graph(count, edges, seed=seed, directed=True)
    return graph, nx.to_numpy_array(graph, nodelist=range(count)).astype(bool)


def random_scores(seed):
    scores = np.random.default_rng(seed).normal(size=(40, 40))
    return scores, lambda i, j: scores[np.ix_(i, j)]


def test_directed_hops_equal_an_independent_search():
    for seed in range(10):
        graph, adjacency = random_directed(seed)
        paths = directed_paths(adjacency, random_scores(seed)[1])
        graph.add_edges_from(paths.connectors.tolist())
        assert nx.is_strongly_connected(graph)
        for i, row in nx.all_pairs_shortest_path_length(graph):
            for j, length in row.items():
                assert paths.hops[i, j] == length
        for i, j in np.random.default_rng(0).integers(0, 40, (100, 2)):
            node, steps = i, 0
            while node != j:
                following = int(paths.next_hop[node, j])
                assert graph.has_edge(node, following)
                node, steps = following, steps + 1
            assert steps == paths.hops[i, j]


def test_a_directed_graph_is_connected_as_the_method_says():
    for seed in range(5):
        graph, adjacency = random_directed(seed)
        scores, score = random_scores(seed)
        paths = directed_paths(adjacency, score)
        assert paths.components == nx.number_strongly_connected_components(graph)
        for connector in paths.connectors.tolist():
            components = sorted(
                nx.strongly_connected_components(graph), key=lambda c: (len(c), min(c))
            )
            inside = components[0]
            reached = nx.descendants(graph, min(inside)) | inside
            reaching = nx.ancestors(graph, min(inside)) | inside
            allowed = [(u, v) for u in inside for v in set(range(40)) - reached]
            allowed += [(v, u) for u in inside for v in set(range(40)) - reaching]
            assert tuple(connector) == max(allowed, key=lambda edge: scores[edge])
            graph.add_edge(*connector)
        assert nx.is_strongly_connected(graph)


def test_a_one_way_street_is_long_in_the_other_direction():
    adjacency = np.zeros((4, 4), bool)
    for i in range(4):
        adjacency[i, (i + 1) % 4] = True
    paths = directed_paths(adjacency, no_score)
    assert (paths.hops[0, 3], paths.hops[3, 0]) == (3, 1)
    assert paths.connectors.shape == (0, 2)
