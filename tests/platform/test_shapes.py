import numpy as np
import pytest
import torch

from farreach.shapes import expect_shape


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
@pytest.mark.parametrize(
    ("found", "expected"),
    [((), ()), ((3,), (3,)), ((3, 0), (3, None)), ((2, 3, 4), (None, 3, None))],
)
def test_a_fitting_shape_passes(make, found, expected):
    expect_shape(make(found), expected, "x")


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        ((3, 2), (3, 4), r"goals: expected shape \(3, 4\), found \(3, 2\)\.$"),
        ((3,), (3, None), r"goals: expected shape \(3, any\), found \(3,\)\.$"),
        ((3, 1), (3,), r"goals: expected shape \(3,\), found \(3, 1\)\.$"),
        ((1,), (), r"goals: expected shape \(\), found \(1,\)\.$"),
    ],
)
def test_another_shape_is_refused_with_both_shapes(make, found, expected, message):
    with pytest.raises(ValueError, match=message):
        expect_shape(make(found), expected, "goals")
