import pytest
import timm
import torch
from timm.models.cait import ClassAttn
from timm.models.xcit import XCA

from farreach_workloads.vision.backbones import channel_attention
from farreach_workloads.vision.backbones.class_attention import attend, attend_with_weights
from farreach_workloads.vision.backbones.xcit import SIZES, Xca, adapt_weights, cheaper_form


def scattered(model, seed=0):
    """Off the start, where scales of 1e-5 and statistics of 0 and 1 hide differences."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


@pytest.fixture(params=["images", "heads", "parts", "gram"])
def form(request, monkeypatch):
    """The two forms, the first in its three ways."""
    always, never = 0, 1 << 30
    way = request.param
    monkeypatch.setattr(channel_attention, "_LEAST", never if way == "heads" else always)
    monkeypatch.setattr(channel_attention, "_FEWEST_TOKENS", never if way == "parts" else always)
    return "gram" if way == "gram" else "late"


def pair(size, patch, **arguments):
    """Ours and timm's with the same weights, shortened to four blocks."""
    theirs = scattered(timm.create_model(f"xcit_{size}_p{patch}_224", depth=4, **arguments))
    ours = timm.create_model(f"xcit_{size}_p{patch}", depth=4, **arguments)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("patch", [16, 8])
@pytest.mark.parametrize("size", SIZES)
def test_logits_and_gradients_equal_timms(size, patch):
    ours, theirs = pair(size, patch, num_classes=10)
    x = torch.randn(2, 3, 160, 96, generator=torch.Generator().manual_seed(0))
    found, expected = ours.eval()(x), theirs.eval()(x)
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-5 * scale
    with torch.no_grad():
        assert (ours(x) - expected).abs().max() <= 1e-5 * scale
    for logits in (found, expected):
        logits.square().sum().backward()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name.endswith("attn.k.bias"):
            continue  # it has no influence; timm's gradient is rounding alone
        assert (one.grad - other.grad).abs().max() <= 1e-4 * other.grad.abs().max(), name


def test_training_mode_equals_timms_too():
    ours, theirs = pair("nano_12", 16, num_classes=10)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), atol=1e-5, rtol=1e-5)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_network_learns_after_inference_at_the_same_size():
    model = timm.create_model("xcit_nano_12_p16", depth=1, num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        model.eval()(x)
    model.train()(x).square().sum().backward()
    assert model.pos_embed.token_projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("part", ["forward", "forward_features"])
def test_what_blocks_give_lies_token_by_token_in_training_too(part):
    model = timm.create_model("xcit_nano_12_p16", depth=2).train()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, tokens: seen.append(tokens))
    getattr(model, part)(torch.randn(2, 3, 64, 96))
    assert [tokens.shape for tokens in seen] == [(2, 24, 128)] * 2
    assert all(tokens.is_contiguous() for tokens in seen)


def test_average_pooling_reads_the_patches():
    ours, theirs = pair("tiny_12", 16, num_classes=10, global_pool="avg")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)


