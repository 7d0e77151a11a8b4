"""The hidden prior of MSN, and what another one does (PMSN, arXiv:2210.07277), on vectors."""

import sys
from pathlib import Path

import pytest
import torch

from farreach_workloads.vision.selfsup.assignments import cross_entropy, divergence, power_law

sys.path.insert(0, str(Path(__file__).parent))
from vectors import trained

TAIL = [(rank + 1.0) ** -2 for rank in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_batches_of_two_classes_lose_the_class(seed):
    """All prototypes stay in use, and the loss looks healthy."""
    whole = trained(seed)
    stratified = trained(seed, classes_per_batch=2)
    assert whole["score"] >= 0.8
    assert stratified["score"] <= 0.2
    assert stratified["used"] == 10
    assert stratified["divergence"] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.25, 0.5])
def test_the_mean_assignment_follows_the_prior(exponent):
    found = trained(0, shares=TAIL, exponent=exponent)
    assert found["divergence"] < 0.05
    assert found["used"] >= 9


def test_without_an_exponent_it_is_msn():
    logits = torch.randn(20, 7)
    target = torch.randn(10, 7).softmax(1)
    uniform, power = power_law(7, 0), power_law(7, 1e-9)
    torch.testing.assert_close(uniform, torch.full((7,), 1 / 7))
    torch.testing.assert_close(divergence(logits, 0.1, uniform), divergence(logits, 0.1, power))
    assert torch.isfinite(cross_entropy(target, logits, 0.1))
