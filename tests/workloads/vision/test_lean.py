import pytest
import torch
from timm.layers import ConvNormAct
from timm.layers.squeeze_excite import SEModule
from torch import nn

from farreach_workloads.vision.lean import gated, strided


def parts(**of_the_gate):
    torch.manual_seed(0)
    squeeze = SEModule(6, rd_channels=3, **of_the_gate)
    return nn.ModuleList([squeeze, ConvNormAct(6, 5, kernel_size=1, apply_act=False)]).double()


def result_and_gradients(modules, x, function):
    modules.zero_grad()
    x = x.clone().requires_grad_()
    z = function(x)
    (z.sin() * torch.arange(z.numel()).reshape(z.shape)).sum().backward()
    return [z, x.grad, *(p.grad for p in modules.parameters())]


def kept(function):
    """Shapes of what a forward pass keeps."""
    shapes = []

    def keep(tensor):
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return shapes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{}, {"add_maxpool": True}])
def test_a_gate_and_a_convolution_give_what_they_give_one_by_one(layout, options):
    both = parts(**options).to(memory_format=layout)
    squeeze, after = both
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64).contiguous(memory_format=layout)
    ours = result_and_gradients(both, x, lambda x: gated(squeeze, after, x))
    plain = result_and_gradients(both, x, lambda x: after(squeeze(x)))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gated_activations_are_not_kept():
    squeeze, after = parts()
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    plain, lean = kept(lambda: after(squeeze(x))), kept(lambda: gated(squeeze, after, x))
    assert plain.count(x.shape) == lean.count(x.shape) + 1


def test_under_autocast_a_gate_computes_in_the_precision_of_the_plain_one():
    squeeze, after = both = parts().float()
    x = torch.randn(4, 6, 5, 5)
    results = []
    for function in (lambda x: gated(squeeze, after, x), lambda x: after(squeeze(x))):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(result_and_gradients(both, x, function))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one, other, atol=0.02 * float(other.detach().abs().max()), rtol=0.02
        )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (1, 1), (3, 2)])
def test_a_strided_shortcut_gives_what_it_gives(layout, kernel, stride):
    shortcut = ConvNormAct(6, 5, kernel, stride, apply_act=False).double().to(memory_format=layout)
    x = torch.randn(4, 6, 7, 8, dtype=torch.float64).contiguous(memory_format=layout)
    ours = result_and_gradients(shortcut, x, lambda x: strided(shortcut, x))
    plain = result_and_gradients(shortcut, x, shortcut)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)
    wide = x.requires_grad_()
    ours, plain = kept(lambda: strided(shortcut, wide)), kept(lambda: shortcut(wide))
    assert (x.shape in ours) == (kernel > 1 or stride == 1)
    assert x.shape in plain
    assert strided(nn.Identity(), x) is x
