from pathlib import Path

import torch
from torch import nn

from farreach.learn.place import Place
from farreach.testing.ranks import as_rank, several

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
    of_ranks = several(Path(__file__), 2, tmp_path)
    (expected, *_), gradients, _ = results(Place(), 1)
    for calls, (found, theirs, kinds) in zip(CALLS, of_ranks, strict=True):
        assert len(found) == calls
        for one in found:
            torch.testing.assert_close(one, expected)
        for mine, yours in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(yours, mine)
        assert set(kinds) == {"DTensor"}  # split again


if __name__ == "__main__":
    as_rank(lambda rank, world, words: results(Place(rank, world, sharded=True), CALLS[rank]))
