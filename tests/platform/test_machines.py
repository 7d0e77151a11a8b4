import sys

import pytest

from farreach.testing import networks
from farreach.testing.machines import machines

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(networks.obstacle() is not None, reason=str(networks.obstacle())),
]

DRIVER = """
import os, ray
ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
address = ray.remote(ray.util.get_node_ip_address)
print(*[ray.get(address.options(resources={kind: 1}).remote()) for kind in ("a", "b")])
"""


def test_machines_have_addresses_and_resources_of_their_own_and_data_crosses_between_them():
    with machines([{"a": 1}, {"b": 1}]) as cluster:
        before = cluster.hosts[1].traffic()
        done = cluster.run([sys.executable, "-c", DRIVER], capture_output=True, text=True)
        assert done.stdout.split() == [host.address for host in cluster.hosts], done.stderr
        assert cluster.hosts[1].traffic().since(before).received > 0
        assert all(host.pids() for host in cluster.hosts)
    assert not any(host.pids() for host in cluster.hosts)


def test_a_node_that_ends_is_told_of_with_what_it_said():
    with pytest.raises(RuntimeError, match="resources"), machines([{"CPU": 1}]):
        pass
