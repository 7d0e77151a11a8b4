from collections import Counter

import numpy as np
import pytest

from farreach.errors import ConfigError
from farreach.learn.order import share
from farreach_workloads.vision.selfsup.config import SamplerConfig
from farreach_workloads.vision.selfsup.sampling import (
    Stratified,
    Weighted,
    power_law_shares,
    sampled,
)

LABELS = np.repeat(np.arange(6), [12, 12, 30, 9, 15, 20])


class Rows:
    def __len__(self):
        return len(LABELS)

    def batch(self, rows, positions):
        return {"rows": rows, "positions": positions}


def test_stratified_batches_have_few_classes_and_each_class_comes_as_often():
    sampler = Stratified(LABELS, classes=2, batch=8, seed=0)
    seen, pairs = Counter(), set()
    for batch in range(30):  # ten rounds of three batches
        rows = sampler.rows(np.arange(8 * batch, 8 * batch + 8))
        classes = Counter(LABELS[rows].tolist())
        assert sorted(classes.values()) == [4, 4]
        pairs.add(tuple(sorted(classes)))
        seen.update(classes)
    assert set(seen.values()) == {40}
    assert len(pairs) > 5, "classes meet others from round to round"


def test_a_class_shows_all_its_images_before_it_repeats_one():
    sampler = Stratified(LABELS, classes=2, batch=8, seed=1)
    rows = sampler.rows(np.arange(8 * 9))  # three rounds: twelve images of each class
    for label in (0, 1):
        of_class = rows[LABELS[rows] == label]
        assert sorted(of_class) == np.flatnonzero(label == LABELS).tolist()


def test_shares_of_any_number_of_workers_hold_all_classes_of_the_batch():
    sampler = Stratified(LABELS, classes=2, batch=8, seed=0)
    whole = sampler.rows(np.arange(16, 24))
    for world in (2, 4):
        parts = [sampler.rows(np.arange(16, 24)[share(8, rank, world)]) for rank in range(world)]
        assert np.concatenate(parts).tolist() == whole.tolist()
        assert all(len(set(LABELS[part].tolist())) == 2 for part in parts)


@pytest.mark.parametrize(
    ("classes", "batch", "message"),
    [(4, 8, "divide the 6 classes there are. Take one of 1, 2"), (3, 8, "the 8 training.batch")],
)
def test_what_does_not_divide_is_refused(classes, batch, message):
    with pytest.raises(ConfigError, match=message):
        Stratified(LABELS, classes, batch, 0)


def test_classes_come_by_their_weights():
    counts = np.bincount(LABELS)
    wanted = {
        "power": power_law_shares(6, 1.0, seed=3),
        "square_root": np.sqrt(counts) / np.sqrt(counts).sum(),
    }
    for kind, shares in wanted.items():
        data = sampled(Rows(), LABELS, SamplerConfig(kind=kind), 8, 3)
        assert len(data) == len(LABELS)
        rows = data.batch(np.zeros(20_000, np.int64), np.arange(20_000))["rows"]
        found = np.bincount(LABELS[rows], minlength=6) / 20_000
        assert found == pytest.approx(shares, abs=0.012), kind
        within = np.bincount(rows[LABELS[rows] == 2], minlength=len(LABELS))[24:54]
        assert within.min() > 0.6 * within.mean(), "all images of a class come alike"


def test_the_power_law_is_of_a_permutation_of_the_classes():
    shares = power_law_shares(6, 1.0, seed=0)
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])
    assert sorted(shares, reverse=True) == pytest.approx((expected / expected.sum()).tolist())


def test_the_same_position_has_the_same_image():
    sampler = Weighted(LABELS, np.ones(6), seed=5)
    whole = sampler.rows(np.arange(50))
    assert sampler.rows(np.arange(20, 30)).tolist() == whole[20:30].tolist()
    assert (
        sampler.rows(np.arange(50)).tolist()
        != Weighted(LABELS, np.ones(6), 6).rows(np.arange(50)).tolist()
    )


def test_shuffled_is_the_data_itself():
    data = Rows()
    assert sampled(data, LABELS, SamplerConfig(), 8, 0) is data
