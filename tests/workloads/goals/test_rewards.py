import numpy as np
import pytest

from farreach_workloads.goals import rewards


def test_graph_reward_is_scale_times_minus_hops_plus_sigmoid_minus_one():
    # σ(0) = 1/2; σ(ln 3) = 3/4: 0.1 × (-2 + 1/2 - 1) = -0.25 and 0.1 × (0 + 3/4 - 1) = -0.025.
    hops, logits = np.array([2, 0], np.int16), np.array([0.0, np.log(3)])
    np.testing.assert_allclose(rewards.graph_reward(hops, logits, 0.1), [-0.25, -0.025], rtol=1e-6)
    np.testing.assert_allclose(rewards.graph_reward(hops, None, 0.1), [-0.2, 0.0])


def test_temperature_flattens_the_sigmoid():
    # σ(2 ln 3 / 2) = 3/4.
    value = rewards.reachability_reward(np.array([2 * np.log(3)]), 2.0, temperature=2.0)
    assert value[0] == pytest.approx(2 * (0.75 - 1))


def test_sigmoid_survives_large_logits():
    np.testing.assert_allclose(rewards.sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


def test_the_sparse_reward_is_zero_only_within_the_threshold():
    reward = rewards.sparse_reward(np.array([0.99, 1.0, 5.0]), 1.0)
    assert reward.tolist() == [0.0, -1.0, -1.0]
