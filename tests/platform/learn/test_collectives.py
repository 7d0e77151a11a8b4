import datetime
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from farreach.learn.collectives import BatchNorm1d, gathered, summed, total, workers

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, str(Path(__file__))]
    ranks = [subprocess.Popen([*program, str(rank), port, str(tmp_path)]) for rank in range(3)]
    assert [rank.wait(60) for rank in ranks] == [0, 0, 0]
    one = results(ROWS, len(ROWS))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for name in ("x", "y", "eval"):
        torch.testing.assert_close(torch.cat([part[name] for part in found]), one[name])
    for part in found:
        torch.testing.assert_close(part["parameters"], one["parameters"])
        torch.testing.assert_close(part["running"], one["running"])


if __name__ == "__main__":
    rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=3,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(results(ROWS[4 * rank : 4 * rank + 4], len(ROWS)), f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
