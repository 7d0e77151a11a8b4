"""RLlib's SAC with the sparse reward of our goal environments, judged by our evaluation.

    python benchmarks/rllib_sac_baseline.py --env farreach/UFourRoomsGoal-v0 --minutes 2

RLlib sees the Dict observation flattened, in alphabetical order: achieved goal, desired goal,
observation. Evaluation is that of `farreach evaluate`: the same held-out goals and starts, the
most likely action, success at the last step. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import FlattenObservation
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from farreach import registry, runtime, seeding
from farreach_workloads.goals import environments as _registers_environments  # noqa: F401
from farreach_workloads.goals.environments.base import Floats
from farreach_workloads.goals.evaluate import GOALS_SEED

FLAT = "flat-goal-environment"
BATCH = 256


def flat_environment(options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment called `options["id"]` with a Box observation."""
    return FlattenObservation(gymnasium.make(options["id"]))


def build(env_id: str, seed: int) -> Algorithm:
    """SAC in this process, with networks and discount as in our defaults."""
    tune.register_env(FLAT, flat_environment)
    config = (
        SACConfig()
        .environment(FLAT, env_config={"id": env_id})
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .rl_module(model_config={"head_fcnet_hiddens": [128, 128], "fcnet_hiddens": [128]})
        .training(
            gamma=0.95,
            actor_lr=1e-3,
            critic_lr=1e-3,
            alpha_lr=1e-3,
            train_batch_size_per_learner=BATCH,
            num_steps_sampled_before_learning_starts=1000,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 400_000},
        )
        .reporting(min_sample_timesteps_per_iteration=100)
        .debugging(seed=seed, log_level="ERROR")
    )
    return config.build_algo()


def train(algorithm: Algorithm, minutes: float) -> dict[str, float]:
    """Train until the time is up; steps, updates and minutes."""
    begun_s = time.monotonic()
    result: dict[str, Any] = {}
    while not result or time.monotonic() - begun_s < 60 * minutes:
        result = algorithm.train()
    learner = result["learners"].get("default_policy", {})
    return {
        "training/env_steps": float(result["num_env_steps_sampled_lifetime"]),
        "training/updates": learner.get("num_module_steps_trained_lifetime", 0) / BATCH,
        "training/minutes": (time.monotonic() - begun_s) / 60,
    }


@torch.inference_mode()
def act(module: RLModule, observations: Floats, goals: Floats, goal_dims: list[int]) -> Floats:
    """Tanh of the mean, (n, a); RLlib's own deterministic action leaves out the tanh."""
    parts = [observations[:, goal_dims], goals[:, goal_dims], observations]
    flat = torch.from_numpy(np.concatenate(parts, axis=1))
    outputs = module.forward_inference({Columns.OBS: flat})
    mean, _log_std = outputs[Columns.ACTION_DIST_INPUTS].chunk(2, dim=1)
    return np.tanh(mean.numpy())


def evaluate(module: RLModule, env_id: str, episodes: int) -> dict[str, float]:
    """Success at the last step and at any step on held-out goals."""
    name = gymnasium.spec(env_id).kwargs["name"]
    env = registry.environments.get(name)(num_envs=episodes, rng=np.random.default_rng(0))
    goals = env.goals(episodes, np.random.default_rng(GOALS_SEED))
    env.rng = np.random.default_rng(seeding.child_seed(GOALS_SEED, "reset"))
    observations = env.reset()
    least = np.full(episodes, np.inf)
    for _ in range(env.spec.horizon):
        actions = act(module, observations, goals, list(env.spec.goal_dims))
        for _ in range(env.spec.action_repeat):
            observations = env.step(actions)
        distance = env.distance(observations, goals)
        least = np.minimum(least, distance)
    env.close()
    threshold = env.spec.success_threshold
    return {
        "evaluation/success_final": float((distance < threshold).mean()),
        "evaluation/success_any": float((least < threshold).mean()),
        "evaluation/final_distance": float(distance.mean()),
    }


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description="RLlib's SAC on a goal environment of ours.")
    parser.add_argument("--env", default="farreach/UFourRoomsGoal-v0")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--episodes", type=int, default=500, help="held-out goals")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runtime.connect(1)
    algorithm = build(options.env, options.seed)
    metrics = train(algorithm, options.minutes)
    module = algorithm.get_module()
    assert module is not None
    metrics |= evaluate(module, options.env, options.episodes)
    algorithm.stop()
    runtime.disconnect()
    facts = {"algorithm": "rllib-sac", "env": options.env, "seed": options.seed}
    print(json.dumps({**facts, **{name: round(value, 4) for name, value in metrics.items()}}))


if __name__ == "__main__":
    main()
