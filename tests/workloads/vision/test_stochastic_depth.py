import copy
import pickle

import pytest
import timm
import torch
from timm.models import regnet
from torch import nn
from torch.nn import functional as F

import farreach_workloads.vision.backbones
from farreach_workloads.vision.bench import saved_bytes
from farreach_workloads.vision.stochastic_depth import ADAPTERS, install

FAMILIES = {
    "vit_tiny_patch16_224": {"depth": 3, "img_size": 32},
    "pit_ti_224": {"img_size": 32},
    "xcit_nano_12_p16": {"depth": 2, "img_size": 32},
    "xcit_nano_12_p16_224": {"depth": 2, "img_size": 32},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 1, 1), "img_size": 64, "drop_path_rate": 0.0},
    "convnext_atto": {"depths": (1, 2, 1, 1)},
    "regnety_002": {},
    "resmlp_s12": {"num_blocks": 3, "img_size": 32},
    "resmlp_12_224": {"img_size": 32},
    "patchconvnet_s60": {"depth": 3, "embed_dim": 64},
}


def build(name):
    assert farreach_workloads.vision.backbones.xcit  # importing it registers the models
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **FAMILIES[name]).train()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()  # in training its statistics are those of the rows that it sees
    return model


def images(name, count=8):
    side = FAMILIES[name].get("img_size", 32)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model, x):
    model.zero_grad()
    loss = F.cross_entropy(model(x), torch.arange(len(x)) % 10)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("name", FAMILIES)
def test_skipping_equals_computing_all_and_multiplying(name):
    skipping, masking = build(name), build(name)
    install(skipping, 0.5)
    install(masking, 0.5, mode="mask")
    x = images(name)
    loss, gradients = loss_and_gradients(skipping, x)
    expected, theirs = loss_and_gradients(masking, x)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for one, other in zip(gradients, theirs, strict=True):
        if one is None and other is not None:
            assert float(other.abs().max()) == 0.0
        elif one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    whole, _ = loss_and_gradients(build(name), x)
    assert not torch.allclose(loss, whole, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_changes_at_a_rate_of_zero_in_evaluation_and_when_removed(name):
    model, x = build(name), images(name)
    loss, gradients = loss_and_gradients(model, x)
    names = list(model.state_dict())
    depth = install(model, 0.0)
    for again in (loss_and_gradients(model, x), None):
        if again is None:
            depth.remove()
            depth = install(model, 0.5)
            loss_and_gradients(model, x)
            depth.remove()
            again = loss_and_gradients(model, x)
        torch.testing.assert_close(again[0], loss)
        for one, other in zip(again[1], gradients, strict=True):
            torch.testing.assert_close(one, other)
    install(model, 0.5)
    assert list(model.state_dict()) == names
    plain = build(name).eval()
    torch.testing.assert_close(model.eval()(x), plain(x))


@pytest.mark.parametrize("batch", [1, 2, 7, 256])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_as_many_rows_are_kept_as_the_rate_says_on_average(batch, rate):
    depth = install(build("vit_tiny_patch16_224"), rate)
    kept = []
    for _ in range(300):
        plan = depth.draw(batch)
        for rows, scale in zip(plan.rows, plan.scales, strict=True):
            count = batch if rows is None else len(rows)
            assert scale == pytest.approx(batch / count)
            assert rows is None or len(rows.unique()) == count
            kept.append(count)
    expected = batch * (1 - rate)
    assert set(kept) <= {max(1, int(expected)), max(1, int(expected) + 1), batch} - {0}
    spread = 4 * 0.5 / len(kept) ** 0.5
    if expected >= 1:
        assert sum(kept) / len(kept) == pytest.approx(expected, abs=spread)
    else:
        assert set(kept) == {1}


def test_a_linear_branch_keeps_its_mean():
    """Over many plans the result is that of the whole network, if the branch is linear."""
    block = build("resmlp_s12").blocks[0]
    network = nn.Sequential(block)
    with torch.no_grad():
        block.ls2.zero_()
        x = torch.randn(8, 4, 384)
        whole = block(x)
        install(network, 0.5)
        outputs = torch.stack([network(x) for _ in range(4_000)])
    error = outputs.std(0) / len(outputs) ** 0.5
    assert ((outputs.mean(0) - whole).abs() < 5 * error + 1e-6).all()


def test_halves_keep_as_many_rows_each():
    depth = install(build("vit_tiny_patch16_224"), 0.4)
    depth.halves = 2
    for rows in depth.draw(16).rows:
        assert rows is not None
        assert int((rows < 8).sum()) == int((rows >= 8).sum())
    with pytest.raises(ValueError, match="a batch of 7 has no 2 equal parts"):
        depth.draw(7)


def test_ranks_keep_as_many_rows_as_one_another_but_others():
    plans = [install(build("vit_tiny_patch16_224"), 0.37, rank=r).draw(64) for r in (0, 1)]
    assert plans[0].scales == plans[1].scales
    assert not torch.equal(plans[0].rows[0], plans[1].rows[0])
    again = install(build("vit_tiny_patch16_224"), 0.37, rank=1).draw(64)
    assert all(torch.equal(a, b) for a, b in zip(again.rows, plans[1].rows, strict=True))


def test_drawing_goes_on_where_its_state_was_taken():
    depth = install(build("vit_tiny_patch16_224"), 0.5)
    depth.draw(8)
    state = pickle.loads(pickle.dumps(depth.state_dict()))
    expected = depth.draw(8)
    other = install(build("vit_tiny_patch16_224"), 0.5, seed=9)
    other.load_state_dict(state)
    found = other.draw(8)
    assert all(torch.equal(a, b) for a, b in zip(found.rows, expected.rows, strict=True))


def test_rates_rise_with_depth_where_asked():
    depth = install(build("vit_tiny_patch16_224"), 0.4, "ramp")
    assert depth.rates == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4, 0.4])
    plan = depth.draw(20)
    assert plan.realised() == pytest.approx([0.0, 0.0, 0.2, 0.2, 0.4, 0.4])


