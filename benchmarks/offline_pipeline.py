"""Wall seconds of the offline pipeline's large stages on ten million steps of the maze.

`maze_generate` records them, against the maze stepped one at a time as a gymnasium environment.
`maze_embed_assign` embeds all observations and finds both nearest nodes of each, with the paper's
network, against the network in PyTorch on all pairs of states and nodes. The peers do a part and
are extrapolated. `python benchmarks/offline_pipeline.py` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from farreach import config as configs
from farreach import datasets, runtime
from farreach_workloads.goals.environments.export import as_gymnasium
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.fresh import pipeline
from farreach_workloads.goals.reachability import ReachabilityNetwork, fold

EPISODES, STEPS = 10_000, 1_000
PEER_STEPS = 20_000
PEER_STATES = 20_000
NODES = 250


def generated(folder: Path) -> Any:
    """Record the data set, with the row that says how long it took."""
    begin = time.monotonic()
    store = datasets.generate("data/maze_random", [], folder)
    ours = time.monotonic() - begin
    env = as_gymnasium("maze")
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (PEER_STEPS, 2)).astype(np.float32)
    begin = time.monotonic()
    for action in actions:
        env.step(action)
    peer = (time.monotonic() - begin) * EPISODES * STEPS / PEER_STEPS / (os.cpu_count() or 1)
    measure.row(
        "maze_generate",
        ours,
        peer,
        "wall seconds for 10M steps",
        peer / ours,
        peer_name="gymnasium farreach/UFourRooms-v0, one at a time, on as many cores",
        peer_extrapolated_from_steps=PEER_STEPS,
    )
    return store


def assigned(store: Any) -> None:
    """Both nearest nodes of every state, with a network of the paper's size and random weights."""
    config: Any = configs.load(configs.find("goals/fresh_maze_paper")).config
    env = make_environment(config.environment, 1)
    rng = np.random.default_rng(0)
    ones = np.ones(env.spec.observation_dim, np.float32)
    features = Features(env.spec, config.features, config.reachability, ones, ones)
    torch.manual_seed(0)
    network = ReachabilityNetwork(features.reachability_width, config.reachability).eval()
    folded = fold(network)
    nodes = store["observation"][rng.integers(0, store.rows, NODES)]
    embeddings = folded.embed(features.reachability(nodes))
    begin = time.monotonic()
    outward, inward = pipeline.nearest_of_all(store, features, folded, embeddings, config.runtime)
    ours = time.monotonic() - begin
    rows = np.sort(rng.integers(0, store.rows, PEER_STATES))
    states = torch.from_numpy(features.reachability(store["observation"][rows]))
    begin = time.monotonic()
    found = naive(network, states, torch.from_numpy(features.reachability(nodes)))
    peer = (time.monotonic() - begin) * store.rows / PEER_STATES / (os.cpu_count() or 1)
    agree = np.mean((found[0] == outward[rows]) & (found[1] == inward[rows]))
    measure.row(
        "maze_embed_assign",
        ours,
        peer,
        "wall seconds for 10M states, both directions",
        peer / ours,
        nodes=NODES,
        agreement=float(agree),
        peer_name="the network in PyTorch on all pairs, on as many cores",
        peer_extrapolated_from_states=PEER_STATES,
    )


@torch.inference_mode()
def naive(
    network: ReachabilityNetwork, states: torch.Tensor, nodes: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Best node of each state outward and inward, by the comparator on every pair."""
    own, theirs = network.encoder(states), network.encoder(nodes)
    best: list[list[torch.Tensor]] = [[], []]
    for part in own.split(200):
        left = part.repeat_interleave(len(theirs), dim=0)
        right = theirs.repeat(len(part), 1)
        for found, pair in zip(best, ((left, right), (right, left)), strict=True):
            logits = network.comparator(torch.cat(pair, dim=1))
            found.append(logits.view(len(part), len(theirs)).argmax(dim=1))
    outward, inward = (torch.cat(found).numpy() for found in best)
    return outward, inward


def main() -> None:
    """Both rows, in one Ray."""
    measure.rows_asked(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, runtime.connection(1.0):
        assigned(generated(Path(folder) / "maze"))


if __name__ == "__main__":
    main()
