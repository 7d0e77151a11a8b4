import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import brentq, check_grad, minimize
from scipy.special import expit, log_softmax

from farreach.data.images import FolderImages
from farreach.errors import DataError
from farreach_workloads.vision.evaluation.lowshot import (
    accuracy,
    few_of_each,
    fit_logistic,
    listed,
    low_shot,
    normalised,
    of_choices,
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


def test_given_choices_are_fitted_as_drawn_ones_are():
    train, test = clusters(8, spread=2.0), clusters(50, spread=2.0, seed=1)
    drawn = low_shot(*train, *test, classes=4, per_class=(2,), splits=3, seed=5)
    choices = [few_of_each(train[1], 2, split, 5) for split in range(3)]
    given = of_choices(*train, *test, 4, choices, 0.0025)
    assert {f"2/{name}": value for name, value in given.items()} == drawn
    one = of_choices(*train, *test, 4, choices[1:2], 0.0025)
    assert one["mean"] == one["split_0"] == drawn["2/split_1"]
    assert math.isnan(one["sd"])


@pytest.fixture
def images(tmp_path):
    """Of two classes: cat/0.JPEG, cat/n1_1.JPEG, dog/0.JPEG, dog/n2_7.JPEG."""
    for name in ("cat/0", "cat/n1_1", "dog/0", "dog/n2_7"):
        file = tmp_path / "train" / f"{name}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    return FolderImages(tmp_path / "train")


def a_list(tmp_path, *names):
    file = tmp_path / "list.txt"
    file.write_text("\n".join(names) + "\n\n")
    return file


def test_lists_name_images_with_or_without_their_folder(tmp_path, images):
    file = a_list(tmp_path, "n2_7.JPEG", "cat/0.JPEG", "train/dog/0.JPEG", "n1_1.jpg")
    [rows] = listed([file], images)
    assert rows.tolist() == [3, 0, 2, 1]
    [rows] = listed([file], images.subset(np.array([3, 2, 1, 0])))
    assert rows.tolist() == [0, 3, 1, 2]


def test_lists_name_samples_of_tar_files(tmp_path):
    class Samples:
        def __len__(self):
            return 2

        def name(self, index):
            return f"/data/train-00.tar, sample {('n1/n1_1', 'n2_7')[index]}"

    one, other = (tmp_path / name for name in ("one.txt", "other.txt"))
    one.write_text("n2_7.JPEG\nn1_1.JPEG")
    other.write_text("n1/n1_1.JPEG\n")
    assert [rows.tolist() for rows in listed([one, other], Samples())] == [[1, 0], [0]]


def test_names_of_no_image_or_of_several_are_counted(tmp_path, images):
    file = a_list(tmp_path, "n1_1.JPEG", "n9_1.JPEG", "dog/n1_1.JPEG")
    message = r"list\.txt: 2 of 3 names are of no training image, such as n9_1.JPEG, dog/n1_1.JPEG"
    with pytest.raises(DataError, match=message):
        listed([file], images)
    with pytest.raises(DataError, match=r"1 of 1 names are of several .* CLASS/NAME"):
        listed([a_list(tmp_path, "0.JPEG")], images)
    with pytest.raises(DataError, match=r"list\.txt: names no image"):
        listed([a_list(tmp_path)], images)
    with pytest.raises(DataError, match=r"none\.txt: is no list that can be read"):
        listed([tmp_path / "none.txt"], images)
