"""RLlib at the edges: our policy acts in RLlib, and RLlib's recordings are data for us."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.cli import main
from farreach.errors import CheckpointError, ConfigError, DataError
from farreach.rundir import RunDirectory
from farreach_workloads.goals import parts
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.sac import Policy

# Importing and running RLlib warns about RLlib's and Ray's own affairs.
pytestmark = [pytest.mark.ray]

ENV = "farreach/UFourRoomsGoal-v0"
TINY = ["training.env_steps=4000", "evaluation.episodes=5", "evaluation.every_steps=4000"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    launch.train("goals/walk_maze_debug", TINY, run_dir=root / "run", root=root)
    return RunDirectory.open(root / "run")


@pytest.fixture(scope="module")
def trained(run):
    """Config and newest checkpoint."""
    return configs.load(run.config_path).config, CheckpointStore(run.checkpoints).newest()


def our_policy(config, checkpoint):
    learner = checkpoint.part("learner")
    spec = parts.make_environment(config, 1).spec
    features = Bundle.from_arrays(learner["bundle"]).features(config, spec)
    policy = Policy(config.agent, features, spec.action_dim)
    policy.load(learner["agent"]["actor"])
    return policy, spec


def test_x(trained, tmp_path, ray_local):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from farreach_workloads.goals.rllib_policy import export_rlmodule
    from farreach_workloads.goals.rllib_environments import register_for_rllib
    config, checkpoint = trained
    out = export_rlmodule(config, checkpoint, tmp_path / "out")
    print(list(out.rglob("*")))
    module = RLModule.from_checkpoint(out)
    register_for_rllib()
    c = PPOConfig().environment(ENV).env_runners(num_env_runners=0, num_envs_per_env_runner=2).rl_module(rl_module_spec=RLModuleSpec.from_module(module))
    runner = SingleAgentEnvRunner(config=c)
    runner.module.set_state(module.get_state())
    eps = runner.sample(num_episodes=2, explore=False)
    print(eps, eps[0].get_observations()['observation'].shape)
