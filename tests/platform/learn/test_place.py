from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from farreach.learn.place import Place, is_split, layers
from farreach.testing.ranks import as_rank, several

CALLS = (5, 1)  # of each worker, which may differ
INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Stage(nn.Module):
    """A stack of two layers with a name of their own, as in RegNets."""

    def __init__(self):
        super().__init__()
        self.b1, self.b2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.b2(self.b1(x))


class Net(nn.Module):
    """A part that is called by itself, with stacks of layers inside."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(Stage(), Stage(), Stage())
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
    return found, gradients, sharded, sum(is_split(module) for module in net.modules())


def test_in_one_piece_workers_may_call_as_often_as_each_likes(tmp_path):
    of_ranks = several(Path(__file__), 2, tmp_path)
    (expected, *_), gradients, *_ = results(Place(), 1)
    for calls, (found, theirs, kinds, units) in zip(CALLS, of_ranks, strict=True):
        assert len(found) == calls
        for one in found:
            torch.testing.assert_close(one, expected)
        for mine, yours in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(yours, mine)
        assert set(kinds) == {"DTensor"}  # split again
        assert units == 1 + 3 + 6  # all, stages and their layers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("regnety_640", "Bottleneck"),
        ("resnet50", "Bottleneck"),
        ("vit_base_patch16_224", "Block"),
        ("xcit_small_12_p16_224", "XCABlock"),
        ("resmlp_24_224", "ResBlock"),
    ],
)
def test_networks_are_gathered_block_by_block(name, kind):
    with torch.device("meta"):
        model = timm.create_model(name)
    inside = {id(p): p.numel() for layer in layers(model) for p in layer.parameters()}
    assert sum(inside.values()) > 0.9 * sum(p.numel() for p in model.parameters())
    assert kind in {type(layer).__name__ for layer in layers(model)}


if __name__ == "__main__":
    as_rank(lambda rank, world, words: results(Place(rank, world, sharded=True), CALLS[rank]))
