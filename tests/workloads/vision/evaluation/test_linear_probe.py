from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from farreach.errors import ConfigError, DataError
from farreach.seeding import child_seed
from farreach_workloads.vision.evaluation.linear_probe import (
    MSN,
    VISSL,
    Head,
    ProbeRecipe,
    probe,
    probe_layers,
    probe_rates,
)

SHORT = replace(MSN, epochs=20, batch=64)
SHORT_VISSL = replace(VISSL, batch=64)


def rows_of(count, seed, spread=0.5, classes=3, dim=8):
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(50))
    labels = torch.arange(count) % classes
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + spread * noise, labels


TRAIN, TEST = rows_of(200, 1), rows_of(99, 2)


@pytest.mark.parametrize("recipe", [SHORT, SHORT_VISSL])
def test_separate_classes_are_learned(recipe):
    results = probe(*rows_of(200, 1, 0.1), *rows_of(99, 2, 0.1), 3, recipe)
    assert results == {"top1": 1.0, "top1_best_epoch": 1.0, "balanced_accuracy": 1.0,
        "head": 1.0, "medium": 1.0, "tail": 1.0,
    }  # fmt: skip


def test_noise_gives_chance_at_the_last_epoch_and_more_at_the_best():
    train, test = rows_of(60, 1, 1e3), rows_of(600, 2, 1e3)
    results = probe(*train, *test, 3, SHORT)
    assert results["top1"] == pytest.approx(1 / 3, abs=0.08)
    assert results["top1_best_epoch"] >= results["top1"]


