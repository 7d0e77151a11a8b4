import copy

import pytest
import torch
from torch import nn

from farreach.errors import ConfigError
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.dense import pyramid as pyramid_file
from farreach_workloads.vision.dense.config import STRIDES
from farreach_workloads.vision.dense.pyramid import (
    Pyramid,
    adapter,
    has_fixed_size,
    padded,
    taken_blocks,
)
from farreach_workloads.vision.models import make_model

SIDE = 64


def test_blocks_of_xcit_are_those_of_its_code():
    # arXiv:2106.09681, configurations of detection and segmentation.
    assert taken_blocks([16] * 12) == [3, 5, 7, 11]
    assert taken_blocks([8] * 24) == [7, 11, 15, 23]


def test_stages_give_their_own_strides_the_last_of_several():
    assert taken_blocks([4, 8, 16, 32]) == [0, 1, 2, 3]
    assert taken_blocks([2, 4, 8, 16, 32]) == [1, 2, 3, 4]
    assert taken_blocks([4, 4, 8, 16, 16, 32]) == [1, 2, 4, 5]


def kinds(module):
    return [type(part).__name__ for part in module] if isinstance(module, nn.Sequential) else module


def test_adapters_are_xcits():
    # Its code: patch 16, then patch 8, from the level of stride 4 to that of 32.
    up = ["ConvTranspose2d", "BatchNorm2d", "GELU", "ConvTranspose2d"]
    assert kinds(adapter(16, 4, 8)) == up
    assert kinds(adapter(16, 8, 8)) == ["ConvTranspose2d"]
    assert isinstance(adapter(16, 16, 8), nn.Identity)
    assert adapter(16, 32, 8).kernel_size == 2
    assert kinds(adapter(8, 4, 8)) == ["ConvTranspose2d"]
    assert isinstance(adapter(8, 8, 8), nn.Identity)
    assert adapter(8, 16, 8).kernel_size == 2
    assert adapter(8, 32, 8).kernel_size == 4


@pytest.mark.parametrize(
    ("name", "options", "widths", "is_fixed"),
    [
        ("xcit_nano_12_p8", {"depth": 3}, [128] * 4, False),
        ("xcit_nano_12_p16", {"depth": 3}, [128] * 4, False),
        ("patchconvnet_s60", {"depth": 3, "embed_dim": 64}, [64] * 4, False),
        ("resmlp_s12", {"num_blocks": 3}, [384] * 4, True),
        ("vit_tiny_patch16_224", {"depth": 3}, [192] * 4, True),
        ("convnext_atto", {}, [40, 80, 160, 320], False),
        ("regnety_002", {}, [24, 56, 152, 368], False),
        ("pit_ti_224", {}, [64, 64, 128, 256], True),
    ],
)
def test_any_backbone_gives_four_maps_and_learns_by_all_of_them(name, options, widths, is_fixed):
    pyramid = Pyramid(BackboneConfig(name=name, options=options), SIDE)
    assert pyramid.widths == widths
    assert has_fixed_size(pyramid.backbone) == is_fixed
    maps = pyramid.train()(torch.randn(2, 3, SIDE, SIDE))
    shapes = [(2, width, SIDE // s, SIDE // s) for width, s in zip(widths, STRIDES, strict=True)]
    assert [tuple(m.shape) for m in maps] == shapes
    torch.stack([m.sum() for m in maps]).sum().backward()
    assert [name for name, p in pyramid.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["regnety_002", "vit_tiny_patch16_224"])
def test_a_frozen_backbone_keeps_weights_and_statistics_and_its_adapters_learn(name):
    pyramid = Pyramid(BackboneConfig(name=name), SIDE, frozen=True).train()
    before = copy.deepcopy(pyramid.backbone.state_dict())
    x = torch.randn(2, 3, SIDE, SIDE)
    maps = pyramid(x)
    torch.testing.assert_close(pyramid.backbone.state_dict(), before, rtol=0, atol=0)
    assert not any(p.requires_grad for p in pyramid.backbone.parameters())
    learning = list(pyramid.adapters.parameters())
    assert [m.requires_grad for m in maps].count(True) == (2 if learning else 0)
    for p in learning:
        assert p.requires_grad
    again = pyramid.eval()(x)[2]  # neither an adapter nor anything that drops is in between
    torch.testing.assert_close(again, maps[2])


def test_a_map_is_what_the_block_leaves():
    pyramid = Pyramid(BackboneConfig(name="xcit_nano_12_p16", options={"depth": 3}), SIDE).eval()
    x = torch.randn(1, 3, SIDE, 2 * SIDE)
    kept = []
    pyramid.backbone.blocks[1].register_forward_hook(lambda m, i, o: kept.append(o))
    found = pyramid(x)[2]  # stride 16, after two of three blocks
    expected = kept[0].transpose(1, 2).reshape(1, 128, SIDE // 16, SIDE // 8)
    torch.testing.assert_close(found, expected)


def test_images_are_padded_to_the_right_and_below():
    x = torch.ones(1, 3, 33, 64)
    assert padded(x).shape == (1, 3, 64, 64)
    assert float(padded(x)[:, :, 33:].abs().max()) == 0
    assert padded(padded(x)) is not None
    torch.testing.assert_close(padded(x)[:, :, :33], x)


def test_a_model_without_maps_is_refused(monkeypatch):
    monkeypatch.setattr(pyramid_file, "make_model", lambda *_: nn.Flatten())
    with pytest.raises(ConfigError, match="mine cannot give maps of features: timm has no way"):
        Pyramid(BackboneConfig(name="mine"), SIDE)


def test_an_adapter_that_does_not_fit_is_refused_before_training(monkeypatch):
    def misled(*arguments):
        model = make_model(*arguments)
        for info in model.feature_info:
            info["num_chs"] = 100
        return model

    monkeypatch.setattr(pyramid_file, "make_model", misled)
    with pytest.raises(ConfigError, match=r"xcit_nano_12_p16 cannot give maps.*100"):
        Pyramid(BackboneConfig(name="xcit_nano_12_p16", options={"depth": 3}), SIDE)
