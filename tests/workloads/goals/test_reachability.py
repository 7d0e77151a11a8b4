import numpy as np
import pytest
import torch
from scipy import stats

from farreach import messages
from farreach_workloads.goals.config import GoalsRunConfig, ReachabilityConfig
from farreach_workloads.goals.folded import FoldedReachability
from farreach_workloads.goals.reachability import (
    MetricComparator,
    PairSampler,
    ReachabilityNetwork,
    fold,
)


def trained_looking_network(config, width=4):
    """A network whose BatchNorm statistics and weights are not the initial ones."""
    torch.manual_seed(0)
    network = ReachabilityNetwork(width, config)
    for _ in range(20):
        network(torch.randn(64, width) * 2 + 1, torch.randn(64, width))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    return network.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"comparator": "network", "comparator_layers": 2},
        {"comparator": "network", "comparator_layers": 4},
        {"comparator": "metric"},
        {"comparator": "metric", "directed": True, "embedding": 7},
    ],
)
def test_the_folded_network_equals_the_network_in_evaluation_mode(settings):
    network = trained_looking_network(ReachabilityConfig(**settings))
    folded = FoldedReachability.from_arrays(messages.unpack(messages.pack(fold(network).arrays())))
    start, end = torch.randn(30, 4), torch.randn(20, 4)
    e_start, e_end = folded.embed(start.numpy()), folded.embed(end.numpy())
    with torch.no_grad():
        rows = network(start[:20], end).numpy()
        pairs = network(start.repeat_interleave(20, 0), end.repeat(30, 1)).view(30, 20).numpy()
    np.testing.assert_allclose(folded.logits(e_start[:20], e_end), rows, atol=2e-5)
    np.testing.assert_allclose(folded.all_pairs(e_start, e_end), pairs, atol=2e-5)
    index, best = folded.nearest(e_start, e_end)
    np.testing.assert_array_equal(index, pairs.argmax(1))
    np.testing.assert_allclose(best, pairs.max(1), atol=2e-5)
    index, _ = folded.nearest(e_end, e_start, incoming=True)
    np.testing.assert_array_equal(index, pairs.argmax(0))


def test_the_metric_comparator_is_an_offset_minus_a_distance():
    comparator = MetricComparator(3, directed=False)
    start, end = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.5, 0.0, 3.25]])
    # |0.5| + |-2| + |0.25| = 2.75, both ways
    for pair in ([start, end], [end, start]):
        assert comparator(torch.cat(pair, 1)).item() == pytest.approx(3.0 - 2.75)
    directed = MetricComparator(4, directed=True)
    start, end = torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, -2.0, 4.0, -8.0]])
    # The first two dims count both ways, the others only where they grow.
    assert directed(torch.cat([start, end], 1)).item() == pytest.approx(3.0 - (1 + 2 + 4))
    assert directed(torch.cat([end, start], 1)).item() == pytest.approx(3.0 - (1 + 2 + 8))


def test_the_maze_network_has_the_published_number_of_parameters():
    # 6,307 with the released code's second, unused output channel (17 parameters) and its scalar
    # bias (1), on 3 raw inputs.
    network = ReachabilityNetwork(3, GoalsRunConfig(fidelity="paper").reachability)
    assert sum(p.numel() for p in network.parameters()) == 6307 - 17 - 1


def draw(directed, count=200_000, steps=50, window=5):
    sampler = PairSampler(window, directed, 0.5, 0.5)
    return sampler.draw(np.random.default_rng(0), np.arange(40), steps, count)


def test_kinds_of_pairs_come_in_the_stated_shares():
    first, _, second, _, positive = draw(directed=True)
    # Half positive; of the negatives half in the trajectory, and 1/40 of the others by chance.
    same = first == second
    counts = [positive.sum(), (~positive & same).sum(), (~positive & ~same).sum()]
    expected = np.array([0.5, 0.25 + 0.25 / 40, 0.25 * 39 / 40]) * len(first)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_positives_are_uniform_over_the_directed_window_with_the_state_itself():
    first, i, second, j, positive = draw(directed=True)
    assert (first[positive] == second[positive]).all()
    inner = positive & (i <= 45)  # the window is cut short at the end of the walk
    counts = np.bincount(j[inner] - i[inner])
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_every_earlier_state_of_the_walk_is_a_directed_negative():
    first, i, second, j, positive = draw(directed=True)
    inside = ~positive & (first == second) & (i == 20)
    seen = set(j[inside])
    assert set(range(20)) <= seen
    # States of the window appear only through the draw over all trajectories: 1/40 of them.
    counts = np.bincount(j[inside], minlength=51)
    assert counts[21:26].mean() < 0.2 * counts[:20].mean()


def test_undirected_pairs_look_both_ways():
    _, i, _, j, positive = draw(directed=False)
    assert (np.abs(i - j)[positive] <= 5).all()
    assert (
        stats.binomtest(int((i < j)[positive].sum()), int((i != j)[positive].sum())).pvalue > 1e-3
    )


def test_a_window_as_long_as_the_walk_leaves_negatives_from_other_walks_only():
    sampler = PairSampler(50, True, 0.5, 1.0)
    _, i, _, _, positive = sampler.draw(np.random.default_rng(0), np.arange(4), 10, 1000)
    assert (~positive & (i == 0)).any()


@pytest.mark.parametrize("directed", [True, False])
def test_trajectories_of_unequal_length_are_drawn_within_their_bounds(directed):
    steps = np.array([3, 50, 1, 20])
    sampler = PairSampler(5, directed, 0.5, 0.5)
    ids = np.array([0, 1, 3])
    first, i, second, j, positive = sampler.draw(np.random.default_rng(0), ids, steps, 100_000)
    assert set(first) == set(second) == {0, 1, 3}
    assert (i <= steps[first]).all()
    assert (j <= steps[second]).all()
    for trajectory in (0, 1, 3):
        # The first states of trajectories are uniform, whatever the length.
        counts = np.bincount(i[first == trajectory] if directed else j[second == trajectory])
        assert len(counts) == steps[trajectory] + 1
        if directed:
            assert stats.chisquare(counts).pvalue > 1e-3
    assert (first[positive] == second[positive]).all()
    assert (np.abs(i - j)[positive] <= 5).all()


def test_one_length_for_all_is_the_same_as_each_its_own():
    sampler = PairSampler(5, True, 0.5, 0.5)
    one = sampler.draw(np.random.default_rng(0), np.arange(7), 30, 1000)
    each = sampler.draw(np.random.default_rng(0), np.arange(7), np.full(7, 30), 1000)
    for left, right in zip(one, each, strict=True):
        np.testing.assert_array_equal(left, right)
