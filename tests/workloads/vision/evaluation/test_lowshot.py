import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, check_grad, minimize
from scipy.special import expit, log_softmax

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.lowshot import (
    accuracy,
    few_of_each,
    fit_logistic,
    low_shot,
    normalised,
)


def clusters(per_class, classes=4, dim=12, spread=0.1, seed=0):
    """Rows around one centre per class, and their labels in mixed order."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat(per_class)
    rows = centres[labels] + spread * torch.randn(len(labels), dim, generator=rng)
    return rows, labels


def objective(flat, x, labels, penalty):
    """By numpy and scipy, from its definition."""
    w = flat.reshape(-1, x.shape[1])
    log_p = log_softmax(x @ w.T, axis=1)
    return -log_p[np.arange(len(x)), labels].mean() + penalty / 2 * (w**2).sum()


def test_rows_are_centred_by_their_own_mean_and_divided_by_their_length():
    rows = normalised(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]))
    expected = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(rows, expected / math.sqrt(14))


def test_two_classes_on_a_line_by_root_finding():
    """x = 1 of class 1, x = -1 of class 0: W = (-w, w) with log(1 + exp(-2 w)) + λ w² least."""
    penalty = 0.01
    w = brentq(lambda w: expit(-2 * w) - penalty * w, 0, 100, xtol=1e-14)
    found = fit_logistic(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]), 2, penalty)
    np.testing.assert_allclose(found.numpy(), [[-w], [w]], rtol=1e-5)


def test_the_solution_is_that_of_another_solver_and_has_no_gradient():
    rows, labels = clusters(3, spread=1.0)
    x, y, penalty = normalised(rows).numpy(), labels.numpy(), 1e-3
    found = fit_logistic(torch.from_numpy(x), labels, 4, penalty).numpy().ravel()
    other = minimize(objective, np.zeros(48), (x, y, penalty), method="BFGS", tol=1e-7).x
    np.testing.assert_allclose(found, other, atol=1e-3)
    flat = check_grad(objective, lambda *_: np.zeros(48), found, x, y, penalty, epsilon=1e-6)
    start = check_grad(objective, lambda *_: np.zeros(48), 0 * found, x, y, penalty, epsilon=1e-6)
    assert flat < 1e-5 * start


def test_few_images_of_many_classes_are_not_taken_for_solved_at_the_start():
    """At W = 0 no entry of the gradient exceeds 1 / n."""
    x = torch.eye(300, dtype=torch.float64)
    found = fit_logistic(x, torch.arange(300), 300, 1e-5)
    assert accuracy(found, x, torch.arange(300)) == 1.0
    assert float(found.diagonal().min()) > 5


def test_order_of_rows_and_turns_of_the_space_change_nothing():
    rows, labels = clusters(3, spread=1.0)
    x = normalised(rows)
    found = fit_logistic(x, labels, 4, 1e-2)
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        fit_logistic(x[mixed], labels[mixed], 4, 1e-2), found, atol=1e-4, rtol=0
    )
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    torch.testing.assert_close(
        fit_logistic(x @ turn, labels, 4, 1e-2), found @ turn, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found.sum(0), torch.zeros(12).double(), atol=1e-6, rtol=0)


def test_images_repeated_count_as_one_at_the_same_penalty():
    rows, labels = clusters(2, spread=1.0)
    x = normalised(rows)
    once = fit_logistic(x, labels, 4, 1e-2)
    twice = fit_logistic(torch.cat([x, x]), torch.cat([labels, labels]), 4, 1e-2)
    torch.testing.assert_close(twice, once, atol=1e-4, rtol=0)


def test_choices_are_nested_and_depend_on_the_split_and_the_seed():
    labels = torch.arange(3).repeat(20)
    five = few_of_each(labels, 5, 0, 7)
    assert labels[five].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(set(five.tolist())) == 15
    two = few_of_each(labels, 2, 0, 7)
    assert two.view(3, 2).tolist() == five.view(3, 5)[:, :2].tolist()
    assert few_of_each(labels, 5, 0, 7).tolist() == five.tolist()
    assert few_of_each(labels, 5, 1, 7).tolist() != five.tolist()
    assert few_of_each(labels, 5, 0, 8).tolist() != five.tolist()


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(DataError, match="class 1: has 2 images, 3 are to be chosen"):
        few_of_each(torch.tensor([0, 0, 0, 1, 1]), 3, 0, 0)
    with pytest.raises(DataError, match="class 1: has 0 images"):
        few_of_each(torch.tensor([0, 2]), 1, 0, 0)


def test_separable_features_are_all_right():
    train, test = clusters(6), clusters(10, seed=1)
    results = low_shot(*train, *test, classes=4)
    assert {key: value for key, value in results.items() if "split" not in key} == {
        "1/mean": 1.0,
        "1/sd": 0.0,
        "2/mean": 1.0,
        "2/sd": 0.0,
        "5/mean": 1.0,
        "5/sd": 0.0,
    }


def test_noise_gives_chance_and_the_spread_is_of_the_splits():
    train, test = clusters(8, spread=1e3), clusters(250, spread=1e3, seed=1)
    results = low_shot(*train, *test, classes=4, per_class=(2,), splits=4)
    splits = [results[f"2/split_{number}"] for number in range(4)]
    assert results["2/mean"] == pytest.approx(sum(splits) / 4)
    assert results["2/sd"] == pytest.approx(
        math.sqrt(sum((s - results["2/mean"]) ** 2 for s in splits) / 3)
    )
    # 4 splits of 1000 images at 1/4.
    assert results["2/mean"] == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 1000))


def test_lengths_and_means_of_rows_do_not_count():
    (x, y), (test_x, test_y) = clusters(5, spread=1.0), clusters(20, spread=1.0, seed=1)
    plain = low_shot(x, y, test_x, test_y, 4, (2,))
    assert low_shot(3 * x + 5, y, 0.5 * test_x - 2, test_y, 4, (2,)) == plain


def test_what_does_not_fit_together_is_refused():
    x, y = clusters(5)
    with pytest.raises(DataError, match="class 4 has no image"):
        low_shot(x, y, x, y, classes=5)
    with pytest.raises(DataError, match="run from 0 to 3, but there are 3 classes"):
        low_shot(x, y, x, y, classes=3)
    with pytest.raises(DataError, match="1 of 20 rows hold NaN"):
        low_shot(torch.cat([x[:1] * torch.nan, x[1:]]), y, x, y, classes=4)
    with pytest.raises(DataError, match="One row per label"):
        low_shot(x[1:], y, x, y, classes=4)
