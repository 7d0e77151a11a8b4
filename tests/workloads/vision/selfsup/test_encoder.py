import pytest
import timm
import torch

from farreach.errors import ConfigError
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.selfsup import heads
from farreach_workloads.vision.selfsup.encoder import (
    Seen,
    Vit,
    kept_of_each,
    kept_patches,
    make_encoder,
    make_vit,
    steady,
)


def vit(**options):
    torch.manual_seed(0)
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **{**given, **options})


def test_with_all_patches_it_is_timms_own_class_token():
    model = vit()
    x = torch.randn(3, 3, 32, 32)
    expected = model.forward_features(x)[:, 0]
    torch.testing.assert_close(Vit(model)([Seen(x)])[0], expected)


def test_dropped_patches_are_those_of_a_transformer_that_never_had_them():
    model = vit()
    encoder = Vit(model)
    x, kept = torch.randn(2, 3, 32, 32), torch.tensor([3, 0, 9, 14])
    tokens = model.patch_embed(x) + model.pos_embed[:, 1:]
    whole = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1), tokens], 1)
    seen = whole[:, torch.cat([torch.tensor([0]), kept + 1])]
    expected = model.norm(model.blocks(seen))[:, 0]
    torch.testing.assert_close(encoder([Seen(x, kept)])[0], expected)
    # Their order does not count, and the others' pixels do not either.
    torch.testing.assert_close(encoder([Seen(x, kept.flip(0))])[0], expected)
    changed = x.clone()
    changed[:, :, :8, 8:16] += 5.0  # patch 1, which is dropped
    torch.testing.assert_close(encoder([Seen(changed, kept)])[0], expected)


def test_positions_of_another_grid_cover_the_whole_plane():
    encoder = Vit(vit(img_size=96))  # 12 patches a side
    with torch.no_grad():
        rows = torch.arange(12.0).repeat_interleave(12)
        encoder.trunk.pos_embed[0, 1:, 0] = rows
    found = encoder._places(6, 6)[0, :, 0].reshape(6, 6)
    # Half as many rows of twice the height: their middles lie between two of the twelve.
    torch.testing.assert_close(found[1:5, 0], torch.tensor([2.5, 4.5, 6.5, 8.5]))
    assert encoder._places(12, 12).data_ptr() == encoder.trunk.pos_embed[:, 1:].data_ptr()
    assert encoder.features(torch.randn(1, 3, 48, 48)).shape == (1, 24)
    # A rest that fills no patch is left out.
    x = torch.randn(1, 3, 50, 49)
    torch.testing.assert_close(encoder.features(x), encoder.features(x[:, :, :48, :48]))
    assert encoder.patches(50) == 36


