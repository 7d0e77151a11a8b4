import numpy as np
import pytest

from farreach.learn.order import Order, permuted, share
from farreach.learn.schedules import warmup_cosine


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    order = Order(10, seed=3)
    first, second = order.rows(0, 10), order.rows(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert Order(10, seed=4).rows(0, 10).tolist() != first.tolist()


def test_a_part_is_the_same_wherever_one_begins():
    whole = Order(7, seed=0).rows(0, 30)
    order = Order(7, seed=0)
    for begin, count in ((25, 5), (0, 3), (6, 2), (13, 9), (4, 0)):
        assert order.rows(begin, count).tolist() == whole[begin : begin + count].tolist()


def test_repeats_come_in_a_row_and_keep_the_length():
    rows = Order(10, seed=0, repeats=3).rows(0, 10)
    assert len(set(rows.tolist())) == 4
    assert all(len(set(rows[i : i + 3].tolist())) == 1 for i in (0, 3, 6))


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (2, 4)])
def test_shares_cover_a_batch_evenly(count, world):
    rows = np.arange(count)
    parts = [rows[share(count, rank, world)] for rank in range(world)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_rate_is_linear_and_then_half_a_cosine():
    values = [warmup_cosine(d, 0.2, 1.0, 0.5, 0.1) for d in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)]
    # In the middle of the fall it is half way between the peak and the floor.
    assert values == pytest.approx([0.5, 0.75, 1.0, 0.55, 0.1, 0.1])


def test_every_count_is_permuted():
    for count in (*range(1, 200), 1023, 1024, 1025):
        rows = permuted(np.arange(count), count, key=count)
        assert sorted(rows.tolist()) == list(range(count))


def test_neighbours_go_far_apart():
    """Steps between what follows one another are as those of random rows: a third on average."""
    rows = permuted(np.arange(10_000), 10_000, key=1)
    assert np.abs(np.diff(rows)).mean() == pytest.approx(10_000 / 3, rel=0.05)
    other = permuted(np.arange(10_000), 10_000, key=2)
    assert (rows == other).mean() < 0.002


def test_a_billion_samples_cost_no_more_than_a_few():
    rows = permuted(np.arange(10**9 - 5, 10**9), 10**9, key=0)
    assert len(set(rows.tolist())) == 5
    assert rows.max() < 10**9
