import itertools

import pytest

from farreach_workloads.vision.config import BackboneConfig, OptimizerConfig
from farreach_workloads.vision.dense.config import SegmentConfig
from farreach_workloads.vision.dense.optimizer import optimizer_of
from farreach_workloads.vision.segment import Segmenter


def rates(name, frozen=False, **settings):
    """By parameter its decay of weights and how fast it learns."""
    config = SegmentConfig(
        backbone=BackboneConfig(name=name), data={"size": 64}, frozen=frozen, optimizer=settings
    )
    model = Segmenter(config, 5)
    optimizer = optimizer_of(model, model.pyramid, OptimizerConfig(**settings), 0.1)
    found = {
        id(p): (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for p in group["params"]
    }
    names = dict(model.named_parameters())
    learning = {name for name, p in names.items() if p.requires_grad}
    assert {name for name, p in names.items() if id(p) in found} == learning
    return {name: found[id(p)] for name, p in names.items() if id(p) in found}


def test_what_is_decayed_is_the_backbones_matter():
    found = rates("xcit_nano_12_p8", weight_decay=0.3)
    block = "pyramid.backbone.blocks.3"
    assert found[f"{block}.attn.temperature"] == (0.0, 1.0)  # not a vector
    assert found[f"{block}.attn.qkv.weight"] == (0.3, 1.0)
    assert found[f"{block}.attn.qkv.bias"] == (0.0, 1.0)
    head = {name: decay for name, (decay, _) in found.items() if name.startswith("head.")}
    assert set(head.values()) == {0.0, 0.3}


@pytest.mark.parametrize("name", ["xcit_nano_12_p8", "convnext_atto"])
def test_layers_learn_slower_the_deeper_they_lie_and_all_slower_than_the_head(name):
    found = rates(name, layer_decay=0.5)
    backbone = {key: s for key, (_, s) in found.items() if key.startswith("pyramid.backbone.")}
    above = {scale for key, (_, scale) in found.items() if key not in backbone}
    assert above == {1.0}
    assert max(backbone.values()) == pytest.approx(0.5)
    values = sorted(set(backbone.values()), reverse=True)
    assert len(values) > 3
    for higher, lower in itertools.pairwise(values):
        assert lower <= 0.5 * higher * (1 + 1e-6)
    if name.startswith("xcit"):
        scales = [backbone[f"pyramid.backbone.blocks.{i}.attn.qkv.weight"] for i in range(12)]
        assert scales == sorted(scales)
        assert len(set(scales)) == 12


def test_a_frozen_backbone_has_no_part():
    found = rates("xcit_nano_12_p8", frozen=True, layer_decay=0.5)
    assert not [name for name in found if ".backbone." in name]
