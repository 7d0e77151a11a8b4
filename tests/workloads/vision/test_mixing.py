import numpy as np
import pytest
import torch

from farreach_workloads.vision.mixing import Mixing, smoothed


def images(count=4, side=8):
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, side, side)


def test_smoothing_gives_every_class_its_share():
    target = smoothed(torch.tensor([2, 0]), 4, 0.2)
    expected = torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(target, expected)
    assert smoothed(torch.tensor([1]), 3, 0.0).tolist() == [[0.0, 1.0, 0.0]]


def test_mixup_mixes_with_the_reversed_batch_by_one_weight():
    mixed, target = Mixing(mixup=0.8)(images(), torch.arange(4), 4, np.random.default_rng(0))
    weight = float(np.random.default_rng(0).beta(0.8, 0.8))
    # Image i is i everywhere: i w + (3 - i) (1 - w).
    expected = [i * weight + (3 - i) * (1 - weight) for i in range(4)]
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor(expected))
    torch.testing.assert_close(target[1], torch.tensor([0.0, weight, 1 - weight, 0.0]))


def test_cutmix_pastes_a_box_and_counts_its_area():
    for seed in range(20):
        mixed, target = Mixing(cutmix=1.0)(
            images(side=16), torch.arange(4), 4, np.random.default_rng(seed)
        )
        pasted = (mixed[0, 0] == 3.0).float()
        torch.testing.assert_close(target[0, 3], pasted.mean())
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        rows, columns = torch.nonzero(pasted, as_tuple=True)
        if len(rows):  # a box has no holes
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert int(area) == len(rows)
    assert images()[0].sum() == 0  # the batch itself is left as it was


def test_each_batch_gets_one_kind_in_the_shares_asked_for():
    mixing, rng = Mixing(mixup=0.8, cutmix=1.0, switch=0.25), np.random.default_rng(0)
    kinds = [mixing._kind(rng) for _ in range(4_000)]
    assert kinds.count("cutmix") / 4_000 == pytest.approx(0.25, abs=0.03)
    assert set(kinds) == {"cutmix", "mixup"}


def test_without_mixing_images_stay_and_targets_are_smoothed():
    same, target = Mixing(smoothing=0.1)(images(), torch.arange(4), 4, np.random.default_rng(0))
    assert torch.equal(same, images())
    torch.testing.assert_close(target, smoothed(torch.arange(4), 4, 0.1))
