import pytest
import timm
import torch
from timm.layers import trunc_normal_
from timm.models import mlp_mixer

from farreach_workloads.vision.backbones.resmlp import ClassLayer, adapt_weights

SMALL = {"num_classes": 10, "img_size": 64}


def scattered(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("ours", "theirs", "patch"),
    [
        ("resmlp_s12", "resmlp_12_224", 16),
        ("resmlp_s24", "resmlp_24_224", 16),
        ("resmlp_s36", "resmlp_36_224", 16),
        ("resmlp_b24_p8", "resmlp_big_24_224", 8),
    ],
)
def test_logits_and_gradients_equal_timms(ours, theirs, patch):
    side = 4 * patch
    peer = scattered(timm.create_model(theirs, num_classes=10, img_size=side))
    model = timm.create_model(ours, num_classes=10, img_size=side)
    model.load_state_dict(peer.state_dict())
    found, expected = model(images(side)), peer(images(side))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for logits in (found, expected):
        logits.square().sum().backward()
    for one, other in zip(model.parameters(), peer.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-4 * other.grad.abs().max()


@pytest.mark.parametrize(
    ("name", "scale"), [("resmlp_s12", 0.1), ("resmlp_s24", 1e-5), ("resmlp_s36", 1e-6)]
)
def test_the_start_is_the_authors(name, scale):
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL)
    for block in model.blocks:
        for start in (block.ls1, block.ls2):
            torch.testing.assert_close(start.detach(), torch.full((384,), scale))
    # timm starts the head at 0 and A with a spread of 0.35 here.
    reference = trunc_normal_(torch.empty(10_000), std=0.02).std()
    for weight in (model.head.weight, model.blocks[0].linear_tokens.weight):
        assert float(weight.detach().std()) == pytest.approx(float(reference), rel=0.1)


def test_folding_changes_nothing():
    model = scattered(timm.create_model("resmlp_s12", num_blocks=3, **SMALL)).eval()
    folded = model.fold()
    with torch.no_grad():
        expected, found = model(images()), folded(images())
    for one in (found, folded(images())):  # in its own memory, and where gradients may be wanted
        assert (one - expected).abs().max() <= 5e-6 * expected.abs().max()
    assert len(list(folded.blocks.parameters())) == 0
    assert model.training is False
    assert all(p.requires_grad for p in model.parameters())


def test_weights_of_the_authors_load():
    model = scattered(timm.create_model("resmlp_s12", num_blocks=2, **SMALL))
    names = {"stem.": "patch_embed.", "linear_tokens.": "attn.", "mlp_channels.": "mlp."}
    state = {}
    for key, value in model.state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        key = key.replace(".ls", ".gamma_")
        state[key] = value.flatten() if key.endswith(("alpha", "beta")) else value
    fresh = timm.create_model("resmlp_s12", num_blocks=2, **SMALL)
    fresh.load_state_dict(adapt_weights({"model": state}, fresh))
    torch.testing.assert_close(fresh(images()), model(images()))


def test_the_matrix_of_another_image_size_is_resized_over_both_sides():
    model = timm.create_model("resmlp_s12", num_blocks=1, **SMALL)
    # 4 × 4 patches; patch i takes 1 from everywhere and 16 in all: so it must be with 8 × 8.
    state = model.state_dict()
    state["blocks.0.linear_tokens.weight"] = torch.ones(16, 16)
    larger = timm.create_model("resmlp_s12", num_blocks=1, num_classes=10, img_size=128)
    resized = adapt_weights(dict(state), larger)["blocks.0.linear_tokens.weight"]
    torch.testing.assert_close(resized, torch.full((64, 64), 0.25))
    # A patch that takes its right neighbour's: its four quarters take what lies right of them.
    shift = torch.zeros(16, 16)
    shift[5, 6] = 1.0
    state["blocks.0.linear_tokens.weight"] = shift
    resized = adapt_weights(dict(state), larger)["blocks.0.linear_tokens.weight"]
    image = resized.view(8, 8, 8, 8)
    assert image[2:4, 2:4].sum() > 0.5 * image.sum()
    assert image[:, :, 2:4, 4:6].sum() > 0.5 * image.sum()
    larger.load_state_dict({**larger.state_dict(), "blocks.0.linear_tokens.weight": resized})


def test_a_class_layer_is_a_weighted_sum_and_a_network():
    layer = scattered(ClassLayer(8, 4, 0.1))
    own, patches = torch.randn(2, 1, 8), torch.randn(2, 4, 8)
    affine = layer.norm1(torch.cat([own, patches], dim=1))
    pooled = torch.einsum("n,bnc->bc", layer.pool.weight[0], affine) + layer.pool.bias
    row = own[:, 0] + layer.ls1 * pooled
    z = layer.norm2(row)[0]
    hidden = torch.nn.functional.gelu(z @ layer.mlp.fc1.weight.t() + layer.mlp.fc1.bias)
    row = row + layer.ls2 * (hidden @ layer.mlp.fc2.weight.t() + layer.mlp.fc2.bias)
    torch.testing.assert_close(layer(own, patches)[:, 0], row)


def test_the_class_mlp_has_the_papers_size():
    # 15.4M becomes 17.7M: two layers of 2 × 4 × 384² + ... each.
    with torch.device("meta"):
        model = timm.create_model("resmlp_s12", class_mlp=True)
    added = sum(p.numel() for p in model.parameters()) - 15_350_872
    layer = 2 * 4 * 384**2 + 5 * 384 + 198 + 6 * 384
    assert added == 2 * layer + 384


def test_attention_maps_are_the_rows_of_the_matrices():
    model = timm.create_model("resmlp_s12", num_blocks=2, **SMALL)
    maps = model.attention_maps(images())
    assert list(maps) == ["patches_0", "patches_1"]
    weight = model.blocks[1].linear_tokens.weight
    torch.testing.assert_close(maps["patches_1"][0, 5].flatten(), weight[5])
    assert isinstance(model.blocks[0].norm1, mlp_mixer.Affine)
