import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from farreach import config as configs
from farreach.errors import DataError
from farreach.learn.place import Place
from farreach_workloads.vision.selfsup import figures
from farreach_workloads.vision.selfsup.task import PretrainTask

DEBUG = "vision/msn_clipart_debug"
CLASSES = ("blue", "green", "red")


def task_of(*words):
    config = configs.load(configs.find(DEBUG), list(words)).config
    torch.manual_seed(0)
    return PretrainTask(config)


def evaluated(task):
    with torch.no_grad():
        return task.evaluate(Place())


def a_set(tmp_path, bad=(), counts=(30, 20, 10)):
    """A Parquet file of noisy pictures in three colours, of which some rows are none.

    The first half of each class is to train on.
    """
    rng, rows, labels, split = np.random.default_rng(0), [], [], []
    for label, count in enumerate(counts):
        for number in range(count):
            pixels = rng.integers(0, 40, (12, 12, 3)).astype(np.uint8)
            pixels[..., 2 - label] += 180
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            rows.append(b"no picture" if len(rows) in bad else content.getvalue())
            labels.append(CLASSES[label])
            split.append("train" if number < count // 2 else "test")
    table = pa.table({"image": rows, "label": labels, "split": split})
    pq.write_table(table, tmp_path / "set.parquet")
    return [f"data.path={tmp_path / 'set.parquet'}", "training.batch=8"]


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    """Rows 15 to 29 are held-out blue ones, 30 to 39 green ones to train on."""
    task = task_of(*a_set(tmp_path, {0, 28, 29}))
    found = evaluated(task)
    assert found["evaluation/images"] == 28
    assert any("2 held-out images cannot be read and are left out" in n for n in task.remarks())
    references, known, held_out, asked = task.seen
    assert len(references) == len(known) == 29
    assert len(held_out) == len(asked) == 28
    assert np.bincount(held_out.labels).tolist() == [13, 10, 5]
    # As those that are there are without the others.
    (tmp_path / "whole").mkdir()
    whole = task_of(*a_set(tmp_path / "whole"))
    evaluated(whole)
    torch.testing.assert_close(asked[-15:], whole.seen[3][-15:])
    assert whole.remarks() == [note for note in task.remarks() if "cannot be read" not in note]


def test_held_out_images_of_which_none_can_be_read_are_no_result(tmp_path):
    bad = {*range(15, 30), *range(40, 50), *range(55, 60)}
    with pytest.raises(DataError, match=r"set\.parquet, row 15: is no image that can be read"):
        evaluated(task_of(*a_set(tmp_path, bad)))


def test_a_linear_layer_is_trained_on_the_same_features(tmp_path):
    words = a_set(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    task = task_of(*words)
    torch.manual_seed(1)
    found = evaluated(task)
    assert torch.equal(torch.rand(3), expected)
    assert found["evaluation/linear_top1"] > 0.9
    assert evaluated(task) == found
    without = evaluated(task_of(*words, "probe.linear=false"))
    assert without == {k: v for k, v in found.items() if k != "evaluation/linear_top1"}
    assert "evaluation/linear_top1" not in evaluated(task_of(*words, "probe.references=1"))


PRIOR = ["method.prior.kind=power", "method.prior.exponent=1", "method.prototypes=10"]


def told(loss, used):
    names = ("learner/cross_entropy", "learner/prototypes_used")
    return dict(zip(names, torch.tensor([loss, used]), strict=True))


def remarks_after(task, *periods):
    found = []
    for period in periods:
        for loss, used in period:
            task._towards_prior.count(told(loss, used))
        found.append([note for note in task.remarks() if "answers with the prior" in note])
    return found


def test_outputs_that_come_to_be_the_prior_are_remarked_on():
    """With K = 10 and π ∝ 1 / k that loss is 1.138; periods are between two evaluations."""
    early, late = [(2.3, 10.0), (2.1, 8.0)], [(1.12, 3.0), (1.18, 2.0), (1.11, 3.0)]
    first, second, third = remarks_after(task_of(*PRIOR), early, late, [(1.13, 1.0)])
    assert first == []
    assert "near 1.14" in second[0]
    assert third == second  # which is said once


@pytest.mark.parametrize(
    ("words", "late"),
    [
        (PRIOR, [(0.9, 3.0)]),  # below: outputs differ
        (PRIOR, [(1.3, 3.0)]),  # above
        (PRIOR, [(1.138, 9.0)]),  # prototypes are used as before
        ([*PRIOR, "method.sinkhorn=prior"], [(1.138, 3.0)]),  # targets cannot collapse so
        (["method.prototypes=10"], [(2.303, 3.0)]),  # where training begins
    ],
)
def test_other_losses_are_no_collapse(words, late):
    assert remarks_after(task_of(*words), [(2.3, 9.0)], late) == [[], []]


def test_methods_without_prototypes_have_no_such_remark():
    config = configs.load(configs.find("vision/simclr_clipart_debug")).config
    task = PretrainTask(config)
    batch = task.data.batch(np.arange(4), np.arange(4))
    task.loss(task.model, batch, 0, 0)
    assert task.remarks() == []


def bars_of(figure):
    """Label → (n,) heights of the bars of the first axes, above those below them."""
    data = {patch.get_label(): patch.get_data() for patch in figure.axes[0].patches}
    return {label: one.values - one.baseline for label, one in data.items()}


def test_the_use_of_prototypes_is_shown_by_classes_beside_the_prior(tmp_path):
    task = task_of(*PRIOR, *a_set(tmp_path))
    evaluated(task)
    with torch.no_grad():
        figure = figures.prototypes(task)
    heights = bars_of(figure)
    prior = heights.pop("prior")
    np.testing.assert_allclose(prior[:2], [0.3414, 0.1707], atol=1e-4)  # 1 and 1 / 2 of 2.9290
    assert list(heights) == ["head classes", "medium classes", "tail classes"]
    shares = [height.sum() for height in heights.values()]
    np.testing.assert_allclose(shares, [15 / 30, 10 / 30, 5 / 30])
    whole = sum(heights.values())
    assert (np.diff(whole) <= 1e-9).all()


def test_classes_of_one_size_are_shown_together(tmp_path):
    task = task_of(*PRIOR, *a_set(tmp_path, counts=(20, 20, 20)))
    evaluated(task)
    with torch.no_grad():
        assert list(bars_of(figures.prototypes(task))) == ["all classes", "prior"]
