import pytest
import torch

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.shift import (
    SetScore,
    masked,
    masked_top1,
    merged,
    scored,
    scored_any,
    shift_table,
)

# Seven classes; the highest first: 0, 1, 2, … for the first row, 6, 5, 4, … for the second.
LOGITS = torch.stack([torch.arange(7.0).flip(0), torch.arange(7.0)])


def test_the_highest_and_the_five_highest_by_hand():
    assert scored(LOGITS, torch.tensor([0, 2])) == SetScore(0.5, 1.0, 2)
    assert scored(LOGITS, torch.tensor([5, 5])) == SetScore(0.0, 0.5, 2)
    assert scored(LOGITS[:, :3], torch.tensor([2, 0])) == SetScore(0.0, 1.0, 2)


def test_classes_outside_the_set_are_not_considered():
    """Among 2, 3 and 5 the first row says 2, the second 5."""
    labels = torch.tensor([2, 3])
    assert scored(LOGITS, labels).top1 == 0.0
    assert masked_top1(LOGITS, labels, [2, 3, 5]) == 0.5
    kept = masked(LOGITS, {2, 3, 5})
    assert kept.argmax(1).tolist() == [2, 5]
    assert torch.isneginf(kept[:, [0, 1, 4, 6]]).all()
    assert masked_top1(LOGITS, labels, range(7)) == 0.0


def test_masks_do_not_change_what_is_right_already():
    logits = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 10
    plain = logits.argmax(1) == labels
    inside = masked(logits, range(10)).argmax(1)
    assert (inside[plain] == labels[plain]).all()
    expected = torch.tensor([max(range(10), key=row.__getitem__) for row in logits.tolist()])
    assert torch.equal(inside, expected)


def test_a_class_may_stand_for_several():
    """Chair is 1 and 6, dog is 2: the first row's best of 1, 2, 6 is 1, the second's is 6."""
    members = [(1, 6), (2,)]
    assert merged(LOGITS, members).tolist() == [[5.0, 4.0], [6.0, 2.0]]
    assert scored(merged(LOGITS, members), torch.tensor([0, 1])) == SetScore(0.5, 1.0, 2)
    logits = torch.randn(100, 9, generator=torch.Generator().manual_seed(0))
    members = [[0, 4], [8], [2, 3, 5]]
    owner = {label: number for number, own in enumerate(members) for label in own}
    best = masked(logits, owner).argmax(1).tolist()
    assert merged(logits, members).argmax(1).tolist() == [owner[label] for label in best]


def test_any_of_several_labels_is_right_and_images_without_one_are_left_out():
    logits = torch.cat([LOGITS, LOGITS])
    accepted = [{0, 3}, [5], set(), {0, 1}]
    # Right at once; second, so among five; left out; last and last but one: missed.
    assert scored_any(logits, accepted) == SetScore(1 / 3, 2 / 3, 3)


def test_single_labels_are_a_case_of_several():
    logits = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 12
    assert scored_any(logits, [{label} for label in labels.tolist()]) == scored(logits, labels)


def test_the_table_compares_with_its_base():
    scores = {"sketch": SetScore(0.25, 0.5, 40), "val": SetScore(0.75, 1.0, 100)}
    table = shift_table(scores, "val")
    assert list(table) == ["val", "sketch"]
    assert table["val"] == {"top1": 0.75, "top5": 1.0, "n": 100.0, "drop": 0.0}
    assert table["sketch"] == {"top1": 0.25, "top5": 0.5, "n": 40.0, "drop": 0.5}


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(DataError, match="one label per row"):
        scored(LOGITS, torch.tensor([0]))
    with pytest.raises(DataError, match="one label per row"):
        scored(LOGITS, torch.tensor([0, 7]))
    with pytest.raises(DataError, match="labels: 1 and 0 others are not among the 2"):
        masked_top1(LOGITS, torch.tensor([1, 2]), [2, 3])
    with pytest.raises(DataError, match="not all from 0 to 6"):
        masked(LOGITS, [3, 7])
    with pytest.raises(DataError, match="stands for none"):
        merged(LOGITS, [[1], []])
    with pytest.raises(DataError, match="0 of them not empty"):
        scored_any(LOGITS, [set(), set()])
    with pytest.raises(DataError, match="base: val is none of a"):
        shift_table({"a": SetScore(1.0, 1.0, 1)}, "val")
