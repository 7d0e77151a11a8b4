import math

import pytest
import torch
from torch import nn

from farreach.learn.larc import Larc


def parameter_with(values, gradient):
    parameter = nn.Parameter(torch.tensor(values))
    parameter.grad = torch.tensor(gradient)
    return parameter


def test_the_ratio_of_the_notes_example():
    """‖p‖ = 10, ‖g‖ = 0.5 and λ = 1e-5 give r = 0.019996."""
    parameter = parameter_with([6.0, 8.0], [0.3, 0.4])
    Larc([parameter], lr=1.0, weight_decay=1e-5).step()
    # p - r (g + λ p), with both in the same direction.
    expected = [v - 0.019996 * (g + 1e-5 * v) for v, g in ((6.0, 0.3), (8.0, 0.4))]
    assert parameter.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_second_step_goes_on_with_nine_tenths_of_the_first():
    parameter = parameter_with([3.0, 4.0], [0.0, 1.0])
    optimizer = Larc([parameter], lr=2.0, trust=0.1)
    optimizer.step()  # r = 0.1 · 5 / 1, so that v = (0, 0.5) and p = (3, 3)
    assert parameter.tolist() == pytest.approx([3.0, 3.0])
    optimizer.step()  # r = 0.1 · √18, v = 0.45 + r
    assert parameter.tolist() == pytest.approx([3.0, 3.0 - 2 * (0.45 + 0.1 * math.sqrt(18))])


def test_where_the_weights_are_zero_the_gradient_counts_alone():
    zero = parameter_with([0.0], [3.0])
    Larc([zero], lr=0.1, weight_decay=0.5).step()
    assert zero.tolist() == pytest.approx([-0.3])


def test_groups_that_do_not_adapt_are_sgd():
    ours, theirs = parameter_with([1.0, 2.0], [0.5, -1.0]), parameter_with([1.0, 2.0], [0.5, -1.0])
    own = Larc([{"params": [ours], "adapts": False}], lr=0.1, weight_decay=0.2)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        own.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_parameters_without_a_gradient_stay():
    frozen = nn.Parameter(torch.ones(2))
    Larc([frozen], lr=1.0).step()
    assert frozen.tolist() == [1.0, 1.0]
