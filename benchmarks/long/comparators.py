"""The two comparators of the reachability network, trained side by side on the same random walks.

`python benchmarks/long/comparators.py RUN` takes the walks and the memory nodes of a run of
`goals/walk_maze` and trains a fresh network of each kind on the walks in the order in which they
were made, with a refresh after each twelfth. After every refresh it counts the pairs of nodes that
lie far apart and are still called reachable: in a graph, each of them would be a shortcut.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from farreach import config as configs
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.rundir import RunDirectory
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.environments.base import Floats
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.reachability_trainer import ReachabilityTrainer

REFRESHES = 12
# Ours, and the paper's with the sizes that served it best in the maze.
COMPARATORS: dict[str, dict[str, Any]] = {
    "metric": {"comparator": "metric"},
    "network": {"comparator": "network", "hidden": 128, "embedding": 32},
}


def walks_in_order(checkpoint: Checkpoint) -> Floats:
    """The random walks that a checkpoint holds, oldest first: (n, steps + 1, d)."""
    ring = checkpoint.part("reachability")["walks"]
    observations: Floats = ring["columns"]["observations"]
    return np.roll(observations, -(ring["total"] % len(observations)), axis=0)


def count_far(
    config: GoalsRunConfig, walks: Floats, nodes: Floats, far: np.ndarray
) -> list[tuple[int, float]]:
    """Train on the walks; (far pairs called reachable, validation accuracy) after each refresh.

    Args:
        config: of the run, with the comparator to try.
        walks: (n, steps + 1, d).
        nodes: (m, d).
        far: (m, m) bool, which pairs to count.
    """
    spec = make_environment(config.environment, 1).spec
    trainer, found = ReachabilityTrainer(config, spec), []
    for portion in np.array_split(walks, REFRESHES):
        trainer.add({"observations": portion})
        weights, metrics = trainer.refresh()
        features = Features(spec, config.features, config.reachability, weights.scale, weights.unit)
        embeddings = weights.network.embed(features.reachability(nodes))
        called = weights.network.all_pairs(embeddings, embeddings) > 0
        found.append((int((called & far).sum()), metrics["reachability/validation_accuracy"]))
    return found


def main() -> None:
    """Read the run, train both, print a line per refresh."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="a run of goals/walk_maze that has a checkpoint")
    parser.add_argument("--far", type=float, default=12.0, help="units of free path; default: 12")
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run)
    config: Any = configs.load(run.config_path).config
    checkpoint = CheckpointStore(run.checkpoints).newest()
    if checkpoint is None:
        parser.error(f"{run.path} has no checkpoint")
    walks = walks_in_order(checkpoint)
    nodes = Bundle.from_arrays(checkpoint.part("learner")["bundle"]).nodes
    env = make_environment(config.environment, 1)
    start, end = np.indices((len(nodes), len(nodes))).reshape(2, -1)
    apart = env.path_distance(nodes[start], nodes[end]).reshape(len(nodes), len(nodes))
    far = apart > arguments.far
    results = {}
    for name, change in COMPARATORS.items():
        reachability = config.reachability.model_copy(update=change)
        changed = config.model_copy(update={"reachability": reachability})
        results[name] = count_far(changed, walks, nodes, far)
    for refresh, (ours, peer) in enumerate(zip(*results.values(), strict=True), 1):
        line = {
            "name": "far_pairs",
            "ours": ours[0],
            "peer": peer[0],
            "ratio": ours[0] / max(1, peer[0]),
            "unit": f"pairs of {int(far.sum())} called reachable",
            "refresh": refresh,
            "ours_accuracy": round(ours[1], 4),
            "peer_accuracy": round(peer[1], 4),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
