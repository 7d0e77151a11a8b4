from collections import Counter

import numpy as np
import pytest

from farreach import messages
from farreach_workloads.goals.memory import GoalMemory

SMALL_REACH = 0.5  # covers points less than half a unit away


@pytest.fixture
def make(toy):
    def make_memory(directed=False, seed=0, **memory):
        # Whatever a walk crosses is an edge, unless a test says otherwise.
        memory = {"min_edge_share": 0, "min_edge_probability": 0, **memory}
        reachability = {"directed": directed}
        config = toy.config(seed=seed, memory=memory, reachability=reachability)
        return GoalMemory(config, toy.env())

    return make_memory


@pytest.fixture
def feed(toy):
    """Integrates one message of walks; returns the bundle."""

    def integrate(memory, xs, reach=SMALL_REACH, **walks):
        memory.add(toy.walks(xs, **walks))
        return memory.integrate(toy.weights(toy.network(reach)))[0]

    return integrate


def positions(bundle):
    return bundle.nodes[:, 0].tolist()


def support(memory):
    return memory.state()["support"]


# ------------------------------------------------------------------------ what becomes a node


def test_a_state_joins_when_no_node_is_in_reach(make, feed):
    bundle = feed(make(), [[0.0, 0.4, 0.6, 1.0, 1.2]])
    assert positions(bundle) == pytest.approx([0.0, 0.6, 1.2])


def test_every_stride_th_state_is_a_candidate(make, toy):
    memory = make(stride=3)
    memory.add(toy.walks([[0, 10, 20, 30, 40, 50, 60], [100, 0, 0, 100, 0, 0, 100]]))
    bundle, _, metrics = memory.integrate(toy.weights(toy.network(SMALL_REACH)))
    assert positions(bundle) == [0, 30, 60, 100]
    assert metrics["memory/candidates"] == 6


def test_a_new_node_is_its_own_nearest_even_if_the_network_denies_it(make, toy):
    memory = make()
    memory.add(toy.walks([[0, 1, 2]]))
    # R(s → g) = -100 + |g - s|: nothing is reached, and a state itself least of all.
    network = toy.network(-100.0, forwards=-1.0, backwards=-1.0)
    bundle, *_ = memory.integrate(toy.weights(network))
    assert positions(bundle) == [0, 1, 2]
    assert bundle.passes.tolist() == [1, 1, 1]
    assert bundle.edges.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_the_threshold_is_a_logit(make, feed):
    # reach 2: logits to the root are 2, 1, 0, -1.
    assert positions(feed(make(threshold=0.5), [[0.0, 1.0, 2.0, 3.0]], reach=2.0)) == [0, 2]
    assert positions(feed(make(threshold=-0.5), [[0.0, 1.0, 2.0, 3.0]], reach=2.0)) == [0, 3]


@pytest.mark.parametrize(
    ("directed", "expected"),
    [(False, [0, 3, 10]), (True, [0, 10])],  # undirected: 3 does not get back to 0, so it is new
)
def test_directed_novelty_needs_both_directions_out_of_reach(make, toy, directed, expected):
    memory = make(directed=directed)
    memory.add(toy.walks([[0, 3, -3, 10]]))
    # Forwards is cheap but backwards is not: 0 → 3 holds, 3 → 0 does not, -3 → 0 does.
    network = toy.network(5.0, forwards=1.0, backwards=1000.0)
    assert positions(memory.integrate(toy.weights(network))[0]) == expected


def test_the_oracle_curriculum_spaces_nodes_by_the_oracle_distance(make, toy):
    memory = make(novelty="oracle", oracle_radius=3.0)
    walks = toy.walks(np.zeros((2, 150)))
    walks["observations"][..., :2] = np.random.default_rng(0).uniform(-3, 3, (2, 150, 2))
    memory.add(walks)
    # A network that calls everything reachable must not matter.
    bundle, *_ = memory.integrate(toy.weights(toy.network(1e6)))
    chosen = []
    for point in walks["observations"].reshape(-1, 3)[:, :2]:
        if all(np.hypot(*(point - other)) > 3 * 0.5 for other in chosen):
            chosen.append(point)
    np.testing.assert_array_equal(bundle.nodes[:, :2], chosen)
    assert 5 < len(chosen) < 30


