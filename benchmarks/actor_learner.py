"""How well the actor-learner uses two CPU cores.

`busy_share`: share of wall time that the learner of a real run of `goals/walk_maze` spends on
updates; the peer is the ideal, 1. `evaluation_500`: seconds for 500 maze episodes, against the same
episodes one at a time. `python benchmarks/actor_learner.py` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import measure
import numpy as np
import torch

from farreach.metrics import read_metrics
from farreach_workloads.goals import parts
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.evaluate import Evaluator
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.sac import Policy

ROUNDS = 5
TRAINED_MINUTES = 1.5
LAST_S = 60.0
SHARE = "throughput/learner_busy_share"
EPISODES, PEER_EPISODES = 500, 10


def trained(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run of `TRAINED_MINUTES` without evaluations in between."""
    settings = (
        "runtime.rollout_actors=1",
        "evaluation.every_steps=1000000000",
        "evaluation.stop_success=null",
        f"training.max_minutes={TRAINED_MINUTES}",
        "training.env_steps=1000000000",
    )
    command = [sys.executable, "-m", "farreach", "train", "goals/walk_maze", *settings]
    run = folder / "run"
    # Standard output is for the rows alone.
    subprocess.run([*command, "--run-dir", str(run)], check=True, stdout=sys.stderr)
    return read_metrics(run / "metrics.jsonl")


def busy_share() -> None:
    """Row `busy_share`."""
    with tempfile.TemporaryDirectory() as folder:
        records = [record for record in trained(Path(folder)) if SHARE in record]
    times = [record["time"] for record in records]
    # A record is about the time since the one before it.
    spans = np.diff(times)
    late = np.array(times[1:]) > times[-1] - LAST_S
    shares = np.array([record[SHARE] for record in records[1:]])
    share = float(np.average(shares[late], weights=spans[late]))
    updates = np.array([record.get("throughput/updates_per_s", 0.0) for record in records[1:]])
    measure.row(
        "busy_share",
        share,
        1.0,
        "share of wall time",
        share,
        measured_s=round(float(spans[late].sum()), 1),
        updates_per_s=round(float(np.average(updates[late], weights=spans[late])), 1),
        peer_name="ideal",
    )


def one_at_a_time(env: Any, policy: Policy, goals: np.ndarray) -> None:
    """The first `PEER_EPISODES` evaluation episodes through gymnasium."""
    for goal in goals[:PEER_EPISODES]:
        observation, _ = env.reset()
        truncated = False
        while not truncated:
            action = policy.act(observation[None], goal[None])[0]
            observation, _, _, truncated, _ = env.step(action)


def evaluation() -> None:
    """Row `evaluation_500`."""
    config = GoalsRunConfig.model_validate({"evaluation": {"episodes": EPISODES}})
    evaluator: Evaluator = parts.make_evaluator(config)
    spec = make_environment(config.environment, 1).spec
    ones = np.ones(spec.observation_dim, np.float32)
    features = Features(spec, config.features, config.reachability, ones, ones)
    policy = Policy(config.agent, features, spec.action_dim)
    env = gymnasium.make("farreach/UFourRooms-v0")
    env.reset(seed=0)
    ours, peer = measure.medians(
        [
            lambda: evaluator._run(policy, None),
            lambda: one_at_a_time(env, policy, evaluator.goals),
        ],
        ROUNDS,
    )
    peer *= EPISODES / PEER_EPISODES
    measure.row(
        "evaluation_500",
        ours,
        peer,
        "CPU seconds",
        peer / ours,
        peer_name="gymnasium farreach/UFourRooms-v0, one at a time",
        peer_extrapolated_from_episodes=PEER_EPISODES,
    )
    env.close()


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    evaluation()
    busy_share()


if __name__ == "__main__":
    main()
