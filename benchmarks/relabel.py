"""Training rows per CPU-second of the offline relabelling, rewards included.

The peer does the same row by row in plain Python, as the released code of arXiv:2301.02099 fills
its buffer: for each transition and goal a walk along the shortest path, a row for every node and
every stored edge on it, and for each row its reward with the network's term.
`python benchmarks/relabel.py` prints one JSON line.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import measure
import numpy as np

from farreach import config as configs
from farreach import datasets
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.fresh.cover import transitions
from farreach_workloads.goals.fresh.pipeline import Foundation, Pipeline
from farreach_workloads.goals.fresh.relabel import PathRows, PathSource
from farreach_workloads.goals.learner import ROWS_TOGETHER
from farreach_workloads.goals.rewards import sigmoid

ROUNDS = 5
COUNT = 2048
SETTINGS = ["episodes=200", "steps=1000", "runtime.placement=inline"]


def foundation_in(folder: Path) -> tuple[Any, Foundation]:
    """The stages of the paper's preset on 200,000 transitions of the maze."""
    datasets.generate("data/maze_random", SETTINGS, folder / "data")
    overrides = [f"data.path={folder}/data", f"data.cache={folder}/cache"]
    overrides += ["reachability.epochs=1", "memory.keep_frac=0.05", "runtime.placement=inline"]
    config: Any = configs.load(configs.find("goals/fresh_maze_paper"), overrides).config
    env = make_environment(config.environment, 1)
    return config, Pipeline(config, env, lambda line: None).run(lambda epoch, metrics: None)


class RowByRow:
    """The peer: one row at a time."""

    def __init__(self, config: Any, base: Foundation) -> None:
        """Arrays as the stages leave them, and the stored edges in a dictionary."""
        self._config, self._base = config, base
        self._following = transitions(base.store)
        self._paths = base.graph.paths
        rows, starts = base.graph.edge_rows, base.graph.edge_starts
        self._stored = {
            (int(i), int(j)): rows[starts[e] : starts[e + 1]]
            for (i, j), e in np.ndenumerate(base.graph.edge)
            if e >= 0
        }
        self._rng = np.random.default_rng(0)
        self._observations = base.store["observation"][np.arange(base.store.rows)]
        self._actions = base.store["action"][np.arange(base.store.rows)]
        self._features = base.bundle.features(config, make_environment(config.environment, 1).spec)

    def fill(self, count: int) -> np.ndarray:
        """Rewards of at least `count` rows."""
        rows: list[tuple[Any, ...]] = []
        rng, hops, next_hop = self._rng, self._paths.hops, self._paths.next_hop
        observations, actions, nodes = self._observations, self._actions, self._base.bundle.nodes
        while len(rows) < count:
            following = self._following[rng.integers(len(self._following))]
            goal_row = rng.integers(len(observations))
            goal = observations[goal_row]
            start, end = self._base.outward[following], self._base.inward[goal_row]
            path = [start]
            while path[-1] != end:
                path.append(next_hop[path[-1], end])
            state, action = observations[following - 1], actions[following]
            rows.append((state, action, observations[following], goal, hops[start, end]))
            rows += [
                (state, action, observations[following], nodes[node], hops[start, node])
                for node in path
            ]
            for tail, head in pairwise(path):
                stored = self._stored.get((tail, head))
                if stored is not None:
                    row = stored[rng.integers(len(stored))]
                    rows.append(
                        (
                            observations[row - 1],
                            actions[row],
                            observations[row],
                            goal,
                            hops[head, end],
                        )
                    )
        return np.array([self._reward(*row[2:]) for row in rows[:count]])

    def _reward(self, following: np.ndarray, goal: np.ndarray, hops: int) -> float:
        network, settings = self._base.bundle.network, self._config.reward
        start = network.embed(self._features.reachability(following[None]))
        end = network.embed(self._features.reachability(goal[None]))
        near = float(sigmoid(network.logits(start, end))[0]) - 1
        return settings.scale * (settings.weight * near - hops)


def main() -> None:
    """Build the stages once, then take turns."""
    measure.rows_asked(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        config, base = foundation_in(Path(folder))
        rows = PathRows(
            base.store,
            transitions(base.store),
            base.outward,
            base.inward,
            base.graph,
            config.relabel,
        )
        rng = np.random.default_rng(0)
        env = make_environment(config.environment, 1)
        features = base.bundle.features(config, env.spec)
        source = PathSource(rows, base.store, base.bundle, features, config.reward, env)
        peer = RowByRow(config, base)

        def ours() -> None:
            for _ in range(5):
                source.fetch(rows.draw(ROWS_TOGETHER, rng).shuffled(rng))

        seconds, theirs = measure.medians([ours, lambda: peer.fill(COUNT)], ROUNDS)
    rate, peer_rate = 5 * ROWS_TOGETHER / seconds, COUNT / theirs
    unit = "rows per CPU-second"
    measure.row("rows", rate, peer_rate, unit, rate / peer_rate, together=ROWS_TOGETHER)


if __name__ == "__main__":
    main()
