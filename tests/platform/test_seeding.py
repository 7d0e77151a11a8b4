import os
import subprocess
import sys

import numpy as np
import pytest

from farreach.seeding import child_seed, generator


def test_a_child_seed_is_the_first_eight_bytes_of_a_digest_without_the_lowest_bit():
    # printf '0/rollout/0' | sha256sum → 9f6e638a12ad925d…, lowest byte first
    little_endian = bytes.fromhex("9f6e638a12ad925d")[::-1]
    assert child_seed(0, "rollout") == int(little_endian.hex(), 16) // 2


def test_each_argument_changes_the_seed():
    seeds = {
        child_seed(root, name, index)
        for root in (0, 1, 10)
        for name in ("rollout", "learner", "1/rollout")
        for index in (0, 1, 10)
    }
    assert len(seeds) == 27


@pytest.mark.parametrize("root", [0, 1, 2**62])
def test_seeds_fit_into_63_bits(root):
    for index in range(200):
        assert 0 <= child_seed(root, "any", index) < 2**63


def test_another_process_with_another_hash_seed_gets_the_same_seed():
    code = "from farreach.seeding import child_seed; print(child_seed(7, 'walk', 3))"
    path = os.pathsep.join(sys.path)
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed}
        answer = subprocess.check_output([sys.executable, "-c", code], env=environment)
        assert int(answer) == child_seed(7, "walk", 3)


def test_generators_of_one_name_agree_and_those_of_others_do_not():
    draws = generator(3, "walk", 1).random(8)
    np.testing.assert_array_equal(generator(3, "walk", 1).random(8), draws)
    for other in (generator(4, "walk", 1), generator(3, "goal", 1), generator(3, "walk", 2)):
        assert not np.any(other.random(8) == draws)


def test_streams_of_neighbouring_indices_are_not_correlated():
    draws = np.stack([generator(0, "rollout", index).normal(size=2000) for index in range(20)])
    correlations = np.corrcoef(draws)[~np.eye(20, dtype=bool)]  # of 190 pairs, each twice
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)  # five standard errors
