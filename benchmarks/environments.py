"""Steps per CPU-second of our batched environments, with the policy in the loop.

Peers: gymnasium-robotics' PointMaze and dm_control's walker, one copy at a time, with a policy of
the same size. `python benchmarks/environments.py` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import warnings
from typing import Any

import gymnasium
import gymnasium_robotics
import measure
import numpy as np
import torch

from farreach_workloads.goals.config import AgentConfig, FeaturesConfig, ReachabilityConfig
from farreach_workloads.goals.environments.base import GoalEnvironment, GoalEnvironmentSpec
from farreach_workloads.goals.environments.maze import Maze
from farreach_workloads.goals.environments.walker import Walker
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.sac import Policy

ROUNDS = 5
PEER_STEPS = 1_000
UNIT = "steps per CPU-second"


def policy_for(spec: GoalEnvironmentSpec) -> Policy:
    """A policy of the default size, 2 × 128, with arbitrary weights."""
    ones = np.ones(spec.observation_dim, np.float32)
    features = Features(spec, FeaturesConfig(), ReachabilityConfig(), ones, ones)
    return Policy(AgentConfig(), features, spec.action_dim)


def run_ours(env: GoalEnvironment, steps: int) -> None:
    """One episode from the reset on."""
    policy, rng = policy_for(env.spec), np.random.default_rng(0)
    goals = env.goals(env.num_envs, rng)
    observations = env.reset()
    for _ in range(steps):
        observations = env.step(policy.act(observations, goals, rng))


def run_point_maze(env: gymnasium.Env[Any, Any], policy: torch.nn.Module) -> None:
    """Step one PointMaze; an episode lasts until gymnasium ends it."""
    observation, _ = env.reset(seed=0)
    for _ in range(PEER_STEPS):
        pair = np.concatenate([observation["observation"], observation["desired_goal"]])
        with torch.inference_mode():
            mean, log_std = policy(torch.from_numpy(pair[None].astype(np.float32))).chunk(2, 1)
            action = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))[0].numpy()
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()


def maze() -> None:
    """Row `maze`."""
    copies, steps = 256, 100
    env = Maze(copies, np.random.default_rng(0))
    gymnasium.register_envs(gymnasium_robotics)
    peer = gymnasium.make("PointMaze_UMaze-v3")
    policy = torch.nn.Sequential(
        torch.nn.Linear(6, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 4),
    )
    measure.compare_rates(
        "maze",
        UNIT,
        (lambda: run_ours(env, steps), copies * steps),
        (lambda: run_point_maze(peer, policy), PEER_STEPS),
        ROUNDS,
        copies=copies,
        peer_name="gymnasium-robotics PointMaze_UMaze-v3, one at a time",
    )
    peer.close()


def run_dm_control(peer: Any, spec: GoalEnvironmentSpec, goals: np.ndarray) -> None:
    """Step dm_control's walker with the same policy, asked for one action at a time."""
    policy, rng = policy_for(spec), np.random.default_rng(0)
    timestep = peer.reset()
    for _ in range(PEER_STEPS):
        observation = np.hstack(list(timestep.observation.values()))[None].astype(np.float32)
        timestep = peer.step(policy.act(observation, goals, rng)[0])
        if timestep.last():
            timestep = peer.reset()


def walker() -> None:
    """Row `walker`."""
    from dm_control import suite

    copies, steps = 64, 50
    env = Walker(copies, np.random.default_rng(0))
    goals = env.goals(1, np.random.default_rng(0))
    peer = suite.load("walker", "walk", task_kwargs={"random": 0})
    measure.compare_rates(
        "walker",
        UNIT,
        (lambda: run_ours(env, steps), copies * steps),
        (lambda: run_dm_control(peer, env.spec, goals), PEER_STEPS),
        ROUNDS,
        copies=copies,
        peer_name="dm_control suite walker, one at a time",
    )
    env.close()


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    maze()
    walker()


if __name__ == "__main__":
    main()
