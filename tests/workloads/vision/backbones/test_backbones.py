"""What every backbone of ours does, whichever its family."""

import copy

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from farreach_workloads.vision.backbones import patchconvnet, resmlp, xcit

# Parameters as the papers' tables and the authors' code have them.
PARAMETERS = {
    "xcit_nano_12_p16": 3_053_224,
    "xcit_nano_12_p8": 3_049_016,
    "xcit_tiny_12_p16": 6_716_272,
    "xcit_tiny_12_p8": 6_706_504,
    "xcit_tiny_24_p16": 12_116_896,
    "xcit_small_12_p16": 26_253_304,
    "xcit_small_12_p8": 26_213_032,
    "xcit_small_24_p16": 47_671_384,
    "xcit_medium_24_p16": 84_395_752,
    "xcit_large_24_p8": 188_932_648,
    "resmlp_s12": 15_350_872,
    "resmlp_s24": 30_020_680,
    "resmlp_s36": 44_690_488,
    "resmlp_b24": 115_736_776,
    "resmlp_b24_p8": 129_138_280,
    "patchconvnet_s60": 25_231_096,
    "patchconvnet_s120": 47_723_896,
    "patchconvnet_b60": 99_388_936,
    "patchconvnet_b120": 188_611_336,
    "patchconvnet_l60": 176_009_576,
    "patchconvnet_l120": 334_294_376,
    "patchconvnet_s60_multi": 25_614_712,
}
# One of each family, as small as it can be, at a size that all of them take.
SMALL = {
    "xcit_nano_12_p16": {"depth": 3},
    "xcit_nano_12_p8": {"depth": 3},
    "resmlp_s12": {"num_blocks": 3, "embed_dim": 64, "img_size": 64},
    "patchconvnet_s60": {"depth": 3, "embed_dim": 64},
    "patchconvnet_s60_multi": {"depth": 3, "embed_dim": 64},
}


def small(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL[name], "num_classes": 5, **arguments})


def images(count=2, rows=64, columns=64):
    return torch.randn(count, 3, rows, columns, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_papers_tables(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_importing_the_package_registers_every_size():
    names = timm.list_models()
    for size in xcit.SIZES:
        assert {f"xcit_{size}_p16", f"xcit_{size}_p8"} <= set(names)
    assert {"resmlp_s36", "patchconvnet_l120"} <= set(names)
    # timm's own stay what they are.
    assert type(timm.create_model("xcit_nano_12_p16_224")).__module__ == "timm.models.xcit"
    assert resmlp.default_cfgs["resmlp_s12"].default.crop_pct == 0.9
    assert patchconvnet.default_cfgs["patchconvnet_s60"].default.num_classes == 1000


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model = small(name).train()
    model(images()).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_rows_of_a_batch_do_not_depend_on_one_another(name):
    model, x = small(name).eval(), images(3)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_same_with_and_without_gradients(name):
    model, x = small(name).eval(), images()
    with torch.no_grad():
        plain = model(x)
    torch.testing.assert_close(plain, model(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_head_on_the_features(name):
    model, x = small(name).eval(), images()
    with torch.no_grad():
        logits = model.forward_head(model.forward_features(x))
        torch.testing.assert_close(model(x), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_timms_tools_work(name):
    model, x = small(name).eval(), images()
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    features = timm.create_model(name, features_only=True, **SMALL[name])
    found = features(x)
    stride = 8 if name.endswith("p8") else 16
    assert [f.shape[2:] for f in found] == [(64 // stride, 64 // stride)] * len(found)
    assert [f.shape[1] for f in found] == features.feature_info.channels()
    for group in param_groups_weight_decay(
        model, 0.1, no_weight_decay_list=model.no_weight_decay()
    ):
        assert group["params"]


@pytest.mark.parametrize("name", SMALL)
def test_checkpointed_gradients_are_the_same(name):
    plain = small(name).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images()).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in SMALL if not n.startswith("resmlp")])
def test_sides_need_not_be_multiples_of_the_patch(name):
    model, x = small(name).eval(), images(2, 70, 41)
    assert model(x).shape == (2, 5)
    maps = model.attention_maps(x)
    assert all(m.shape[2:] == ((9, 6) if name.endswith("p8") else (5, 3)) for m in maps.values())


def decayed(model, **chosen):
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    which = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in which}


def test_temperatures_and_positions_are_decayed_as_by_the_authors_only_if_asked():
    ours, theirs = small("xcit_nano_12_p16"), small("xcit_nano_12_p16", reference_decay=True)
    assert decayed(theirs) - decayed(ours) == {
        "pos_embed.token_projection.weight",
        *(f"blocks.{i}.attn.temperature" for i in range(3)),
    }
    assert "cls_token" not in decayed(theirs)


def test_affine_layers_are_not_decayed_unless_asked():
    ours, theirs = small("resmlp_s12"), small("resmlp_s12", reference_decay=True)
    extra = decayed(theirs) - decayed(ours)
    assert extra
    assert all(name.endswith((".alpha", ".beta")) for name in extra)


@pytest.mark.parametrize("name", SMALL)
def test_modules_keep_timms_linear_interface(name):
    model = small(name)
    assert all(isinstance(m, nn.Linear) for m in model.modules() if "Linear" in type(m).__name__)