def test_the_head_normalises_as_its_recipe_says():
    x = TRAIN[0]
    head = Head(8, 3, MSN, 0)
    rows = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    rows = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(x), rows @ head.linear.weight.t())
    head = Head(8, 3, VISSL, 0)
    rows = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), rows @ head.linear.weight.t())
    large = Head(400, 500, VISSL, 0).linear
    assert float(large.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not large.bias.any()


def nesterov(x, y, test_x, head, rates, decay, batch):
    """The same training with its own update: v = 0.9 v + g, w = w - lr (g + 0.9 v)."""
    decayed = {id(p) for p in head.linear.parameters()}
    speed = {p: torch.zeros_like(p) for p in head.parameters()}
    order = torch.Generator().manual_seed(child_seed(3, "probe/order"))
    for epoch in rates:
        rows = torch.randperm(len(x), generator=order)
        for step, rate in enumerate(epoch):
            part = rows[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(head(x[part]), y[part])
            gradients = torch.autograd.grad(loss, list(head.parameters()))
            with torch.no_grad():
                for p, gradient in zip(head.parameters(), gradients, strict=True):
                    g = gradient + decay * p if id(p) in decayed else gradient
                    speed[p] = 0.9 * speed[p] + g
                    p -= rate * (g + 0.9 * speed[p])
    head.eval()
    return head(test_x).argmax(1)


def test_steps_of_ten_are_taken_at_8_16_and_24_of_28_epochs():
    """128 rows per step double the rate of 256 times a half: 0.01 becomes 0.005."""
    recipe = replace(VISSL, batch=128, weight_decay=0.1, lr=1.0)
    rates = [[0.5 * 0.1 ** ((e >= 8) + (e >= 16) + (e >= 24))] for e in range(28)]
    x, y = rows_of(200, 1, 3.0)
    test_x, test_y = rows_of(3000, 2, 3.0)
    predicted = nesterov(x, y, test_x, Head(8, 3, recipe, 3), rates, 0.1, 128)
    expected = float((predicted == test_y).double().mean())
    assert probe(x, y, test_x, test_y, 3, recipe, seed=3)["top1"] == pytest.approx(expected)


@pytest.mark.parametrize("last", [0.0, 0.25])
def test_the_cosine_falls_with_every_step(last):
    recipe = replace(MSN, epochs=5, batch=50, last=last)
    steps = torch.arange(20).double()
    share = (1 + torch.cos(torch.pi * steps / 20)) / 2
    rates = (6.4 * (last + (1 - last) * share)).view(5, 4).tolist()
    x, y = rows_of(200, 1, 3.0)
    test_x, test_y = rows_of(3000, 2, 3.0)
    predicted = nesterov(x, y, test_x, Head(8, 3, recipe, 3), rates, 0.0, 50)
    expected = float((predicted == test_y).double().mean())
    assert probe(x, y, test_x, test_y, 3, recipe, seed=3)["top1"] == pytest.approx(expected)


def test_equal_seeds_give_equal_results_and_draw_nothing_from_the_common_stream():
    noisy = (*rows_of(120, 1, 3.0), *rows_of(600, 2, 3.0))
    torch.manual_seed(5)
    expected = torch.rand(5)
    torch.manual_seed(5)
    first = probe(*noisy, 3, SHORT, seed=1)
    assert torch.equal(torch.rand(5), expected)
    assert probe(*noisy, 3, SHORT, seed=1) == first
    assert probe(*noisy, 3, SHORT, seed=2) != first


@pytest.mark.parametrize("recipe", [SHORT, SHORT_VISSL])
def test_rates_side_by_side_are_as_if_alone(recipe):
    data = (*rows_of(120, 1, 3.0), *rows_of(600, 2, 3.0))
    both = probe_rates(*data, 3, recipe, [0.1, 1.0])
    assert list(both) == [0.1, 1.0]
    for lr, results in both.items():
        assert probe(*data, 3, replace(recipe, lr=lr)) == results


def test_balanced_accuracy_counts_each_class_once():
    """Trained on labels that are all 0, the probe says 0: 3 of 4 rows, 1 of 2 classes."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    test_y = torch.tensor([0, 0, 0, 1]).repeat(10)
    results = probe(x, torch.zeros(40, dtype=torch.long), x, test_y, 2, SHORT)
    assert results["top1"] == 0.75
    assert results["balanced_accuracy"] == 0.5


def test_the_best_layer_is_named():
    good, bad = rows_of(120, 1, 0.2), rows_of(120, 1, 50.0)
    test_good, test_bad = rows_of(99, 2, 0.2), rows_of(99, 2, 50.0)
    best, results = probe_layers(
        {"early": bad[0], "late": good[0], "wide": torch.cat([good[0], bad[0]], 1)},
        good[1],
        {"early": test_bad[0], "wide": torch.cat([test_good[0], test_bad[0]], 1)}
        | {"late": test_good[0]},
        test_good[1],
        3,
        SHORT,
    )
    assert best == "late"
    assert results["late"]["top1"] > results["early"]["top1"]
    assert list(results) == ["early", "late", "wide"]


def test_the_published_recipes():
    assert ProbeRecipe("layer", 100, 8192, 6.4, False, 0.0, "cosine") == MSN
    assert ProbeRecipe("batch", 28, 256, 0.01, True, 0.0005, "steps") == VISSL


def test_features_stay_as_they_are_and_double_ones_are_taken():
    x = TRAIN[0].double()
    before = x.clone()
    probe(x, TRAIN[1], TEST[0].double(), TEST[1], 3, replace(MSN, epochs=1))
    assert torch.equal(x, before)
    assert isinstance(Head(8, 3, MSN, 0).norm, nn.LayerNorm)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="of one image"):
        probe(TRAIN[0][:1], TRAIN[1][:1], *TEST, 3, SHORT)
    with pytest.raises(DataError, match="test labels: run from 0 to 2"):
        probe(TRAIN[0][:1], TRAIN[1][:1], *TEST, 2, SHORT)
    with pytest.raises(ConfigError, match="different rates"):
        probe_rates(*TRAIN, *TEST, 3, SHORT, [1.0, 1.0])
    with pytest.raises(DataError, match="Give the same layers"):
        probe_layers({"a": TRAIN[0]}, TRAIN[1], {"b": TEST[0]}, TEST[1], 3, SHORT)


def test_a_probe_that_diverges_is_no_result():
    """Weights that are no numbers would say class 0 of every row, which looks like chance."""
    message = r"diverged, after epoch 1 of 20 .* lr=1e\+38\. Set a lower"
    with pytest.raises(DataError, match=message):
        probe(*TRAIN, *TEST, 3, replace(SHORT_VISSL, epochs=20, lr=1e38))


def test_rates_at_which_it_diverges_are_left_out(capsys):
    data = (*TRAIN, *TEST, 3, SHORT_VISSL)
    found = probe_rates(*data, [1e38, 0.1])
    assert found == probe_rates(*data, [0.1])
    assert "diverged at lr=1e+38, which is left out" in capsys.readouterr().err
