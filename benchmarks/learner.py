"""Updates per CPU-second of the policy learner, sampling and relabelling included.

Peers: SAC of stable-baselines3 and of RLlib with their own replay buffers, fed with rows of the
same size; the same update in plain PyTorch; stable-baselines3's hindsight replay.
`python benchmarks/learner.py` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import importlib.util
import logging
import warnings
from typing import Any

import gymnasium
import measure
import numpy as np
import torch
from gymnasium.spaces import Box
from torch.nn import functional as F

from farreach_workloads.goals import parts
from farreach_workloads.goals.config import GoalsRunConfig
from farreach_workloads.goals.environments.export import as_goal_env
from farreach_workloads.goals.learner import Learner
from farreach_workloads.goals.sac import sample_squashed

ROUNDS = 5
UNIT = "updates per CPU-second"
EPISODES, EPISODE_STEPS = 96, 100
HAS_SB3 = importlib.util.find_spec("stable_baselines3") is not None
DISCOUNT, ENTROPY_WEIGHT, POLYAK, LR = 0.95, 0.02, 0.005, 1e-3


def learner_of(**agent: Any) -> Learner:
    """A learner with the goals, graph and replay of a maze run's beginning."""
    settings = {"agent": agent, "reachability": {"first_pairs": 20_000}}
    config = GoalsRunConfig.model_validate(settings)
    learner, memory = parts.make_learner(config), parts.make_memory(config)
    rollout, reachability = parts.make_rollout(config, 0, 0), parts.make_reachability(config)
    walks, _ = rollout.first_walks(config.phases.initial_random_steps)
    reachability.add(walks)
    memory.add(walks)
    weights, _ = reachability.refresh()
    bundle, guide, _ = memory.integrate(weights)
    learner.set_bundle(bundle)
    for _ in range(EPISODES // config.environment.num_envs):
        episodes, walks, _ = rollout.collect(learner.policy(), guide, 0)
        learner.add(episodes)
    return learner


class SameSize(gymnasium.Env[Any, Any]):
    """An environment whose rows are as wide as ours: arbitrary numbers, episodes of 100 steps."""

    def __init__(self, width: int, action_dim: int) -> None:
        """`width` is that of the policy's input, goal included."""
        self.observation_space = Box(-10.0, 10.0, (width,), np.float32)
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32)
        self._steps = 0

    def _observation(self) -> np.ndarray:
        return self.np_random.standard_normal(self.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Another arbitrary row."""
        self._steps += 1
        ended = self._steps % EPISODE_STEPS == 0
        return self._observation(), float(self.np_random.random()), False, ended, {}


def widths(learner: Learner) -> tuple[int, int]:
    """Width of the policy's input and of an action."""
    batch = learner.batch(1)
    return batch["pair"].shape[1], batch["action"].shape[1]


def sb3_agent(env: SameSize) -> Any:
    """SB3's SAC with a filled replay buffer."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    agent = SAC(
        "MlpPolicy",
        env,
        learning_rate=LR,
        buffer_size=400_000,
        batch_size=256,
        gamma=DISCOUNT,
        ent_coef=ENTROPY_WEIGHT,
        tau=POLYAK,
        policy_kwargs={"net_arch": [256, 256]},
        device="cpu",
        seed=0,
    )
    agent.set_logger(Logger(folder=None, output_formats=[]))
    assert agent.replay_buffer is not None
    observation, _ = env.reset(seed=0)
    for _ in range(EPISODES * EPISODE_STEPS):
        action = env.action_space.sample()
        following, reward, _, ended, _ = env.step(action)
        rows = (observation[None], following[None], action[None])
        agent.replay_buffer.add(*rows, np.array([reward]), np.array([ended]), [{}])
        observation = following
    return agent


def rllib_update(env: SameSize) -> measure.Work:
    """One update of RLlib's SAC learner in this process, sampling included."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    from ray.rllib.algorithms.sac import SACConfig
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.metrics import ALL_MODULES, NUM_ENV_STEPS_SAMPLED_LIFETIME
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

    config = (
        SACConfig()
        .environment(observation_space=env.observation_space, action_space=env.action_space)
        .rl_module(model_config={"fcnet_hiddens": [256, 256], "head_fcnet_hiddens": []})
        .training(
            train_batch_size_per_learner=256, twin_q=True, gamma=DISCOUNT, tau=POLYAK, n_step=1
        )
    )
    spaces = {DEFAULT_MODULE_ID: (env.observation_space, env.action_space)}
    learner = config.build_learner(spaces=spaces)
    replay = EpisodeReplayBuffer(capacity=400_000)
    for number in range(EPISODES):
        observation, _ = env.reset(seed=number)
        episode = SingleAgentEpisode(
            observation_space=env.observation_space, action_space=env.action_space
        )
        episode.add_env_reset(observation)
        ended = False
        while not ended:
            action = env.action_space.sample()
            following, reward, _, ended, _ = env.step(action)
            episode.add_env_step(following, action, reward, truncated=ended)
        replay.add(episode.to_numpy())

    def update() -> None:
        episodes = replay.sample(
            num_items=256,
            n_step=1,
            batch_length_T=0,
            lookback=0,
            gamma=DISCOUNT,
            sample_episodes=True,
        )
        learner.update(
            episodes=episodes,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0, ALL_MODULES: 0},
        )

    return update


