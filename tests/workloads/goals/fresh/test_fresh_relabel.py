"""Rows come in the paper's shares, found by enumerating what its buffer would hold."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach_workloads.goals.fresh import ways
from farreach_workloads.goals.fresh.config import RowsConfig, ShapedRewardConfig
from farreach_workloads.goals.fresh.cover import DataGraph, transitions
from farreach_workloads.goals.fresh.relabel import (
    BASE,
    EDGE,
    FUTURE,
    NODE,
    SUBGOAL,
    PathRows,
    PathSource,
)
from farreach_workloads.goals.graph import directed_paths
from farreach_workloads.goals.rewards import sigmoid

LENGTHS = [4, 3, 6]
NODES = 5


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "observation": rng.normal(size=(13, 3)).astype(np.float32),
        "action": rng.uniform(-1, 1, (13, 2)).astype(np.float32),
    }
    record = write_shard(tmp_path / "shard-00000.arrow", columns, LENGTHS, 0, {})
    write_index(tmp_path, "toy", [record])
    return EpisodeStore.open(tmp_path)


@pytest.fixture
def toy(store):
    """A ring of one-way edges 0 → 1 → … → 4 → 0 and a short cut 0 → 3; some have transitions."""
    edges = np.zeros((NODES, NODES), bool)
    for i in range(NODES):
        edges[i, (i + 1) % NODES] = True
    edges[0, 3] = True
    stored = {(0, 1): [1, 2, 3], (2, 3): [5], (0, 3): [8, 12], (4, 0): [9, 10, 11, 12]}
    edge = np.full((NODES, NODES), -1, np.int32)
    for number, pair in enumerate(stored):
        edge[pair] = number
    rows = [row for pair in stored for row in stored[pair]]
    starts = np.cumsum([0] + [len(found) for found in stored.values()])
    paths = directed_paths(edges, lambda i, j: np.zeros((len(i), len(j))))
    graph = DataGraph(edges, paths, edge, starts, np.array(rows), 0)
    rng = np.random.default_rng(1)
    outward = rng.integers(0, NODES, 13).astype(np.int16)
    inward = rng.integers(0, NODES, 13).astype(np.int16)
    inward[inward == 2] = 1  # no goal falls to node 2
    return SimpleNamespace(store=store, graph=graph, stored=stored, outward=outward, inward=inward)


def draw(toy, count=200_000, seed=0, **settings):
    rows = PathRows(
        toy.store,
        transitions(toy.store),
        toy.outward,
        toy.inward,
        toy.graph,
        RowsConfig(**{"path": 1.0, "future": 0.0, "node": 0.0} | settings),
    )
    return rows.draw(count, np.random.default_rng(seed))


def path_of(toy, start, end):
    nodes = [start]
    while nodes[-1] != end:
        nodes.append(int(toy.graph.paths.next_hop[nodes[-1], end]))
    return nodes


def filled_buffer(toy, subgoals=True, edges=True):
    """Every row of the paper's buffer with its weight: all transitions with all goals."""
    weights = Counter()
    hops = toy.graph.paths.hops
    for following in [1, 2, 3, 5, 6, 8, 9, 10, 11, 12]:
        for goal in range(13):
            u, w = int(toy.outward[following]), int(toy.inward[goal])
            path = path_of(toy, u, w)
            weights[BASE, following, goal, w, int(hops[u, w])] += Fraction(1)
            for m in path if subgoals else []:
                weights[SUBGOAL, following, -1, m, int(hops[u, m])] += Fraction(1)
            for p, q in pairwise(path) if edges else []:
                for row in toy.stored.get((p, q), []):
                    share = Fraction(1, len(toy.stored[p, q]))
                    weights[EDGE, row, goal, w, int(hops[q, w])] += share
    return weights