def test_weights_of_the_authors_load():
    ours, theirs = pair("nano_12", 16, num_classes=10)
    state = {}
    for key, value in theirs.state_dict().items():
        key = key.replace("pos_embed.", "pos_embeder.")
        if ".attn.q." in key and "cls_attn" in key:
            parts = [theirs.state_dict()[key.replace(".q.", f".{part}.")] for part in "qkv"]
            key, value = key.replace(".q.", ".qkv."), torch.cat(parts)
        if "cls_attn" not in key or (".k." not in key and ".v." not in key):
            state[key] = value
    fresh = timm.create_model("xcit_nano_12_p16", depth=4, num_classes=10)
    fresh.load_state_dict(adapt_weights({"model": state}, fresh))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(fresh.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_both_forms_equal_the_definition(form, bias, dtype):
    torch.manual_seed(0)
    plain = scattered(XCA(24, 3, qkv_bias=bias)).to(dtype)
    ours = Xca(24, 3, qkv_bias=bias).to(dtype)
    ours.load_state_dict(plain.state_dict())
    ours.form = form
    outputs, gradients = [], []
    for layer in (ours, plain):
        x = torch.randn(2, 50, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
        x.requires_grad_()
        y = layer(x)
        y.pow(3).sum().backward()
        outputs.append(y.detach())
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(*outputs, atol=tolerance, rtol=tolerance)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_channels_are_divided_by_their_length_over_the_tokens(form):
    # One head of two channels, two tokens, identity projections: q = k = v = x, with columns (3, 4)
    # and (0, 1). Their cosine is 4/5, so A = softmax([[1, .8], [.8, 1]]); with a temperature of 0,
    # A is 1/2 everywhere and y is the mean over the channels.
    layer = Xca(2, 1, qkv_bias=True)
    layer.form = form
    eye = torch.eye(2)
    layer.qkv.weight.data, layer.proj.weight.data = torch.cat([eye, eye, eye]), eye.clone()
    layer.qkv.bias.data.zero_()
    layer.proj.bias.data.zero_()
    x = torch.tensor([[[3.0, 0.0], [4.0, 1.0]]])
    near, far = torch.tensor([1.0, 0.8]).softmax(0).tolist()
    expected = [[3 * near, 3 * far], [4 * near + far, 4 * far + near]]
    torch.testing.assert_close(layer(x)[0], torch.tensor(expected))
    layer.temperature.data.zero_()
    torch.testing.assert_close(layer(x)[0], torch.tensor([[1.5, 1.5], [2.5, 2.5]]))


def test_channels_of_zeros_give_zeros_and_finite_gradients(form):
    layer = Xca(4, 2, qkv_bias=True)
    layer.form = form
    layer.qkv.bias.data.zero_()
    x = torch.zeros(1, 3, 4, requires_grad=True)
    layer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(layer.qkv.weight.grad).all()


def test_dropped_attention_goes_by_parts():
    layer = Xca(24, 3, qkv_bias=True, attn_drop=0.5).train()
    x = torch.randn(2, 4000, 24)  # enough tokens for the other way
    layer.form = "late"
    torch.manual_seed(0)
    one, other = layer(x), layer(x)
    assert not torch.equal(one, other)
    torch.testing.assert_close(layer.eval()(x), layer(x))


def test_the_gram_form_is_used_where_it_needs_fewer_multiplications():
    # N* = C (3 C + 2 d) / (2 C + 2 d): 192 (576 + 96) / (384 + 96) = 268.8.
    assert cheaper_form(268, 192, 48) == "late"
    assert cheaper_form(269, 192, 48) == "gram"
    # The largest model's patches of 16 at 224 pixels stay with the other form.
    assert cheaper_form(196, 768, 48) == "late"


@pytest.mark.parametrize("queries", [1, 2, 40])  # few, few and more than there are tokens
def test_class_attention_equals_keys_and_values_of_all_tokens(queries):
    torch.manual_seed(0)
    layer = scattered(ClassAttn(24, 3, qkv_bias=True)).double()
    x = torch.randn(2, 20, 24, dtype=torch.float64)
    own = torch.randn(2, queries, 24, dtype=torch.float64)
    q, k, v = (
        part(rows).unflatten(2, (3, 8)).transpose(1, 2)
        for part, rows in ((layer.q, own), (layer.k, x), (layer.v, x))
    )
    scores = layer.scale * q @ k.transpose(2, 3)
    found, weights = attend_with_weights(layer.scale * q, x, layer.k, layer.v)
    torch.testing.assert_close(found, scores.softmax(-1) @ v)
    torch.testing.assert_close(weights, scores.softmax(-1))
    torch.testing.assert_close(attend(layer.scale * q, x, layer.k, layer.v), found)
    layer.k.bias.data += 3.0
    torch.testing.assert_close(attend(layer.scale * q, x, layer.k, layer.v), found)


def test_dropped_weights_drop_their_share_of_the_values_bias():
    torch.manual_seed(0)
    layer = scattered(ClassAttn(24, 3, qkv_bias=True)).double()
    x = torch.randn(1, 20, 24, dtype=torch.float64)
    q, v = (p(x).unflatten(2, (3, 8)).transpose(1, 2) for p in (layer.q, layer.v))
    torch.manual_seed(5)
    found, weights = attend_with_weights(q[:, :, :1], x, layer.k, layer.v, 0.5)
    torch.manual_seed(5)
    kept = torch.nn.functional.dropout(weights.flatten(1, 2), 0.5).unflatten(1, (3, 1))
    torch.testing.assert_close(found, kept @ v)
    torch.manual_seed(5)
    torch.testing.assert_close(attend(q[:, :, :1], x, layer.k, layer.v, 0.5), found)


def test_attention_maps_are_what_the_class_token_looks_at():
    model = scattered(timm.create_model("xcit_nano_12_p16", depth=2)).eval()
    maps = model.attention_maps(torch.randn(2, 3, 64, 96))
    assert {name: m.shape for name, m in maps.items()} == {
        f"class_attention_{i}": (2, 4, 4, 6) for i in range(2)
    }
    total = torch.cat([m.sum((2, 3)) for m in maps.values()])
    assert (total > 0).all()
    assert (total < 1).all()
