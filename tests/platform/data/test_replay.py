import numpy as np
import pytest

from farreach.data.replay import Ring
from farreach.errors import CheckpointError


def records(*values):
    return {"x": np.array(values, np.float32), "y": np.array(values)[:, None] * [1, 10]}


def test_the_newest_records_are_kept_and_every_slot_is_used():
    ring = Ring(3)
    ring.append(records(1, 2))
    assert len(ring) == 2
    assert ring.append(records(3, 4)).tolist() == [2, 0]
    assert sorted(ring["x"]) == [2, 3, 4]
    assert ring["y"][0].tolist() == [4, 40]
    assert ring.total == 4


def test_more_records_than_the_capacity_leave_the_last_ones():
    ring = Ring(2)
    ring.append(records(1, 2, 3, 4, 5))
    assert sorted(ring["x"]) == [4, 5]


def test_a_restored_ring_goes_on_as_if_nothing_had_happened():
    ring, again = Ring(3), Ring(3)
    ring.append(records(1, 2, 3, 4))
    again.restore(ring.state())
    for each in (ring, again):
        each.append(records(5))
    np.testing.assert_array_equal(ring["x"], again["x"])
    again["x"][:] = 0  # a copy, not the checkpoint's own arrays
    assert ring["x"].any()


def test_other_columns_and_another_capacity_are_refused():
    ring = Ring(3)
    ring.append(records(1))
    with pytest.raises(ValueError, match="columns"):
        ring.append({"x": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match="3 records"):
        Ring(4).restore(ring.state())
