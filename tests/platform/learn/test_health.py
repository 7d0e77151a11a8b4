import math

import pytest
import torch

from farreach.learn.health import effective_rank


def test_the_effective_rank_counts_directions():
    assert effective_rank(torch.eye(6)) == pytest.approx(6, rel=1e-3)
    assert effective_rank(torch.ones(50, 1) @ torch.randn(1, 8)) == pytest.approx(1, rel=1e-3)
    # Two directions with shares of 3/4 and 1/4.
    lopsided = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(lopsided) == pytest.approx(math.exp(entropy), rel=1e-3)
