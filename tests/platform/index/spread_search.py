"""Searches an index whose shards are on two nodes of one machine, of which one is lost.

`python spread_search.py INDEX QUERIES.npy` prints JSON: on how many nodes the shards were before
and after, and whether both searches found what one process finds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import ray

from farreach import runtime
from farreach.index.store import Index
from farreach.testing.nodes import several_nodes


def main(folder, queries):
    index, queries = Index.open(Path(folder)), np.load(queries)
    expected = index.search(queries, 10)
    told = {"nodes": [], "same": []}
    with several_nodes([{"num_cpus": 1}, {"num_cpus": 1}], head_cpus=0) as nodes:
        ray.init(
            address=nodes.address, log_to_driver=False, runtime_env=runtime.local_runtime_env()
        )
        with index.serve() as remote:
            for loses in (True, False):
                there = {service.place.node for service in remote._shards._services}
                found = remote.search(queries, 10)
                told["nodes"].append(len(there))
                told["same"].append(
                    bool(
                        (found.rows == expected.rows).all()
                        & (found.scores == expected.scores).all()
                    )
                )
                if loses:
                    nodes.add(num_cpus=1)
                    nodes.switch_off(sorted(there)[0])
        ray.shutdown()
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
