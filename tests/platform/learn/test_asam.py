import copy

import pytest
import torch
from torch import nn

from farreach.learn.asam import Asam


def quadratic(weights):
    return (0.5 * torch.tensor([1.0, 4.0]) * weights.square()).sum()


def test_a_step_has_the_gradient_of_where_the_loss_is_highest_nearby():
    """Of w = (2, 1), η = 0: T = (2, 1), g = (2, 4), T g = (4, 4) of length √32.

    ε = ρ T² g / ‖T g‖ = ρ (8, 4) / √32; the gradient there is (2 + 8 ρ/√32, 4 (1 + 4 ρ/√32)).
    """
    weights = nn.Parameter(torch.tensor([2.0, 1.0]))
    optimizer = Asam(torch.optim.SGD([weights], lr=0.1), radius=0.5, floor=0.0)
    quadratic(weights).backward()
    optimizer.ascend()
    far = 0.5 / 32**0.5
    torch.testing.assert_close(weights.data, torch.tensor([2 + 8 * far, 1 + 4 * far]))
    optimizer.zero_grad()
    quadratic(weights).backward()
    optimizer.step()
    expected = torch.tensor([2 - 0.1 * (2 + 8 * far), 1 - 0.1 * 4 * (1 + 4 * far)])
    torch.testing.assert_close(weights.data, expected)


def test_the_floor_lets_a_weight_of_zero_move():
    """T = η = 0.01, g = 3: ε = ρ η² g / (η g) = ρ η."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Asam(torch.optim.SGD([weight], lr=0.1), radius=0.5, floor=0.01)
    weight.grad = torch.tensor([3.0])
    optimizer.ascend()
    assert float(weight.detach()) == pytest.approx(0.5 * 0.01)


def test_scaling_two_layers_against_one_another_changes_nothing():
    """What ASAM is for: with η = 0 the neighbourhood scales with the weights (theorem 1)."""
    losses = []
    for scale in (1.0, 7.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
        with torch.no_grad():
            net[0].weight.mul_(scale)
            net[1].weight.div_(scale)
        x = torch.randn(5, 3, dtype=torch.float64)
        optimizer = Asam(torch.optim.SGD(net.parameters(), lr=0.1), radius=0.3, floor=0.0)
        net(x).square().sum().backward()
        optimizer.ascend()
        losses.append(net(x).square().sum().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_its_state_is_that_of_the_optimizer_inside():
    weights = nn.Parameter(torch.ones(2))
    optimizer = Asam(torch.optim.AdamW([weights], lr=0.1), radius=0.5, floor=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        quadratic(weights).backward()
        optimizer.ascend()
        optimizer.zero_grad()
        quadratic(weights).backward()
        optimizer.step()
    again = nn.Parameter(weights.detach().clone())
    other = Asam(torch.optim.AdamW([again], lr=0.5), radius=0.5, floor=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.1
    for one, parameter in ((optimizer, weights), (other, again)):
        one.zero_grad()
        quadratic(parameter).backward()
        one.step()
    torch.testing.assert_close(weights.data, again.data, rtol=0, atol=0)
