import pytest
import torch
from torch import nn
from torch.nn import functional as F

from farreach import linear as linear_module
from farreach.linear import (
    Linear,
    activated_linear,
    batched,
    gelu_linear,
    gram,
    product,
    use_fast_linear,
    weight_gradient,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["intel", "other", "small"], autouse=True)
def whose_products(request, monkeypatch):
    """Intel's CPUs have another library for most products, and so have small ones on all."""
    monkeypatch.setattr(linear_module, "_IS_INTEL", request.param == "intel")
    monkeypatch.setattr(linear_module, "_MKL_IS_NEAR", request.param != "other")
    if request.param != "small":
        monkeypatch.setattr(linear_module, "_LEAST_PRODUCT", 0)


@pytest.mark.parametrize("activation", ["none", "relu", "tanh", "gelu"])
@pytest.mark.parametrize(("before", "after"), [(40, 24), (24, 40), (5, 1)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_product_equals_pytorchs_linear(activation, before, after, with_bias):
    inputs, weight = normal(33, before), normal(after, before, seed=1)
    bias = normal(after, seed=2) if with_bias else None
    expected = F.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    if activation != "none":
        expected = getattr(F, activation)(expected)
    found = product(inputs, weight, bias, activation)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_product_takes_transposes():
    inputs, weight = normal(40, 33).t(), normal(40, 24, seed=1).t()
    torch.testing.assert_close(product(inputs, weight), inputs @ weight.t())


@pytest.mark.parametrize(("before", "after"), [(7, 24), (24, 7)])
def test_weight_gradient_equals_the_outer_products(before, after):
    inputs, gradient = normal(33, before), normal(33, after, seed=1)
    expected = torch.einsum("no,ni->oi", gradient, inputs)
    torch.testing.assert_close(weight_gradient(inputs, gradient), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(33, 6), (4, 5, 6), (6,), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients_equal_pytorchs(shape, bias):
    ours, theirs = Linear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        inputs = normal(*shape).requires_grad_()
        output = layer(inputs)
        (output * normal(*output.shape, seed=3)).sum().backward()
        results.append([output, inputs.grad, *(p.grad for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_inputs_without_gradients_get_none():
    layer, inputs = Linear(6, 4), normal(3, 6)
    layer(inputs).sum().backward()
    assert inputs.grad is None
    torch.testing.assert_close(layer.weight.grad, inputs.sum(0).expand(4, 6))


def test_other_types_and_autocast_go_the_ordinary_way():
    layer = Linear(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(normal(3, 6)).dtype == torch.bfloat16
    assert layer.double()(normal(3, 6).double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(33, 6), (2, 5, 6)])
def test_an_activated_layer_is_the_activation_of_the_layer(shape):
    layer, inputs = nn.Linear(6, 4), normal(*shape)
    with torch.no_grad():
        found = activated_linear(inputs, layer.weight, layer.bias, "gelu")
        torch.testing.assert_close(found, F.gelu(layer(inputs)))
        with torch.autocast("cpu", torch.bfloat16):
            assert (
                activated_linear(inputs, layer.weight, layer.bias, "relu").dtype == torch.bfloat16
            )


@pytest.mark.parametrize("rows", [4, 200])
@pytest.mark.parametrize("layout", ["plain", "transposed", "strided"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_batched_products_and_their_gradients_equal_pytorchs(rows, layout, with_bias):
    def inputs():
        a, b = normal(3, rows, 80), normal(3, 80, 90, seed=1)
        if layout == "transposed":
            a, b = normal(3, 80, rows).transpose(1, 2), normal(3, 90, 80, seed=1).transpose(1, 2)
        if layout == "strided":
            a, b = normal(3, rows, 160)[:, :, ::2], normal(3, 80, 180, seed=1)[:, :, ::2]
        bias = [normal(3, 90, seed=2)] if with_bias else []
        return [part.detach().requires_grad_() for part in (a, b, *bias)]

    def plain(a, b, bias=None):
        return torch.bmm(a, b) if bias is None else torch.bmm(a, b) + bias[:, None]

    results = []
    for multiply in (batched, plain):
        leaves = inputs()
        output = multiply(*leaves)
        (output * normal(*output.shape, seed=3)).sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 47, 96, 130, 192, 250])
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_gram_matrices_and_their_gradients_equal_pytorchs(width, batch, kind):
    x = normal(batch, 70, width).to(kind)
    outer = normal(batch, width, width, seed=1).to(kind)
    results = []
    for multiply in (gram, lambda x: torch.einsum("bni,bnj->bij", x, x)):
        leaf = x.clone().requires_grad_()
        output = multiply(leaf)
        (output * outer).sum().backward()
        results.append([output, leaf.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_gradients_of_gram_matrices_can_be_multiplied_in_bfloat16():
    x, outer = normal(2, 70, 96), normal(2, 96, 96, seed=1)
    leaf = x.clone().requires_grad_()
    output = gram(leaf, torch.bfloat16)
    torch.testing.assert_close(output, torch.einsum("bni,bnj->bij", x, x), atol=1e-4, rtol=1e-5)
    (output * outer).sum().backward()
    halves = x.bfloat16().double(), (outer + outer.transpose(1, 2)).bfloat16().double()
    torch.testing.assert_close(leaf.grad.double(), torch.bmm(*halves), atol=0.02, rtol=2**-8)
    assert not torch.equal(leaf.grad, torch.bmm(x, outer + outer.transpose(1, 2)))


def test_a_compiled_model_gives_the_same():
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    inputs = normal(5, 6)
    expected = model(inputs)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    use_fast_linear(model)
    model.zero_grad()
    found = torch.compile(model, backend="aot_eager")(inputs)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_layers_become_fast_ones_and_keep_their_parameters():
    model = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 4)))
    before = {name: id(p) for name, p in model.named_parameters()}
    use_fast_linear(model)
    assert [type(m) for m in model.modules() if isinstance(m, nn.Linear)] == [Linear, Linear]
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("shape", [(33, 24), (3, 5, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gelu_linear_has_the_value_and_gradients_of_both_layers(shape, with_bias):
    inputs, weight, bias = normal(*shape), normal(10, 24, seed=1), normal(10, seed=2)
    found, expected = [], []
    for function, into in ((gelu_linear, found), (None, expected)):
        leaves = [x.clone().requires_grad_() for x in (inputs, weight, bias)]
        x, w, b = leaves[0], leaves[1], leaves[2] if with_bias else None
        if function is None:
            y = F.linear(F.gelu(x.double()), w.double(), None if b is None else b.double())
        else:
            y = function(x, w, b)
        (y.double() * torch.arange(10.0, dtype=torch.float64)).sin().sum().backward()
        into += [y.detach().double(), *[leaf.grad for leaf in leaves[: 2 + with_bias]]]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


def test_gelu_linear_keeps_its_inputs_alone():
    inputs = normal(64, 32).requires_grad_()
    weight = normal(16, 32, seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        gelu_linear(inputs, weight)
    assert sorted(map(tuple, kept)) == [(16, 32), (64, 32)]
