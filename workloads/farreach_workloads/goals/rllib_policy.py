"""A trained policy as an RLModule, so that RLlib can run it on goal environments.

```
module = RLModule.from_checkpoint(out)         # out: what `farreach export` wrote
register_for_rllib()                           # of rllib_environments
config = (
    PPOConfig()
    .environment("farreach/UFourRoomsGoal-v0")
    .env_runners(num_env_runners=0)
    .rl_module(rl_module_spec=RLModuleSpec.from_module(module))
)
runner = SingleAgentEnvRunner(config=config)
runner.module.set_state(module.get_state())    # a spec brings no weights
runner.sample(num_episodes=10, explore=False)
```
RLlib keeps the constructor's arguments of a module as a pickle: load only folders that you trust.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from farreach.config import Config
from farreach.disk import sync
from farreach.errors import CheckpointError, ConfigError, DataError
from farreach_workloads.goals.config import (
    FeaturesConfig,
    NetworkConfig,
    ReachingConfig,
    SacConfig,
)
from farreach_workloads.goals.environments.base import GoalEnvironmentSpec
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.networks import Actor, sample_squashed
from farreach_workloads.goals.reachability_trainer import load_arrays

if TYPE_CHECKING:
    from farreach.checkpoint import Checkpoint


def desired_goal_dims(spec: GoalEnvironmentSpec, features: FeaturesConfig) -> tuple[int, ...]:
    """Which dims of an observation a `desired_goal` consists of.

    The goal dims, as our goal environments present them; all of them where the policy was trained
    with more of the goal than that (`features.goal: full`).
    """
    everything = tuple(range(spec.observation_dim))
    if features.goal == "masked":
        return spec.goal_dims
    seen = spec.policy_dims if features.dims == "state" else everything
    return spec.goal_dims if set(seen) <= set(spec.goal_dims) else everything


class GoalPolicyModule(TorchRLModule):
    """The actor with its features, for Dict observations of goal environments.

    Reads `observation` (n, d) and `desired_goal` (n, k), see `desired_goal_dims`. Inference acts
    with the tanh of the mean; exploration samples and adds the log-probability. Actions lie in
    [-1, 1]. `model_config` is what `model_config` below returns.
    """

    def setup(self) -> None:
        """Build features and actor; called by RLlib's constructor."""
        settings = cast("dict[str, Any]", self.model_config)
        # JSON has no tuples, and RLlib may have taken the settings through it.
        spec = GoalEnvironmentSpec(**{k: _tupled(v) for k, v in settings["spec"].items()})
        features = FeaturesConfig(**settings["features"])
        agent = SacConfig(**_known(settings["agent"], SacConfig))
        self._features = Features(
            spec,
            features,
            NetworkConfig(**_known(settings["reachability"], NetworkConfig)),
            np.array(settings["scale"], np.float32),
            np.array(settings["unit"], np.float32),
        )
        self._desired_dims = list(desired_goal_dims(spec, features))
        self.actor = Actor(self._features, spec.action_dim, agent.network, agent.hidden)

    def _pair(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Policy input, (n, pair width), on the device of the observations."""
        desired = observation["desired_goal"]
        if desired.shape[1] != len(self._desired_dims):
            raise DataError(
                f"the policy takes a desired_goal of {len(self._desired_dims)} numbers, the "
                f"environment gives {desired.shape[1]}. A policy trained with features.goal: full "
                'sees the whole goal: add env_config={"goal": "full"} to the environment.'
            )
        states = observation["observation"].cpu().numpy()
        goals = np.zeros_like(states)
        goals[:, self._desired_dims] = desired.cpu().numpy()
        return torch.from_numpy(self._features.pair(states, goals)).to(desired.device)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Sampled actions (n, a) and their log-probability (n,)."""
        mean, log_std = self.actor(self._pair(batch[Columns.OBS]))
        action, log_prob = sample_squashed(mean, log_std, torch.randn_like(mean))
        return {Columns.ACTIONS: action, Columns.ACTION_LOGP: log_prob}

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """The most likely actions, (n, a)."""
        with torch.no_grad():
            mean, _log_std = self.actor(self._pair(batch[Columns.OBS]))
            return {Columns.ACTIONS: torch.tanh(mean)}


def _known(settings: Mapping[str, Any], kind: type[Config]) -> dict[str, Any]:
    """The settings that both online and offline runs have."""
    return {key: value for key, value in settings.items() if key in kind.model_fields}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def model_config(
    config: ReachingConfig, spec: GoalEnvironmentSpec, bundle: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything but the weights that `GoalPolicyModule` is built from, as JSON takes it.

    Args:
        config: of the run.
        spec: of its environment.
        bundle: the arrays of the run's bundle, of which `scale` and `unit` are taken.
    """
    sections = {name: getattr(config, name) for name in ("features", "reachability", "agent")}
    return {
        **{name: section.model_dump(mode="json") for name, section in sections.items()},
        "spec": asdict(spec),
        "scale": np.asarray(bundle["scale"]).tolist(),
        "unit": np.asarray(bundle["unit"]).tolist(),
    }


def build_rlmodule(config: ReachingConfig, checkpoint: Checkpoint) -> GoalPolicyModule:
    """The policy of a checkpoint as an RLModule.

    Raises:
        CheckpointError: the run was saved before its policy was made.
    """
    learner: dict[str, Any] = checkpoint.part("learner")
    if learner["agent"] is None or learner["bundle"] is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no policy yet. Continue the run with `farreach resume`."
        )
    env = make_environment(config.environment, 1)
    spec = env.spec
    env.close()
    desired = desired_goal_dims(spec, config.features)
    module = GoalPolicyModule(
        observation_space=Dict(
            {
                "observation": _unbounded(spec.observation_dim),
                "achieved_goal": _unbounded(len(desired)),
                "desired_goal": _unbounded(len(desired)),
            }
        ),
        action_space=Box(-1.0, 1.0, (spec.action_dim,), np.float32),
        inference_only=True,
        model_config=model_config(config, spec, learner["bundle"]),
    )
    load_arrays(module.actor, learner["agent"]["actor"])
    return module


def _unbounded(width: int) -> Box:
    return Box(-np.inf, np.inf, (width,), np.float32)


def export_rlmodule(config: ReachingConfig, checkpoint: Checkpoint, out: Path) -> Path:
    """Write the policy of a checkpoint as a folder for `RLModule.from_checkpoint`.

    Args:
        config: of the run.
        checkpoint: one of the run's.
        out: the folder, which must not exist; it is whole or absent.

    Returns:
        The folder, as an absolute path.

    Raises:
        ConfigError: the folder exists or cannot be written.
        CheckpointError: the checkpoint is damaged or holds no policy.
    """
    out = Path(out).absolute()
    if out.exists():
        raise ConfigError(f"{out} exists already. Name another folder, or remove that one.")
    module = build_rlmodule(config, checkpoint)
    working = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        working.mkdir(parents=True)
        module.save_to_path(working)
        for path in [*working.rglob("*"), working]:
            sync(path)
        working.rename(out)
        sync(out.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot write {out}: {error.strerror or error}. Choose a folder on a writable file "
            "system with some space."
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)  # gone already unless something failed
    return out