def test_nodes_are_embedded_anew_before_the_filter_looks_at_them(make, toy):
    memory = make()
    memory.add(toy.walks([[5.0, 9.0]]))
    memory.integrate(toy.weights(toy.network(SMALL_REACH)))
    memory.add(toy.walks([[5.0, 9.0, 2.0]]))
    mirrored = toy.network(SMALL_REACH, mirror=True)
    bundle, *_ = memory.integrate(toy.weights(mirrored))
    assert positions(bundle) == [5, 9, 2]  # with old embeddings 5 and 9 would be new again
    np.testing.assert_array_equal(bundle.embeddings[:, 0], [-5, -9, -2])


def test_a_node_knows_when_it_was_added(make, feed):
    memory = make()
    feed(memory, [[0.0]], env_steps=100)
    bundle = feed(memory, [[0.0, 1.0]], env_steps=250)
    assert bundle.added_at.tolist() == [100, 250]
    assert bundle.born.tolist() == [1, 2]
    assert bundle.version == 2


# ------------------------------------------------------------------------- overwriting a node


def test_the_root_survives_random_replacement_and_every_other_slot_is_drawn(make, feed):
    for seed in range(5):
        memory = make(capacity=4, replace="random", seed=seed)
        feed(memory, [np.arange(4) * 10])
        bundle = feed(memory, [np.arange(4, 40) * 10])
        assert positions(bundle)[0] == 0
        assert bundle.born.tolist() == [1, 2, 2, 2]


def test_redundant_replacement_gives_up_the_best_covered_node_but_the_root(make, feed):
    # Root and slot 1 cover each other best; the root stays.
    bundle = feed(make(capacity=3, replace="redundant"), [[0, 1, 10, 20]])
    assert positions(bundle) == [0, 20, 10]


@pytest.fixture
def full(make, feed):
    """Slot 2 lies next to the root, so it goes first; 2 was found from 1, and 3 from 2."""
    memory = make(capacity=4, replace="redundant")
    feed(memory, [[0, 10]])
    feed(memory, [[10, 1]], goal_slot=1, goal_version=1)
    bundle = feed(memory, [[1, 30]], goal_slot=2, goal_version=2)
    assert positions(bundle) == [0, 10, 1, 30]
    assert bundle.predecessor.tolist() == [-1, -1, 1, 2]
    return memory


def test_what_had_the_overwritten_node_as_predecessor_inherits_its_predecessor(full, feed):
    bundle = feed(full, [[30, 50]], goal_slot=3, goal_version=3)
    assert positions(bundle) == [0, 10, 50, 30]
    assert bundle.predecessor.tolist() == [-1, -1, 3, 1]


def test_a_new_node_never_has_the_node_it_replaced_as_predecessor(full, feed):
    bundle = feed(full, [[1, 50]], goal_slot=2, goal_version=3)
    assert positions(bundle) == [0, 10, 50, 30]
    assert bundle.predecessor.tolist() == [-1, -1, 1, 1]


def test_a_pursuit_of_an_overwritten_node_counts_for_its_predecessor(full, feed):
    # 50 takes slot 2, then 70 takes slot 1. The walk's goal, once in slot 2, came from slot 1,
    # which came from nothing: the node at 50 was never pursued.
    bundle = feed(full, [[1, 50, 70]], goal_slot=2, goal_version=3)
    assert positions(bundle) == [0, 70, 50, 30]
    assert bundle.predecessor.tolist() == [-1, -1, -1, -1]


def test_pursuits_in_messages_that_wait_inherit_as_well(full, toy):
    full.add(toy.walks([[30, 50]], goal_slot=3, goal_version=3))  # 50 takes slot 2
    full.add(toy.walks([[30, 70]], goal_slot=2, goal_version=3))  # 70 takes slot 1
    bundle, *_ = full.integrate(toy.weights(toy.network(SMALL_REACH)))
    assert positions(bundle) == [0, 70, 50, 30]
    # Slot 3 came from 2, that from 1, that from nothing; the second pursuit likewise.
    assert bundle.predecessor.tolist() == [-1, -1, 3, -1]