@pytest.mark.parametrize(
    ("subgoals", "edges"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_rows_have_the_probabilities_of_the_papers_buffer(toy, subgoals, edges):
    rows = draw(toy, subgoal_rows=subgoals, edge_rows=edges)
    drawn = Counter(
        zip(
            *(v.tolist() for v in (rows.kind, rows.following, rows.goal_row, rows.goal_node)),
            rows.hops.tolist(),
            strict=True,
        )
    )
    expected = filled_buffer(toy, subgoals, edges)
    assert set(drawn) <= set(expected)
    np.testing.assert_array_equal(rows.hops, toy.graph.paths.hops[rows.node, rows.goal_node])
    total = sum(expected.values())
    keys = list(expected)
    wanted = np.array([float(expected[key] / total) for key in keys]) * len(rows.kind)
    assert wanted.min() > 5
    found = np.array([drawn[key] for key in keys])
    assert stats.chisquare(found, wanted).pvalue > 1e-3


def test_kinds_come_as_one_to_nodes_to_edges_of_the_path(toy):
    rows = draw(toy)
    weights = filled_buffer(toy)
    total = float(sum(weights.values()))
    for kind in (BASE, SUBGOAL, EDGE):
        share = float(sum(v for key, v in weights.items() if key[0] == kind)) / total
        assert (rows.kind == kind).mean() == pytest.approx(share, abs=0.005)


def test_other_kinds_come_in_their_shares_with_hops_from_the_next_state(toy):
    rows = draw(toy, path=0.5, future=0.2, node=0.3)
    shares = [(rows.kind == kind).mean() for kind in (FUTURE, NODE)]
    np.testing.assert_allclose(shares, [0.2, 0.3], atol=0.005)
    future, node = rows.kind == FUTURE, rows.kind == NODE
    hops = toy.graph.paths.hops
    for chosen in (future, node):
        start = toy.outward[rows.following[chosen]]
        np.testing.assert_array_equal(rows.hops[chosen], hops[start, rows.goal_node[chosen]])
    np.testing.assert_array_equal(rows.goal_node[future], toy.inward[rows.goal_row[future]])
    assert (rows.goal_row[node] == -1).all()
    assert stats.chisquare(np.bincount(rows.goal_node[node])).pvalue > 1e-3


def test_future_goals_lie_ahead_in_the_same_episode(toy):
    rows = draw(toy, path=0.0, future=1.0, future_mean_steps=2.0)
    episode = np.repeat([0, 1, 2], LENGTHS)
    np.testing.assert_array_equal(episode[rows.goal_row], episode[rows.following])
    assert (rows.goal_row >= rows.following).all()
    # From the state before row 8, geometric with mean 2: 1/2, 1/4, 1/8, 1/16, the rest at the end.
    own = rows.goal_row[rows.following == 8] - 8
    expected = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]) * len(own)
    assert stats.chisquare(np.bincount(own), expected).pvalue > 1e-3


class Straight:
    """R(s → g) = 1 - |g - s| in the first dim."""

    def embed(self, inputs):
        return inputs

    def logits(self, start, end):
        return 1.0 - np.abs(end[:, 0] - start[:, 0])


def test_rewards_are_the_shaped_reward_at_the_next_state(toy):
    rows = draw(toy, count=500, path=0.4, future=0.3, node=0.3)
    nodes = np.random.default_rng(5).normal(size=(NODES, 3)).astype(np.float32)
    bundle = SimpleNamespace(nodes=nodes, embeddings=nodes, network=Straight())
    features = SimpleNamespace(reachability=lambda observations: observations)
    settings = ShapedRewardConfig(distance="hops", scale=0.5, weight=2.0, temperature=3.0)
    batch = PathSource(None, toy.store, bundle, features, settings, None).fetch(rows)
    observation = toy.store["observation"][np.arange(13)]
    action = toy.store["action"][np.arange(13)]
    for index in range(500):
        row = int(rows.following[index])
        np.testing.assert_array_equal(batch.observation[index], observation[row - 1])
        np.testing.assert_array_equal(batch.next_observation[index], observation[row])
        np.testing.assert_array_equal(batch.action[index], action[row])
        at = int(rows.goal_row[index])
        goal = observation[at] if at >= 0 else nodes[rows.goal_node[index]]
        np.testing.assert_array_equal(batch.goal[index], goal)
        logit = 1.0 - abs(float(goal[0]) - float(observation[row, 0]))
        expected = 0.5 * (-int(rows.hops[index]) + 2.0 * (sigmoid(logit / 3.0) - 1.0))
        assert batch.reward[index] == pytest.approx(expected, abs=1e-5)


