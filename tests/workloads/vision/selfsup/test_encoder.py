import pytest
import timm
import torch

from farreach.errors import ConfigError
from farreach_workloads.vision.selfsup.encoder import Encoder, Head, kept_patches


def vit(**options):
    torch.manual_seed(0)
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **{**given, **options})


def test_with_all_patches_it_is_timms_own_class_token():
    model = vit()
    x = torch.randn(3, 3, 32, 32)
    expected = model.forward_features(x)[:, 0]
    torch.testing.assert_close(Encoder(model)(x), expected)


def test_dropped_patches_are_those_of_a_transformer_that_never_had_them():
    model = vit()
    encoder = Encoder(model)
    x, kept = torch.randn(2, 3, 32, 32), torch.tensor([3, 0, 9, 14])
    tokens = model.patch_embed(x) + model.pos_embed[:, 1:]
    whole = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1), tokens], 1)
    seen = whole[:, torch.cat([torch.tensor([0]), kept + 1])]
    expected = model.norm(model.blocks(seen))[:, 0]
    torch.testing.assert_close(encoder(x, kept), expected)
    # Their order does not count, and the others' pixels do not either.
    torch.testing.assert_close(encoder(x, kept.flip(0)), expected)
    changed = x.clone()
    changed[:, :, :8, 8:16] += 5.0  # patch 1, which is dropped
    torch.testing.assert_close(encoder(changed, kept), expected)


def test_positions_of_another_grid_cover_the_whole_plane():
    encoder = Encoder(vit(img_size=96))  # 12 patches a side
    with torch.no_grad():
        rows = torch.arange(12.0).repeat_interleave(12)
        encoder.vit.pos_embed[0, 1:, 0] = rows
    found = encoder._places(6, 6)[0, :, 0].reshape(6, 6)
    # Half as many rows of twice the height: their middles lie between two of the twelve.
    torch.testing.assert_close(found[1:5, 0], torch.tensor([2.5, 4.5, 6.5, 8.5]))
    assert encoder._places(12, 12).data_ptr() == encoder.vit.pos_embed[:, 1:].data_ptr()
    assert encoder(torch.randn(1, 3, 48, 48)).shape == (1, 24)
    # A rest that fills no patch is left out.
    x = torch.randn(1, 3, 50, 49)
    torch.testing.assert_close(encoder(x), encoder(x[:, :, :48, :48]))
    assert encoder.patches(50) == 36


def test_the_start_is_that_of_the_authors_code():
    encoder = Encoder(vit(embed_dim=192, num_heads=3))
    encoder.start()
    for part in (encoder.vit.pos_embed, encoder.vit.blocks[0].mlp.fc1.weight):
        assert float(part.detach().std()) == pytest.approx(0.02, rel=0.1)
    head = Head(192, 64, 16)
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


@pytest.mark.parametrize("name", ["convnext_atto", "xcit_nano_12_p16"])
def test_other_networks_are_refused(name):
    with pytest.raises(ConfigError, match="has no class token and no patches"):
        Encoder(timm.create_model(name))
    with pytest.raises(ConfigError, match="no position of its own for the class token"):
        Encoder(vit(no_embed_class=True))