def test_a_pursuit_of_a_node_that_is_gone_since_gives_no_predecessor(full, feed):
    feed(full, [[30, 50]], goal_slot=3, goal_version=3)  # slot 2 has another node now
    bundle = feed(full, [[30, 70]], goal_slot=2, goal_version=3)
    assert positions(bundle) == [0, 70, 50, 30]
    assert bundle.predecessor[1] == -1


def test_overwriting_clears_the_node_s_counts_and_edges(full, feed):
    before = feed(full, [[1, 30, 1, 30]], goal_slot=2, goal_version=3, reached=True)
    assert support(full)[2, 3] == 4
    assert (before.attempts[2], before.successes[2]) == (2, 1)
    after = feed(full, [[50, 50]])
    assert positions(after)[2] == 50
    assert support(full)[2].tolist() == support(full)[:, 2].tolist() == [0, 0, 0, 0]
    assert after.passes[2] == 2
    assert after.attempts[2] == after.successes[2] == 0


# -------------------------------------------------------------------------------- bookkeeping


def test_only_pursuits_of_the_node_that_is_there_now_are_counted(make, feed, toy):
    memory = make()
    feed(memory, [[0, 10]])
    feed(memory, [[20, 30]])
    walks = toy.walks(np.zeros((7, 1)))
    walks["goal_slot"] = np.array([1, 1, 2, 2, 9, -1, 3])
    walks["goal_version"] = np.array([1, 2, 1, 2, 2, 2, 0])  # slots 2 and 3 were born at 2
    walks["reached"] = np.array([True, False, True, True, True, True, True])
    memory.add(walks)
    bundle, *_ = memory.integrate(toy.weights(toy.network(SMALL_REACH)))
    assert bundle.attempts.tolist() == [0, 2, 1, 0]
    assert bundle.successes.tolist() == [0, 1, 1, 0]


def test_edges_join_consecutive_candidates_of_one_walk_only(make, feed):
    memory = make()
    bundle = feed(memory, [[0, 10, 10, 0], [20, 30, 20, 20]])
    expected = np.zeros((4, 4), int)
    expected[0, 1] = expected[1, 0] = 2
    expected[2, 3] = expected[3, 2] = 2
    np.testing.assert_array_equal(support(memory), expected)
    np.testing.assert_array_equal(bundle.edges, expected > 0)
    assert bundle.passes.tolist() == [2, 2, 3, 1]
    assert bundle.components == 2


def test_edges_need_the_configured_support(make, feed):
    memory = make(min_edge_support=2)
    bundle = feed(memory, [[0, 10, 0, 0], [10, 20, 20, 20]])
    assert support(memory).tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    assert bundle.edges.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert bundle.components == 2  # 10 - 20 was seen once only
    assert bundle.connectors.tolist() == [[2, 1]]


def test_an_edge_that_few_of_many_departures_took_does_not_count(make, feed):
    # 0 and 10 are left 40 times for each other, and rarely for 20 and 30.
    walk = [20, 0] + [10, 0] * 20 + [30, 10, 30]
    memory = make(min_edge_share=0.05)
    bundle = feed(memory, [walk])
    assert positions(bundle) == [20, 0, 10, 30]
    assert support(memory).tolist() == [[0, 1, 0, 0], [1, 0, 40, 1], [0, 40, 0, 2], [0, 1, 2, 0]]
    # 20 was left once in all, so once is its whole share. Of 0's 42 and 30's 3 departures the
    # smaller number decides, and 1 of 3 is enough.
    assert bundle.edges.astype(int).tolist() == [
        [0, 1, 0, 0],
        [1, 0, 1, 1],
        [0, 1, 0, 1],
        [0, 1, 1, 0],
    ]
    strict = feed(make(min_edge_share=0.34), [walk])
    assert not strict.edges[1, 3]
    assert strict.edges[2, 3]


def test_an_edge_that_the_network_contradicts_counts_again_once_it_does_not(make, toy):
    memory = make(min_edge_probability=1e-3)  # a logit of -6.907
    memory.add(toy.walks([[0.0, 7.4, 14.9, 22.3]]))  # logits 0.5 - distance: -6.9, -7.0, -6.9
    bundle, _, metrics = memory.integrate(toy.weights(toy.network(SMALL_REACH)))
    assert bundle.edges.astype(int).tolist() == [
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
    ]
    assert metrics["graph/contradicted_frac"] == pytest.approx(1 / 3)
    assert bundle.components == 2
    memory.add(toy.walks([[0.0]]))
    bundle, _, metrics = memory.integrate(toy.weights(toy.network(SMALL_REACH + 0.2)))
    assert bundle.edges[1, 2]
    assert metrics["graph/contradicted_frac"] == 0