def test_reachability_alone_and_the_oracle_take_the_place_of_hops(toy):
    rows = draw(toy, count=200, path=0.4, future=0.3, node=0.3)
    nodes = np.random.default_rng(5).normal(size=(NODES, 3)).astype(np.float32)
    bundle = SimpleNamespace(nodes=nodes, embeddings=nodes, network=Straight())
    features = SimpleNamespace(reachability=lambda observations: observations)
    env = SimpleNamespace(
        path_distance=lambda a, b: np.abs(a - b).sum(axis=1),
        distance=lambda a, b: np.abs(a - b).max(axis=1),
        spec=SimpleNamespace(success_threshold=1.0),
    )

    def fetched(**settings):
        source = PathSource(None, toy.store, bundle, features, ShapedRewardConfig(**settings), env)
        return source.fetch(rows)

    batch = fetched(distance="reachability", scale=0.5, weight=7.0)
    gap = batch.goal - batch.next_observation
    np.testing.assert_allclose(batch.reward, 0.5 * (1 - np.abs(gap[:, 0])), rtol=1e-5, atol=1e-6)
    batch = fetched(distance="oracle", scale=0.5)
    np.testing.assert_allclose(batch.reward, -0.5 * np.abs(gap).sum(axis=1), rtol=1e-5)
    batch = fetched(distance="oracle_sparse", scale=0.5)
    near = np.abs(gap).max(axis=1) < 1
    assert 0 < near.sum() < 200
    np.testing.assert_array_equal(batch.reward, np.where(near, 0.0, -0.5).astype(np.float32))


def test_lengths_take_the_place_of_hops(toy, monkeypatch):
    rows = draw(toy, count=300, path=0.4, future=0.3, node=0.3)
    nodes = np.random.default_rng(5).normal(size=(NODES, 3)).astype(np.float32)
    bundle = SimpleNamespace(nodes=nodes, embeddings=nodes, network=Straight())
    features = SimpleNamespace(
        reachability=lambda observations: observations,
        as_goal=lambda goals, observations: goals - 2 * observations,
    )

    class Lengths:
        """Numbers that tell which arguments came in."""

        def __init__(self, given):
            assert given is bundle

        def lengths(self, start, node, goal, goal_node, seen):
            far = start[:, 0] + 10 * node + 100 * goal[:, 0] + 1000 * goal_node
            return far + 10_000 * seen[:, 0]

    monkeypatch.setattr("farreach_workloads.goals.fresh.relabel.PathLengths", Lengths)
    settings = ShapedRewardConfig(distance="lengths", scale=0.5)
    batch = PathSource(None, toy.store, bundle, features, settings, None).fetch(rows)
    expected = batch.next_observation[:, 0] + 10 * rows.node
    expected += 100 * batch.goal[:, 0] + 1000 * rows.goal_node
    expected += 10_000 * (batch.goal[:, 0] - 2 * batch.next_observation[:, 0])
    np.testing.assert_allclose(batch.reward, -0.5 * expected, rtol=1e-5)
    start = toy.outward[rows.following]
    np.testing.assert_array_equal(rows.node[rows.kind != EDGE], start[rows.kind != EDGE])


def test_the_same_seed_gives_the_same_rows(toy):
    one, two = draw(toy, 1000, seed=3), draw(toy, 1000, seed=3)
    np.testing.assert_array_equal(one.following, two.following)
    np.testing.assert_array_equal(one.goal_node, two.goal_node)


@pytest.mark.parametrize("together", [1, 70, 10**6])
def test_ways_are_those_that_next_hops_lead(together, monkeypatch):
    monkeypatch.setattr(ways, "PAIRS_TOGETHER", together)
    rng = np.random.default_rng(4)
    count = 40
    edges = rng.random((count, count)) < 0.06
    np.fill_diagonal(edges, False)
    edge = np.where(edges & (rng.random((count, count)) < 0.7), 0, -1).astype(np.int32)
    paths = directed_paths(edges, lambda i, j: np.zeros((len(i), len(j))))
    graph = DataGraph(edges, paths, edge, np.array([0, 1]), np.array([1]), 0)
    toy, found = SimpleNamespace(graph=graph), ways.Ways(graph)
    starts, ends = (x.ravel() for x in np.indices((count, count)))
    written = [path_of(toy, *pair) for pair in zip(starts.tolist(), ends.tolist(), strict=True)]
    stored = [[pair for pair in pairwise(path) if edge[pair] >= 0] for path in written]
    assert found.stored.ravel().tolist() == [len(pairs) for pairs in stored]
    assert found.stored.max() > 2
    steps = np.array([rng.integers(len(path)) for path in written])
    expected = [path[step] for path, step in zip(written, steps, strict=True)]
    assert found.after(starts, ends, steps).tolist() == expected
    some = [i for i, pairs in enumerate(stored) if pairs]
    number = np.array([rng.integers(len(stored[i])) for i in some])
    tails, heads = found.stored_edge(starts[some], ends[some], number)
    expected = [stored[i][n] for i, n in zip(some, number, strict=True)]
    assert list(zip(tails.tolist(), heads.tolist(), strict=True)) == expected