def test_the_start_is_that_of_the_authors_code():
    encoder = Vit(vit(embed_dim=192, num_heads=3))
    encoder.start()
    for part in (encoder.trunk.pos_embed, encoder.trunk.blocks[0].mlp.fc1.weight):
        assert float(part.detach().std()) == pytest.approx(0.02, rel=0.1)
    head = heads.projector([192, 64, 64, 16])
    assert [type(layer).__name__ for layer in head] == [
        "Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear",
    ]  # fmt: skip
    assert float(head[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(head[6].bias.detach().abs().max()) == 0


def test_so_many_patches_stay_as_the_papers_code_says():
    generator = torch.Generator().manual_seed(0)
    kept = kept_patches(196, 0.15, generator)
    assert len(kept) == 166
    assert len(set(kept.tolist())) == 166
    assert 0 <= min(kept) <= max(kept) < 196
    assert kept_patches(196, 0.15, generator).tolist() != kept.tolist()
    every = torch.stack(
        [torch.bincount(kept_patches(16, 0.5, generator), minlength=16) for _ in range(400)]
    )
    share = every.float().mean(0)
    assert float((share - 0.5).abs().max()) < 0.12, "every patch, the last one too, as often"


def test_each_image_may_keep_patches_of_its_own():
    encoder = Vit(vit())
    x = torch.randn(3, 3, 32, 32)
    kept = kept_of_each(16, 0.5, 3, torch.Generator().manual_seed(0))
    assert kept.shape == (3, 8)
    assert all(len(set(row)) == 8 for row in kept.tolist())
    together = encoder([Seen(x, kept)])[0]
    for i in range(3):
        alone = encoder([Seen(x[i : i + 1], kept[i])])[0]
        torch.testing.assert_close(together[i : i + 1], alone)


def test_views_in_one_piece_are_as_each_alone():
    """In bfloat16 the tokens of all views go through the linear layers together."""
    encoder = Vit(vit())
    large, small = torch.randn(3, 3, 32, 32), torch.randn(6, 3, 16, 16)
    views = [Seen(large, torch.arange(10)), Seen(small)]
    with torch.autocast("cpu", torch.bfloat16):
        packed = encoder(views)
        alone = [encoder([view])[0] for view in views]
    exact = encoder(views)
    for one, other, right in zip(packed, alone, exact, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(one.float(), right, atol=5e-2, rtol=5e-2)
    # What the pieces make of float32 is the same to rounding, gradients included.
    blocks, tokens = encoder.trunk.blocks, [torch.randn(3, 11, 24), torch.randn(6, 5, 24)]
    piece = torch.cat([x.flatten(0, 1) for x in tokens])
    for block in blocks:
        piece = block(piece, [(3, 11), (6, 5)])
    expected = torch.cat([blocks(x).flatten(0, 1) for x in tokens])
    torch.testing.assert_close(piece, expected)


def test_activations_may_be_computed_again():
    backbone = {"name": "vit_tiny_patch16_224", "options": {
        "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
    }}  # fmt: skip
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = make_vit(BackboneConfig(**backbone, checkpointing=checkpointing), 32)
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        encoder([Seen(x, torch.arange(7))])[0].square().sum().backward()
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["convnext_atto", "xcit_nano_12_p16", "regnety_002"])
def test_other_networks_have_features_and_no_patches(name):
    backbone = BackboneConfig(name=name)
    encoder = make_encoder(backbone, 64)
    x = torch.randn(2, 3, 64, 64)
    assert encoder([Seen(x)])[0].shape == (2, encoder.width)
    assert encoder.features(x).shape == (2, encoder.width)
    with pytest.raises(ConfigError, match=f"{name} is no vision transformer whose patches can be"):
        make_vit(backbone, 64)


def test_a_target_drops_nothing():
    model = vit(drop_path_rate=0.5, proj_drop_rate=0.3)
    target = steady(Vit(model)).train()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(target.features(x), target.features(x))
    assert not any(p.requires_grad for p in target.parameters())


def test_features_before_the_last_norm():
    encoder = Vit(vit())
    x = torch.randn(2, 3, 32, 32)
    raw = encoder.features(x, is_normal=False)
    torch.testing.assert_close(encoder.trunk.norm(raw), encoder.features(x))
    assert not torch.allclose(raw, encoder.features(x), atol=0.01)


@pytest.mark.parametrize(
    ("name", "last", "earlier"),
    [
        ("regnety_002", "s4", "s3"),
        ("resnet18", "layer4", "layer3"),
        ("vit_tiny_patch16_224", "blocks.2", None),
    ],
)
def test_maps_are_those_of_the_last_stages_or_blocks(name, last, earlier):
    options = {"depth": 3} if earlier is None else {}
    encoder = make_encoder(BackboneConfig(name=name, options=options), 64).eval()
    given = {}
    for part in (last, earlier or "blocks.1"):
        encoder.trunk.get_submodule(part).register_forward_hook(
            lambda module, inputs, output, part=part: given.setdefault(part, output)
        )
    with torch.no_grad():
        seen = encoder.seen(torch.randn(2, 3, 64, 64), ["map", "earlier map"])
        if earlier is None:
            given = {
                part: encoder.trunk.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
                for part, x in given.items()
            }
    torch.testing.assert_close(seen["map"], given[last])
    torch.testing.assert_close(seen["earlier map"], given[earlier or "blocks.1"])


@pytest.mark.parametrize("options", [{"reg_tokens": 1}, {"dynamic_img_size": True}])
def test_transformers_of_other_kinds_give_timms_own_features(options):
    backbone = BackboneConfig(name="vit_tiny_patch16_224", options={"depth": 2, **options})
    encoder = make_encoder(backbone, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.trunk(images)
        torch.testing.assert_close(encoder([Seen(images)])[0], expected)
    with pytest.raises(ConfigError, match="no vision transformer whose patches can be"):
        make_vit(backbone, 64)
