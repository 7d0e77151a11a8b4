import math

import pytest
import timm
import torch
from torch.nn import functional as F

from farreach_workloads.vision.cosub import (
    classification_loss,
    cosub_loss,
    mutual_loss,
    self_distillation_loss,
    soft_distillation,
)
from farreach_workloads.vision.stochastic_depth import install


def test_bce_is_a_mean_over_images_and_classes():
    # softplus(0) - y 0 = ln 2 for each of four entries.
    loss = classification_loss(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), "bce")
    assert loss.item() == pytest.approx(math.log(2))


def test_cross_entropy_is_a_mean_over_images():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert classification_loss(logits, target, "ce").item() == pytest.approx(expected)


def test_each_submodel_learns_half_from_the_label_and_half_from_the_other():
    # o₁ = (0, 0) and o₂ = (ln 3, ln 3): σ = ½ and ¾. With y = (1, 0) the first one's target is
    # (⅞, ⅜), and ∂L/∂o₁ = (σ(o₁) - t₁) / (2 K) = (-3/32, 1/32).
    first = torch.zeros(1, 2, requires_grad=True)
    second = torch.full((1, 2), math.log(3.0), requires_grad=True)
    loss = mutual_loss(first, second, torch.tensor([[1.0, 0.0]]), 0.5, "bce")
    loss.backward()
    torch.testing.assert_close(first.grad, torch.tensor([[-3 / 32, 1 / 32]]))
    # The second one's target is (¾, ¼): ∂L/∂o₂ = ((¾ - ¾) / 4, (¾ - ¼) / 4).
    torch.testing.assert_close(second.grad, torch.tensor([[0.0, 1 / 8]]))
    parts = [
        F.binary_cross_entropy_with_logits(o, t)
        for o, t in (
            (first, torch.tensor([[1.0, 0.0]])),
            (first, torch.full((1, 2), 0.75)),
            (second, torch.tensor([[1.0, 0.0]])),
            (second, torch.full((1, 2), 0.5)),
        )
    ]
    torch.testing.assert_close(loss, sum(parts) / 4)


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_the_order_of_the_submodels_does_not_count(kind):
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 4, generator=g) for _ in range(2))
    target = F.one_hot(torch.tensor([0, 3, 1]), 4).float()
    one, other = (
        mutual_loss(*pair, target, 0.3, kind) for pair in ((first, second), (second, first))
    )
    torch.testing.assert_close(one, other)


def test_without_a_mutual_part_it_is_the_mean_of_two_plain_losses():
    g = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 4, generator=g) for _ in range(2))
    target = F.one_hot(torch.tensor([0, 3, 1]), 4).float()
    plain = [classification_loss(o, target, "ce") for o in (first, second)]
    torch.testing.assert_close(mutual_loss(first, second, target, 0.0, "ce"), sum(plain) / 2)


def test_cosub_with_equal_submodels_is_a_plain_step_of_half_the_size():
    """With the same plan in both halves q is σ(o), and its part has no gradient."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=4).train()
    x, target = torch.randn(2, 3, 32, 32), F.one_hot(torch.tensor([0, 2]), 4).float()
    depth = install(model, 0.5)

    def same(batch, device="cpu"):
        depth.plan = type(depth).draw(depth, batch, device)
        rows = [
            None if r is None else torch.cat([torch.tensor([0]), torch.tensor([2])])
            for r in depth.plan.rows
        ]
        depth.plan = type(depth.plan)(rows, [2.0] * len(rows), batch)
        return depth.plan

    depth.draw = same
    loss, metrics = cosub_loss(model, depth, x, target)
    loss.backward()
    found = model.head.weight.grad.clone()
    assert metrics["learner/disagreement"].item() == 0.0
    model.zero_grad()
    logits = model(torch.cat([x, x]))[:2]
    (0.5 * classification_loss(logits, target, "bce")).backward()
    torch.testing.assert_close(found, model.head.weight.grad, atol=1e-6, rtol=1e-4)


def test_submodels_differ_and_teach_each_other():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=4, img_size=32, num_classes=10).train()
    depth = install(model, 0.5)
    x, target = torch.randn(16, 3, 32, 32), F.one_hot(torch.arange(16) % 10, 10).float()
    loss, metrics = cosub_loss(model, depth, x, target)
    loss.backward()
    assert depth.halves == 2
    assert 0.0 < metrics["learner/disagreement"].item() <= 1.0
    assert metrics["learner/dropped_share"].item() == pytest.approx(0.5, abs=0.07)
    parts = [metrics[f"learner/{name}_loss"].item() for name in ("label", "mutual")]
    assert loss.item() == pytest.approx(0.5 * parts[0] + 0.5 * parts[1])
    assert parts[0] != pytest.approx(parts[1], rel=1e-3)


def test_cosub_without_drops_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=4)
    with pytest.raises(ValueError, match="Set a drop rate above 0"):
        cosub_loss(model, install(model, 0.0), torch.randn(1, 3, 32, 32), torch.ones(1, 4))


def test_soft_distillation_is_a_divergence_over_all_entries():
    # At T = 2 the teacher's (2 ln 3, 0) gives (¾, ¼) and the own (0, 0) gives (½, ½):
    # KL = ¾ ln 1.5 + ¼ ln 0.5, times 4, over 1 × 2 entries.
    taught, own = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_distillation(own, taught, 2.0).item() == pytest.approx(expected)
    assert soft_distillation(taught, taught, 3.0).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_in_self_distillation_the_whole_network_teaches_a_submodel(kind):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=32, num_classes=4).train()
    x, target = torch.randn(8, 3, 32, 32), F.one_hot(torch.arange(8) % 4, 4).float()
    with torch.no_grad():
        whole = model(x)
    depth = install(model, 0.5, seed=3)
    loss, metrics = self_distillation_loss(model, depth, x, target, 0.25, kind)
    loss.backward()
    found = model.head.weight.grad.clone()
    # The same again, by hand: the teacher's answers are those of the model as it was made.
    model.zero_grad()
    depth.reseed(0, 0)
    own = model(x)
    q = whole.sigmoid() if kind == "bce" else whole.softmax(1)
    parts = [classification_loss(own, t, kind) for t in (target, q)]
    expected = 0.75 * parts[0] + 0.25 * parts[1]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, model.head.weight.grad)
    told = [metrics[f"learner/{name}_loss"] for name in ("label", "mutual")]
    torch.testing.assert_close(told, [part.detach() for part in parts])
    assert 0.0 <= metrics["learner/disagreement"].item() <= 1.0