def test_where_there_are_no_edges_none_is_contradicted(make, toy):
    memory = make()
    memory.add(toy.walks([[0.0, 0.0, 0.0]]))
    bundle, _, metrics = memory.integrate(toy.weights(toy.network(SMALL_REACH)))
    assert not bundle.edges.any()
    assert metrics["graph/contradicted_frac"] == 0


def test_one_direction_is_enough_for_the_network_to_agree(make, toy):
    memory = make(min_edge_probability=1e-3)
    memory.add(toy.walks([[0.0, 5.0]]))
    one_way = toy.network(SMALL_REACH, backwards=1000.0)
    assert memory.integrate(toy.weights(one_way))[0].edges[0, 1]


class Node:
    def __init__(self, x, parent):
        self.x, self.parent, self.passes = x, parent, 0


class Sequential:
    """The memory one candidate at a time, with objects in place of slots and versions."""

    def __init__(self, capacity):
        self.capacity, self.nodes, self.edges = capacity, [], Counter()

    def slot_for(self, node, goals):
        if len(self.nodes) < self.capacity:
            self.nodes.append(node)
            return
        gaps = [min(abs(a.x - b.x) for b in self.nodes if b is not a) for a in self.nodes]
        slot = min(range(1, len(gaps)), key=lambda s: gaps[s])
        gone, self.nodes[slot] = self.nodes[slot], node
        for other in self.nodes:
            if other.parent is gone:
                other.parent = gone.parent
        for i, goal in enumerate(goals):
            if goal is gone:
                goals[i] = gone.parent

    def feed(self, walks, goals):
        for w, walk in enumerate(walks):
            before = None
            for x in walk:
                near = min(self.nodes, key=lambda n: abs(n.x - x), default=None)
                if near is None or abs(near.x - x) > SMALL_REACH:
                    near = Node(x, None)
                    self.slot_for(near, goals)
                    near.parent = goals[w]
                near.passes += 1
                if before is not None and before is not near:
                    self.edges[frozenset((before, near))] += 1
                before = near


def test_filter_links_and_predecessors_equal_a_memory_that_goes_one_by_one(make, feed):
    rng = np.random.default_rng(0)
    memory, twin = make(capacity=8, replace="redundant"), Sequential(8)
    replaced = 0
    for version in range(15):
        steps = rng.integers(-(2**19), 2**19, (5, 30))
        walks = (rng.integers(0, 2**23, (5, 1)) + steps.cumsum(axis=1)) / 2**20
        assert (walks == walks.astype(np.float32)).all()  # so gaps are exact and never tie
        slots = rng.integers(0, len(twin.nodes), 5) if twin.nodes else np.full(5, -1)
        goals = [twin.nodes[s] if s >= 0 else None for s in slots]
        old = list(twin.nodes)
        twin.feed(walks, goals)
        replaced += sum(a is not b for a, b in zip(old, twin.nodes, strict=False))
        memory_walks = {"goal_slot": slots, "goal_version": version}
        bundle = feed(memory, walks, **memory_walks)
        assert positions(bundle) == [node.x for node in twin.nodes]
        index = {node: slot for slot, node in enumerate(twin.nodes)}
        assert bundle.predecessor.tolist() == [index.get(n.parent, -1) for n in twin.nodes]
        assert bundle.passes.tolist() == [node.passes for node in twin.nodes]
        for i, a in enumerate(twin.nodes):
            for j, b in enumerate(twin.nodes):
                seen = 0 if a is b else twin.edges[frozenset((a, b))]
                assert support(memory)[i, j] == seen
    assert replaced > 20


# ------------------------------------------------------------------------------------ pruning


@pytest.fixture
def prunable(make, feed):
    """Nodes at 0, 1, 10, 20; the last was found from the one at 10."""
    memory = make(prune=True)
    feed(memory, [[0, 1, 10, 1]])
    bundle = feed(memory, [[10, 20, 10, 20]], goal_slot=2, goal_version=1)
    assert bundle.predecessor.tolist() == [-1, -1, -1, 2]
    return memory


