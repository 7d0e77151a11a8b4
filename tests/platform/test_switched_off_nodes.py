import os

import pytest

from farreach.testing.nodes import several_nodes
from farreach.testing.processes import descendants, runs


@pytest.mark.ray
def test_the_head_can_be_switched_off_too_and_nothing_stays():
    before = set(descendants(os.getpid()))
    with several_nodes([{"num_cpus": 1}], head_cpus=0) as nodes:
        started = set(descendants(os.getpid())) - before
        assert len(nodes.ids()) == 2
        for node in nodes.ids()[::-1]:
            nodes.switch_off(node)
        assert nodes.ids() == []
    assert len(started) >= 4  # of each node a raylet and its agents, and the head's control process
    assert [pid for pid in started if runs(pid)] == []
