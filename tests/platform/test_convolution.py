import pytest
import torch
from torch import nn
from torch.nn import functional as F

from farreach.convolution import gelu_convolution


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


LAYERS = {
    "by channel": {"kernel_size": 3, "padding": 1, "groups": 12},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "same": {"kernel_size": 3, "padding": "same"},
}


@pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_gelu_of_the_convolution(arguments, by_token, kind):
    layer = nn.Conv2d(12, 12, **arguments).to(kind)
    x = normal(2, 12, 6, 5).to(kind)
    x = x.contiguous(memory_format=torch.channels_last) if by_token else x
    with torch.inference_mode():
        torch.testing.assert_close(gelu_convolution(layer, x), F.gelu(layer(x)))


def test_gradients_are_those_of_both():
    layer = nn.Conv2d(12, 12, 3, padding=1, groups=12).double()
    assert torch.autograd.gradcheck(
        lambda x: gelu_convolution(layer, x), normal(1, 12, 3, 4).double().requires_grad_()
    )


def test_autocast_multiplies_in_its_own_type():
    layer = nn.Conv2d(4, 4, 3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert gelu_convolution(layer, normal(1, 4, 5, 5)).dtype == torch.bfloat16


def test_it_can_be_compiled_and_exported():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return gelu_convolution(self.layer, x)

    network, x = Network().eval(), normal(1, 4, 5, 5)
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(torch.compile(network, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), expected)
