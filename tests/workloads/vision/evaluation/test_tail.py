import math

import pytest
import torch

from farreach_workloads.vision.evaluation.tail import (
    balanced_accuracy,
    head_medium_tail,
    per_class_accuracy,
)

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2])
CORRECT = torch.tensor([1, 1, 1, 0, 1, 0, 0], dtype=torch.bool)


def test_each_class_counts_once():
    """3 of 4, 1 of 2, 0 of 1, and none of a fourth class: (3/4 + 1/2 + 0) / 3, not 4/7."""
    by_class = per_class_accuracy(CORRECT, LABELS, 4)
    assert by_class[:3].tolist() == [0.75, 0.5, 0.0]
    assert math.isnan(by_class[3])
    assert balanced_accuracy(CORRECT, LABELS, 4) == pytest.approx(1.25 / 3)


def test_thirds_of_the_classes_by_training_frequency():
    """Seven classes, thirds of 3, 2 and 2; of the three with 5 images 1 and 4 are in the head."""
    counts = torch.tensor([1, 5, 9, 2, 5, 5, 3])  # order 2, 1, 4 | 5, 6 | 3, 0
    labels = torch.arange(7).repeat(2)
    correct = torch.zeros(14, dtype=torch.bool)
    correct[[2, 9, 1, 8, 4]] = True  # both of 2 and 1, one of 4
    correct[[5]] = True  # one of 5
    assert head_medium_tail(correct, labels, counts) == pytest.approx(
        {"head": 2.5 / 3, "medium": 0.25, "tail": 0.0}
    )


def test_a_third_without_test_images_is_unknown():
    parts = head_medium_tail(CORRECT[:4], LABELS[:4], torch.tensor([9, 5, 1]))
    assert parts["head"] == 0.75
    assert math.isnan(parts["medium"])
    assert math.isnan(parts["tail"])
