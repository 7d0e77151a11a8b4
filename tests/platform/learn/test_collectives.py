from pathlib import Path

import torch
from torch import nn

from farreach.learn.collectives import BatchNorm1d, gathered, summed, total, workers
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


if __name__ == "__main__":
    as_rank(lambda rank, world, words: results(ROWS[4 * rank : 4 * rank + 4], len(ROWS)))
