import datetime
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from farreach.learn.place import Place

CALLS = (5, 1)  # of each worker, which may differ
INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A part that is called by itself, with a stack of layers inside."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)])
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.part(x))


def results(place, calls):
    """What the part gives, and gradients of a pass before that and of one after it."""
    torch.manual_seed(0)
    net = Net()
    place.split(net)
    net(INPUTS).square().sum().backward()
    with torch.no_grad(), place.in_one_piece(net):
        found = [net.part(INPUTS) for _ in range(calls)]
    net(INPUTS).square().sum().backward()
    gradients = [p.grad.full_tensor() if place.sharded else p.grad for p in net.parameters()]
    sharded = [type(p).__name__ for p in net.parameters()]
    return found, gradients, sharded


def test_in_one_piece_workers_may_call_as_often_as_each_likes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, str(Path(__file__))]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), port, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(90) for rank in ranks] == [0, 0]
    (expected, *_), gradients, _ = results(Place(), 1)
    for rank, calls in enumerate(CALLS):
        found, theirs, kinds = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == calls
        for one in found:
            torch.testing.assert_close(one, expected)
        for mine, yours in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(yours, mine)
        assert set(kinds) == {"DTensor"}  # split again


if __name__ == "__main__":
    rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    torch.save(results(Place(rank, 2, sharded=True), CALLS[rank]), f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