def test_a_copy_of_a_model_draws_for_itself():
    model, x = build("vit_tiny_patch16_224"), images("vit_tiny_patch16_224")
    install(model, 0.5)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(x), model(x))  # both drew the same first plan
    twin(x[:3])  # and this one is not the other's
    model(x)


def test_checkpointed_blocks_are_computed_again_under_the_same_plan():
    plain, saving = build("vit_tiny_patch16_224"), build("vit_tiny_patch16_224")
    saving.set_grad_checkpointing()
    x, gradients = images("vit_tiny_patch16_224"), []
    for model in (plain, saving):
        install(model, 0.5)
        gradients.append(loss_and_gradients(model, x)[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


class Alone(nn.Module):
    """The first block with nothing in its shortcut, with what it is called with besides."""

    def __init__(self, model, x):
        super().__init__()
        block = next(
            part
            for part in model.modules()
            if type(part) in ADAPTERS
            and isinstance(getattr(part, "downsample", None), nn.Identity | None)
        )
        called = []
        hook = block.register_forward_pre_hook(lambda m, args: called.append(args))
        model(x)
        hook.remove()
        self.block, self.x, self.rest = block, called[0][0].detach(), called[0][1:]

    def forward(self, x):
        return self.block(x, *self.rest)


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("regnet")])
def test_nothing_is_kept_but_what_the_kept_rows_need(name):
    alone = Alone(build(name), images(name))
    x = alone.x.clone().requires_grad_()
    half = saved_bytes(alone, x[: len(x) // 2].detach().clone().requires_grad_())
    depth = install(alone, 0.5)
    row_numbers = 8 * len(x) * len(depth.rates)
    assert half <= saved_bytes(alone, x) <= half + row_numbers


def test_of_an_activation_behind_the_sum_a_byte_a_number_is_kept():
    alone = Alone(build("regnety_002"), images("regnety_002"))
    x = alone.x.clone().requires_grad_()
    half = saved_bytes(alone, x[: len(x) // 2].detach().clone().requires_grad_())
    product = []
    alone.block.se.register_forward_hook(lambda m, args, out: product.append(out))
    alone(x)
    depth = install(alone, 0.5)
    row_numbers = 8 * len(x) * len(depth.rates)
    instead = x.numel() - 4 * x.numel() // 2 - 4 * product[0].numel() // 2  # gated anew
    assert half + instead <= saved_bytes(alone, x) <= half + instead + row_numbers


def test_channels_last_memory_is_kept():
    model = build("convnext_atto").to(memory_format=torch.channels_last)
    install(model, 0.5)
    seen = []
    for block in model.modules():
        if type(block) in ADAPTERS:
            block.register_forward_hook(lambda m, i, out: seen.append(out))
    model(images("convnext_atto").contiguous(memory_format=torch.channels_last))
    wide = [out for out in seen if min(out.shape[2:]) > 1]
    assert wide
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in wide)


def test_blocks_without_a_shortcut_are_left_alone_and_others_named():
    model = timm.create_model("regnety_002")
    for block in model.modules():
        if isinstance(block, regnet.Bottleneck):
            block.downsample = None
            break
    count = sum(isinstance(m, regnet.Bottleneck) for m in model.modules())
    assert len(install(model, 0.5).rates) == count - 1
    mixed = nn.Sequential(
        build("resmlp_s12"), timm.create_model("cait_xxs24_224", drop_path_rate=0.1)
    )
    left = install(mixed, 0.5).left
    assert left
    assert all(name.startswith("1.") for name in left)


def test_what_cannot_be_dropped_is_refused():
    with pytest.raises(ValueError, match="no block that stochastic depth knows"):
        install(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match=r"1\.0 must be at least 0 and below 1"):
        install(build("resmlp_s12"), 1.0)