def sac_rows() -> None:
    """Rows `sac_vs_sb3` and `sac_vs_rllib`: batch 256, 2 × 256 everywhere."""
    learner = learner_of(batch=256, hidden=256, network="concat")
    env = SameSize(*widths(learner))
    many, few = 64, 4
    extra = {"batch": 256, "hidden": 256}
    if HAS_SB3:
        agent = sb3_agent(env)
        measure.compare_rates(
            "sac_vs_sb3",
            UNIT,
            (lambda: learner.update(many, 0.0), many),
            (lambda: agent.train(gradient_steps=many, batch_size=256), many),
            ROUNDS,
            **extra,
        )
    else:
        measure.missing("sac_vs_sb3", "stable-baselines3")
    update = rllib_update(env)
    measure.compare_rates(
        "sac_vs_rllib",
        UNIT,
        (lambda: learner.update(many, 0.0), many),
        (lambda: [update() for _ in range(few)], few),
        ROUNDS,
        **extra,
    )


class PlainSac:
    """The same losses as one would write them down first: the peer of `batch_2048`."""

    def __init__(self, width: int, action_dim: int, hidden: int) -> None:
        """Three networks with their optimisers."""

        def network(before: int, after: int) -> torch.nn.Sequential:
            return torch.nn.Sequential(
                torch.nn.Linear(before, hidden),
                torch.nn.ReLU(),
                torch.nn.Linear(hidden, hidden),
                torch.nn.ReLU(),
                torch.nn.Linear(hidden, after),
            )

        self.actor = network(width, 2 * action_dim)
        self.critics = [network(width + action_dim, 1) for _ in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=LR)
        self.optimisers = [torch.optim.Adam(c.parameters(), lr=LR) for c in self.critics]

    def act(self, pair: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A sampled action and its log-probability."""
        mean, log_std = self.actor(pair).chunk(2, dim=1)
        return sample_squashed(mean, log_std.clamp(-20.0, 2.0), torch.randn_like(mean))

    def update(self, batch: dict[str, torch.Tensor]) -> None:
        """One step of both critics, the actor and the targets."""
        with torch.no_grad():
            action, log_prob = self.act(batch["next_pair"])
            pair = torch.cat([batch["next_pair"], action], dim=1)
            following = torch.minimum(*(target(pair)[:, 0] for target in self.targets))
            goal = batch["reward"] + DISCOUNT * (following - ENTROPY_WEIGHT * log_prob)
        pair = torch.cat([batch["pair"], batch["action"]], dim=1)
        for critic, optimiser in zip(self.critics, self.optimisers, strict=True):
            loss = F.mse_loss(critic(pair)[:, 0], goal)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        action, log_prob = self.act(batch["pair"])
        pair = torch.cat([batch["pair"], action], dim=1)
        best = torch.minimum(*(critic(pair)[:, 0] for critic in self.critics))
        self.actor_optimiser.zero_grad()
        (ENTROPY_WEIGHT * log_prob - best).mean().backward()
        self.actor_optimiser.step()
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for new, old in zip(critic.parameters(), target.parameters(), strict=True):
                    old.lerp_(new, POLYAK)


def large_batch_rows() -> None:
    """Rows `batch_2048` and `relabelled_batch`, at the default size of the networks."""
    size, count, repeats = 2048, 16, 10
    learner = learner_of(batch=size)
    plain = PlainSac(*widths(learner), hidden=128)

    def peer() -> None:
        for _ in range(count):
            plain.update(learner.batch(size))

    measure.compare_rates(
        "batch_2048",
        UNIT,
        (lambda: learner.update(count, 0.0), count),
        (peer, count),
        ROUNDS,
        batch=size,
        hidden=128,
        peer_name="plain PyTorch, relabelling as ours",
    )
    if not HAS_SB3:
        measure.missing("relabelled_batch", "stable-baselines3")
        return
    replay = hindsight_replay()
    ours, theirs = measure.medians(
        [
            lambda: [learner.batch(size) for _ in range(repeats)],
            lambda: [replay.sample(size) for _ in range(repeats)],
        ],
        ROUNDS,
    )
    measure.row(
        "relabelled_batch",
        1e3 * ours / repeats,
        1e3 * theirs / repeats,
        "CPU ms per batch",
        theirs / ours,
        rows=size,
        peer_name="stable-baselines3 HerReplayBuffer.sample",
    )


def hindsight_replay() -> Any:
    """SB3's hindsight replay, filled with episodes of the maze."""
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: as_goal_env("maze")])
    space = env.observation_space
    assert isinstance(space, gymnasium.spaces.Dict)
    replay = HerReplayBuffer(400_000, space, env.action_space, env, device="cpu")
    env.seed(0)
    for _ in range(EPISODES):
        observation: Any = env.reset()
        for step in range(EPISODE_STEPS):
            action = env.action_space.sample()[None]
            following, reward, _, infos = env.step(action)
            ended = np.array([step == EPISODE_STEPS - 1])
            replay.add(observation, following, action, reward, ended, infos)
            observation = following
    return replay


def main() -> None:
    """Print all rows."""
    measure.rows_asked(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    large_batch_rows()
    sac_rows()


if __name__ == "__main__":
    main()
