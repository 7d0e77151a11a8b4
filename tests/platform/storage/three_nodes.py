"""Resumes a run on three nodes of one machine that have caches of their own.

`python three_nodes.py FOLDER URI key=value …`: the caches are FOLDER/0, FOLDER/1 and FOLDER/2.
"""

import os
import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 100 << 20


def main(folder, uri, *settings):
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for number in range(3):
        cache = {"FARREACH_CACHE": f"{folder}/{number}"}
        cluster.add_node(num_cpus=1, env_vars=cache, object_store_memory=STORE_BYTES)
    os.environ["RAY_ADDRESS"] = cluster.address
    from farreach.cli import main as cli

    try:
        return cli.main(["resume", uri, *settings])
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
