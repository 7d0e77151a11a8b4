from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils.checkpoint import checkpoint

from farreach.learn.collectives import (
    BatchNorm1d,
    count_statistics_once,
    gathered,
    summed,
    total,
    workers,
)
from farreach.learn.place import Place
from farreach.testing.ranks import as_rank, several

ROWS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


def results(rows, whole):
    """Of a mean over all rows, and of batch normalisation, with their gradients."""
    torch.manual_seed(0)
    layer = BatchNorm1d(5)
    nn.init.normal_(layer.weight)
    x = rows.clone().requires_grad_()
    mean = summed(x.mean(0)) / workers()
    y = layer(x)
    loss = mean.square().sum() + (y.sin() * torch.arange(1.0, 6.0)).sum() / whole * workers()
    everyone = gathered(x)  # of which each worker computes the same
    loss = loss + (everyone.flip(0) * everyone.cumsum(0)).sin().mean()
    loss.backward()
    parameters = torch.stack([layer.weight.grad, layer.bias.grad])
    # The loop averages over workers.
    return {
        "x": x.grad / workers(),
        "parameters": total(parameters) / workers(),
        "y": y.detach(),
        "running": torch.stack([layer.running_mean, layer.running_var]),
        "eval": layer.eval()(rows).detach(),
    }


def test_alone_they_are_nothing_and_pytorchs_own():
    assert workers() == 1
    x = torch.ones(3, requires_grad=True)
    assert summed(x) is x
    assert gathered(x) is x
    layer, own = BatchNorm1d(5), nn.BatchNorm1d(5)
    torch.testing.assert_close(layer(ROWS), own(ROWS))
    torch.testing.assert_close(layer.running_var, own.running_var)


def test_several_workers_are_as_one_with_all_rows(tmp_path):
    one = results(ROWS, len(ROWS))
    found = several(Path(__file__), 3, tmp_path)
    for name in ("x", "y", "eval"):
        torch.testing.assert_close(torch.cat([part[name] for part in found]), one[name])
    for part in found:
        torch.testing.assert_close(part["parameters"], one["parameters"])
        torch.testing.assert_close(part["running"], one["running"])


class Recomputing(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), norm)

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False)


@pytest.mark.parametrize("device", [None, "cpu", "cuda"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_statistics_of_what_is_computed_twice_are_counted_once_on_every_device(norm, device):
    torch.manual_seed(0)
    model = Recomputing(norm(4))
    count_statistics_once(model)
    if device is not None:
        Place(world=2, device=torch.device(device)).join_statistics(model)
    model(torch.full((2, 3, 6, 6), 2.0)).sum().backward()
    layer = model.layers[1]
    assert int(layer.num_batches_tracked) == 1
    expected = 0.1 * model.layers[0](torch.full((1, 3, 6, 6), 2.0)).mean((0, 2, 3))
    torch.testing.assert_close(layer.running_mean, expected.detach())


if __name__ == "__main__":
    as_rank(lambda rank, world, words: results(ROWS[4 * rank : 4 * rank + 4], len(ROWS)))
