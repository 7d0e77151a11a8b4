import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from farreach_workloads.vision.backbones.patchconvnet import (
    AttentionPool,
    ConvBranch,
    SqueezeExcite,
)

SMALL = {"depth": 2, "embed_dim": 32, "num_classes": 5}


def scattered(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def model_of(name="patchconvnet_s60", **arguments):
    torch.manual_seed(0)
    return scattered(timm.create_model(name, **{**SMALL, **arguments})).eval()


def images(rows=64, columns=48):
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def test_a_branch_equals_convolutions_written_out():
    branch = scattered(ConvBranch(32))
    state = branch.state_dict()
    x = torch.randn(2, 12, 32)
    image = x.transpose(1, 2).reshape(2, 32, 4, 3)
    image = F.gelu(F.conv2d(image, state["qkv_pos.0.weight"], state["qkv_pos.0.bias"]))
    image = F.conv2d(
        image, state["qkv_pos.2.weight"], state["qkv_pos.2.bias"], padding=1, groups=32
    )
    image = F.gelu(image)
    mean = image.mean((2, 3), keepdim=True)
    for part, activation in (("reduce", F.relu), ("expand", torch.sigmoid)):
        name = f"qkv_pos.4.conv_{part}"
        mean = activation(F.conv2d(mean, state[f"{name}.weight"], state[f"{name}.bias"]))
    expected = F.conv2d(image * mean, state["qkv_pos.5.weight"], state["qkv_pos.5.bias"])
    expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(branch(x, 4, 3), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(branch(x, 4, 3), expected, atol=1e-5, rtol=1e-5)


def test_squeeze_and_excite_uses_relu():
    # Reduced to one channel that is -1: ReLU gives 0 and a share of σ(0) = ½; GELU would give less.
    excite = SqueezeExcite(4)
    for part in (excite.conv_reduce, excite.conv_expand):
        part.weight.data.fill_(1.0)
        part.bias.data.zero_()
    x = torch.full((1, 2, 4), -0.25)
    torch.testing.assert_close(excite(x), 0.5 * x)


@pytest.mark.parametrize(("multi", "count"), [(False, 1), (True, 3), (True, 11)])
def test_pooling_equals_attention_written_out(multi, count):
    pool = scattered(AttentionPool(16, 0.1, multi, None)).double()
    queries = torch.randn(1, count, 16, dtype=torch.float64)
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    own = queries.expand(2, -1, -1)
    keys = x if multi else torch.cat([own, x], dim=1)
    z, zq = pool.norm1(keys), pool.norm1(own)
    scores = pool.attn.q(zq) @ pool.attn.k(z).transpose(1, 2) / 16**0.5
    weights = scores.softmax(-1)
    rows = own + pool.gamma_1 * pool.attn.proj(weights @ pool.attn.v(z))
    rows = rows + pool.gamma_2 * pool.mlp.fc2(F.gelu(pool.mlp.fc1(pool.norm2(rows))))
    found, seen = pool(queries, x)
    torch.testing.assert_close(found, rows)
    torch.testing.assert_close(seen, weights if multi else weights[:, :, 1:])
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in pool.parameters())


def test_scale_of_the_scores_can_be_set():
    with torch.no_grad():
        same = model_of()(images())
        assert not torch.allclose(model_of(qk_scale=1.0)(images()), same)
        torch.testing.assert_close(model_of(qk_scale=32**-0.5)(images()), same)


def test_keys_are_those_of_the_authors_checkpoints():
    keys = set(model_of().state_dict())
    expected = {
        "cls_token",
        *(f"patch_embed.proj.{i}.0.weight" for i in (0, 2, 4, 6)),
        "blocks.1.gamma_1",
        "blocks.1.attn.qkv_pos.2.bias",
        "blocks.1.attn.qkv_pos.4.conv_expand.weight",
        "blocks_token_only.0.gamma_2",
        "blocks_token_only.0.attn.proj.weight",
        "blocks_token_only.0.mlp.fc2.bias",
        "norm.weight",
        "head.weight",
    }
    assert expected <= keys


def test_heads_of_the_classes_are_saved_one_by_one():
    model = model_of("patchconvnet_s60_multi")
    state = model.state_dict()
    assert state["head.3.weight"].shape == (1, 32)
    assert "head.weight" not in state
    fresh = timm.create_model("patchconvnet_s60_multi", **SMALL).eval()
    fresh.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(fresh(images()), model(images()))
        rows = model.forward_features(images())
        for number in range(5):
            own = rows[:, number] @ state[f"head.{number}.weight"][0] + state[f"head.{number}.bias"]
            torch.testing.assert_close(model(images())[:, number], own)


def test_a_new_number_of_classes_keeps_a_query_and_a_head_for_each():
    model = model_of("patchconvnet_s60_multi")
    model.reset_classifier(8)
    assert model(images()).shape == (2, 8)
    assert model.attention_maps(images())["pool"].shape == (2, 8, 4, 3)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        timm.create_model("patchconvnet_s60_multi", depth=1, embed_dim=32, num_classes=0)


def test_features_say_what_they_cannot_do():
    with pytest.raises(ValueError, match="without norm"):
        model_of().forward_intermediates(images(), norm=True)
    found = model_of().forward_intermediates(
        images(), [0], stop_early=True, intermediates_only=True
    )
    assert [f.shape for f in found] == [(2, 32, 4, 3)]


@pytest.mark.parametrize(("name", "scale"), [("s60", 1e-4), ("s120", 1e-6)])
def test_layer_scale_starts_as_in_the_authors_code(name, scale):
    with torch.device("cpu"):
        model = timm.create_model(f"patchconvnet_{name}", **{**SMALL, "depth": 1})
    assert float(model.blocks[0].gamma_1[0].detach()) == pytest.approx(scale)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_what_blocks_give_lies_token_by_token_in_training_too():
    model = timm.create_model("patchconvnet_s60", embed_dim=64, depth=2).train()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, tokens: seen.append(tokens))
    model(torch.randn(2, 3, 64, 96))
    assert [tokens.shape for tokens in seen] == [(2, 24, 64)] * 2
    assert all(tokens.is_contiguous() for tokens in seen)
