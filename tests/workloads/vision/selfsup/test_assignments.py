import math

import pytest
import torch

from farreach_workloads.vision.selfsup.assignments import (
    balanced,
    constant_output_loss,
    cosines,
    cross_entropy,
    divergence,
    power_law,
    targets,
)

TAU, TARGET_TAU = 0.1, 0.025


def at(*degrees):
    """Two-dimensional embeddings of any length, by their angle."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    lengths = torch.arange(1, len(degrees) + 1)[:, None]
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths


PROTOTYPES = at(0, 30, 70)
ANCHORS = cosines(at(10, 45), PROTOTYPES)
TARGETS = cosines(at(20, 60), PROTOTYPES)
close = {"atol": 2e-6, "rtol": 0}


def table(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_assignments_worked_by_hand():
    """Prototypes at 0, 30 and 70 degrees, anchors at 10 and 45, targets at 20 and 60."""
    p = (ANCHORS / TAU).softmax(1)
    expected = table((0.608000, 0.387232, 0.004769), (0.046219, 0.614981, 0.338800))
    torch.testing.assert_close(p, expected, **close)
    t = targets(TARGETS, TARGET_TAU)
    expected = table((0.141291, 0.858708, 0.000001), (0.000000, 0.008566, 0.991434))
    torch.testing.assert_close(t, expected, **close)
    # The same as sharpening the softmax at 0.1 by the power 4.
    wide = (TARGETS / TAU).softmax(1) ** 4
    torch.testing.assert_close(t, wide / wide.sum(1, keepdim=True), **close)


def test_losses_worked_by_hand():
    t = targets(TARGETS, TARGET_TAU)
    assert float(cross_entropy(t, ANCHORS, TAU)) == pytest.approx(0.981115, abs=2e-6)
    one = cross_entropy(t[:1], ANCHORS[:1], TAU)
    assert float(one) == pytest.approx(0.884993, abs=2e-6)
    uniform = float(divergence(ANCHORS, TAU, power_law(3, 0)))
    assert uniform == pytest.approx(math.log(3) - 1.014366, abs=2e-6)
    # Prediction first, prior second: reversed it would be 0.075656 and 0.123313.
    assert float(divergence(ANCHORS, TAU, power_law(3, 0.25))) == pytest.approx(0.075443, abs=2e-6)
    assert float(divergence(ANCHORS, TAU, power_law(3, 1))) == pytest.approx(0.127835, abs=2e-6)


def test_views_of_an_image_share_its_target():
    """View-major: two views of two images are rows 0, 1 and 2, 3."""
    t = targets(TARGETS, TARGET_TAU)
    views = torch.cat([ANCHORS, ANCHORS.flip(1)])
    expected = (cross_entropy(t, ANCHORS, TAU) + cross_entropy(t, ANCHORS.flip(1), TAU)) / 2
    torch.testing.assert_close(cross_entropy(t, views, TAU), expected)
    other = cross_entropy(t, views[[0, 2, 1, 3]], TAU)
    assert float((other - expected).abs()) > 0.01


ROWS = table((0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.5, 0.1, 0.4), (0.8, 0.1, 0.1))


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [
        (
            0.0,
            table(
                (0.368672, 0.409311, 0.222018),
                (0.274312, 0.532962, 0.192726),
                (0.194192, 0.150919, 0.654889),
                (0.496855, 0.241336, 0.261810),
            ),
        ),
        (
            0.25,
            table(
                (0.421350, 0.391972, 0.186678),
                (0.317978, 0.517663, 0.164359),
                (0.241999, 0.157588, 0.600413),
                (0.557208, 0.226782, 0.216010),
            ),
        ),
    ],
)
def test_three_iterations_of_sinkhorn_worked_by_hand(exponent, expected):
    torch.testing.assert_close(balanced(ROWS, power_law(3, exponent)), expected, **close)


def test_many_iterations_reach_the_prior():
    prior = power_law(3, 1.0)
    q = balanced(ROWS, prior, iterations=200)
    torch.testing.assert_close(q.mean(0), prior, atol=1e-5, rtol=0)
    torch.testing.assert_close(q.sum(1), torch.ones(4))


def test_the_prior_falls_as_a_power():
    prior = power_law(1024, 0.25)
    assert float(prior.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(prior[0] * 1024) == pytest.approx(4.255, abs=1e-3)
    assert float(prior[-1] * 1024) == pytest.approx(0.752, abs=1e-3)
    entropy = -float((prior * prior.log()).sum())
    assert math.log(1024) - entropy == pytest.approx(0.0420, abs=1e-4)
    torch.testing.assert_close(power_law(3, 1.0), torch.tensor([6.0, 3.0, 2.0]) / 11)


@pytest.mark.parametrize(
    ("count", "exponent", "expected"),
    [(10, 0.0, 2.303), (10, 1.0, 1.138), (64, 0.5, 2.944), (1024, 0.25, 6.281), (1024, 2, 0.503)],
)
def test_a_skewed_prior_has_a_cheap_collapse(count, exponent, expected):
    assert constant_output_loss(power_law(count, exponent), 0.25) == pytest.approx(
        expected, abs=1e-3
    )


def test_gradients_flow_through_anchors_alone():
    anchors = at(10, 45).float().requires_grad_()
    prototypes = PROTOTYPES.float().requires_grad_()
    t = targets(cosines(at(20, 60), prototypes), TARGET_TAU)
    assert not t.requires_grad
    loss = cross_entropy(t, cosines(anchors, prototypes), TAU)
    loss.backward()
    # Lengths do not count: the gradient is at right angles to the embedding.
    along = (anchors.grad * anchors.detach()).sum(1)
    torch.testing.assert_close(along, torch.zeros(2), atol=1e-6, rtol=0)
    assert float(prototypes.grad.abs().sum()) > 0