def test_pruning_drops_the_later_of_two_nodes_and_moves_everything_else(prunable, toy):
    bundle, _, metrics = prunable.integrate(toy.weights(toy.network(2.0)))
    assert metrics["memory/pruned"] == 1
    assert positions(bundle) == [0, 10, 20]
    assert support(prunable).tolist() == [[0, 0, 0], [0, 0, 3], [0, 3, 0]]
    assert bundle.predecessor.tolist() == [-1, -1, 1]
    assert bundle.passes.tolist() == [1, 3, 2]
    assert bundle.born.tolist() == [1, 3, 3]  # slots 1 and 2 mean other nodes than before,
    np.testing.assert_allclose(bundle.goal_weights("frontier"), [1 / 2, 1 / 4, 1 / 4])  # old ones
    np.testing.assert_array_equal(bundle.embeddings[:, 0], [0, 10, 20])


def test_what_was_found_from_a_pruned_node_inherits_its_predecessor(make, feed, toy):
    memory = make(prune=True)
    feed(memory, [[0, 10]])
    feed(memory, [[10, 11]], goal_slot=1, goal_version=1)
    bundle = feed(memory, [[11, 30]], goal_slot=2, goal_version=2)
    assert bundle.predecessor.tolist() == [-1, -1, 1, 2]
    bundle, *_ = memory.integrate(toy.weights(toy.network(2.0)))  # 11 goes, 10 stays
    assert positions(bundle) == [0, 10, 30]
    assert bundle.predecessor.tolist() == [-1, -1, 1]


def test_pruning_needs_both_directions(prunable, toy):
    one_way = toy.network(2.0, backwards=1000.0)
    assert len(prunable.integrate(toy.weights(one_way))[0]) == 4


def test_nothing_is_pruned_unless_asked_for(make, feed):
    memory = make()
    feed(memory, [[0, 1, 10]])
    assert len(feed(memory, [[0]], reach=2.0)) == 3


def test_a_pursuit_from_before_pruning_gives_no_predecessor(prunable, toy):
    prunable.add(toy.walks([[20, 40], [20, 60]], goal_slot=[3, 1], goal_version=2, reached=True))
    bundle, *_ = prunable.integrate(toy.weights(toy.network(2.0)))
    # Slot 3 is gone and reused, slot 1 means another node.
    assert positions(bundle) == [0, 10, 20, 40, 60]
    assert (bundle.born == bundle.version).tolist() == [False, False, False, True, True]
    assert bundle.predecessor.tolist() == [-1, -1, 1, -1, -1]
    assert bundle.attempts.tolist() == [0, 1, 0, 0, 0]  # the one that was booked before pruning
    assert bundle.successes.tolist() == [0, 0, 0, 0, 0]


# ------------------------------------------------------------------------------------ restore


def expect_equal(one, other):
    for name, value in one.arrays().items():
        if name != "network":
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_a_restored_memory_continues_as_if_nothing_had_happened(make, feed, toy):
    memory = make(capacity=5, replace="random")
    feed(memory, [np.arange(9) * 10])
    memory.add(toy.walks([[500, 510]], goal_slot=2, goal_version=1, reached=True))
    frame = messages.pack(memory.state())
    restored = make(capacity=5, replace="random", seed=7)
    feed(restored, [np.arange(9) * 3])  # what was there before must not matter
    restored.restore(messages.unpack(frame))
    for xs in ([[200, 210]], [[300, 310]], [[500, 510]]):
        more = {"goal_slot": 1, "goal_version": 1, "reached": True, "env_steps": 3}
        bundle = feed(memory, xs, **more)
        expect_equal(bundle, feed(restored, xs, **more))
    assert bundle.born.max() > 2


@pytest.mark.parametrize(("lowest", "expected"), [(0, 2), (1, 2), (9, 10)])
def test_a_restored_memory_never_publishes_a_version_again(make, feed, lowest, expected):
    memory, restored = make(), make()
    feed(memory, [[0, 10]])
    restored.restore(messages.unpack(messages.pack(memory.state())), lowest)
    bundle = feed(restored, [[0, 20]])
    assert bundle.version == expected
    assert bundle.born.tolist() == [1, 1, expected]
