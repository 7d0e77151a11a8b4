"""RLlib at the edges: our policy acts in RLlib, and RLlib's recordings are data for us."""

import numpy as np
import pytest
import torch

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.cli.main import main
from farreach.errors import CheckpointError, ConfigError, DataError
from farreach.rundir import RunDirectory
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.data.rllib_episodes import read_rllib_episodes
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.export_policy import export_policy
from farreach_workloads.goals.sac import Policy

ENV = "farreach/UFourRoomsGoal-v0"
TINY = ["training.env_steps=4000", "evaluation.episodes=5", "evaluation.every_steps=4000"]
MAZE_STEPS = 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    launch.train("goals/walk_maze_debug", TINY, run_dir=root / "run", root=root)
    return RunDirectory.open(root / "run")


@pytest.fixture(scope="module")
def trained(run):
    """Config and newest checkpoint."""
    return configs.load(run.config_path).config, CheckpointStore(run.checkpoints).newest()


@pytest.fixture(scope="module")
def exported(trained, run, tmp_path_factory):
    config, checkpoint = trained
    return export_policy(config, run, checkpoint, tmp_path_factory.mktemp("out") / "new", "rllib")


@pytest.fixture(scope="module")
def module(exported):
    from ray.rllib.core.rl_module.rl_module import RLModule

    return RLModule.from_checkpoint(exported)


@pytest.fixture(scope="module")
def policy(trained):
    config, checkpoint = trained
    learner = checkpoint.part("learner")
    spec = make_environment(config.environment, 1).spec
    features = Bundle.from_arrays(learner["bundle"]).features(config, spec)
    policy = Policy(config.agent, features, spec.action_dim)
    policy.load(learner["agent"]["actor"])
    return policy


def states_and_goals(count=64):
    """Observations of the maze, (count, 7) each."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 5, (2, count, 7)).astype(np.float32)


def batch(states, goals, dims):
    """What RLlib hands to a module: the achieved goal is there and must not matter."""
    observation = {
        "observation": torch.from_numpy(states),
        "achieved_goal": torch.full((len(states), len(dims)), torch.nan),
        "desired_goal": torch.from_numpy(goals[:, dims]),
    }
    return {"obs": observation}


def test_the_exported_policy_gives_our_actions_bit_for_bit(module, policy):
    states, goals = states_and_goals()
    actions = module.forward_inference(batch(states, goals, [0, 1]))["actions"]
    np.testing.assert_array_equal(actions.numpy(), policy.act(states, goals))


def test_exploration_samples_and_knows_how_likely_its_action_is(module):
    states, goals = states_and_goals()
    same = np.broadcast_to(states[0], (4000, 7)).copy(), np.broadcast_to(goals[0], (4000, 7)).copy()
    torch.manual_seed(0)
    outputs = module.forward_exploration(batch(*same, [0, 1]))
    # Undo the tanh and fit the normal distribution that the actions came from.
    before = torch.atanh(outputs["actions"].double().clamp(-1 + 1e-7, 1 - 1e-7))
    normal = torch.distributions.Normal(before.mean(dim=0), before.std(dim=0))
    squashed = torch.distributions.TransformedDistribution(
        normal, torch.distributions.TanhTransform(cache_size=1)
    )
    expected = squashed.log_prob(torch.tanh(before)).sum(dim=1)
    likely = (outputs["actions"].abs() < 0.99).all(dim=1)
    assert likely.sum() > 400
    gap = (outputs["action_logp"].double() - expected)[likely]
    assert gap.abs().mean() < 0.1


def test_a_policy_trained_with_whole_goals_gets_whole_goals(trained):
    from farreach_workloads.goals import rllib_policy

    config, checkpoint = trained
    features = config.features.model_copy(update={"goal": "full", "dims": "all"})
    config = config.model_copy(update={"features": features})
    learner = checkpoint.part("learner")
    spec = make_environment(config.environment, 1).spec
    bundle = Bundle.from_arrays(learner["bundle"])
    module = rllib_policy.GoalPolicyModule(
        observation_space=None,
        action_space=None,
        model_config=rllib_policy.model_config(config, spec, learner["bundle"]),
    )
    ours = Policy(config.agent, bundle.features(config, spec), spec.action_dim)
    ours.load({name: value.numpy() for name, value in module.actor.state_dict().items()})
    states, goals = states_and_goals()
    actions = module.forward_inference(batch(states, goals, range(7)))["actions"]
    np.testing.assert_array_equal(actions.numpy(), ours.act(states, goals))
    with pytest.raises(DataError, match="takes a desired_goal of 7 numbers, the environment gives"):
        module.forward_inference(batch(states, goals, [0, 1]))


def test_export_is_a_command(run, policy, tmp_path, capsys):
    from ray.rllib.core.rl_module.rl_module import RLModule

    out = tmp_path / "deep" / "policy"
    command = ["export", str(run.path), "--format", "rllib", "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["policy"]
    states, goals = states_and_goals(3)
    actions = RLModule.from_checkpoint(out).forward_inference(batch(states, goals, [0, 1]))
    np.testing.assert_array_equal(actions["actions"].numpy(), policy.act(states, goals))
    assert main(command) == 2
    assert f"{out} exists already. Name another folder" in capsys.readouterr().err


def test_the_policy_of_an_offline_run_is_exported_and_that_of_another_agent_is_not(
    tmp_path, capsys
):
    from ray.rllib.core.rl_module.rl_module import RLModule

    settings = [f"data.path={tmp_path}/maze", f"data.cache={tmp_path}/cache"]
    settings += ["training.epochs=1", "training.epoch_updates=5", "evaluation.episodes=5"]
    run = launch.train("goals/fresh_maze_debug", settings, run_dir=tmp_path / "offline")
    command = ["export", str(run.path), "--format", "rllib", "--out", str(tmp_path / "policy")]
    assert main(command) == 0
    config = configs.load(run.config_path).config
    learner = CheckpointStore(run.checkpoints).best().part("learner")
    spec = make_environment(config.environment, 1).spec
    ours = Policy(
        config.agent, Bundle.from_arrays(learner["bundle"]).features(config, spec), spec.action_dim
    )
    ours.load(learner["agent"]["actor"])
    states, goals = states_and_goals()
    module = RLModule.from_checkpoint(tmp_path / "policy")
    actions = module.forward_inference(batch(states, goals, [0, 1]))["actions"]
    np.testing.assert_array_equal(actions.numpy(), ours.act(states, goals))

    other = [*settings, "agent.kind=gcbc", "agent.hidden=8", "agent.layers=1"]
    run = launch.train("goals/fresh_maze_debug", other, run_dir=tmp_path / "gcbc")
    capsys.readouterr()
    assert main(["export", str(run.path), "--format", "rllib", "--out", str(tmp_path / "x")]) == 2
    assert "gcbc: its agent gcbc has no export" in capsys.readouterr().err


def test_a_failed_export_leaves_nothing_behind(trained, run, tmp_path, monkeypatch):
    from farreach_workloads.goals import rllib_policy

    def full_disk(self, path):
        (path / "module_state.pkl").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rllib_policy.GoalPolicyModule, "save_to_path", full_disk)
    config, checkpoint = trained
    with pytest.raises(ConfigError, match="No space left on device"):
        export_policy(config, run, checkpoint, tmp_path / "policy", "rllib")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_why(trained, run, tmp_path):
    config, checkpoint = trained
    with pytest.raises(ConfigError, match="unknown format 'onnx'"):
        export_policy(config, run, checkpoint, tmp_path / "policy", "onnx")
    with pytest.raises(ConfigError, match="is for checkpoints only"):
        export_policy(config, run, checkpoint, run.checkpoints / "policy", "rllib")
    store = CheckpointStore(tmp_path)
    store.save({"learner": {"agent": None, "bundle": None}}, step=1, info={})
    with pytest.raises(CheckpointError, match="holds no policy yet"):
        export_policy(config, run, store.newest(), tmp_path / "policy", "rllib")


def runner_config(module):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from farreach_workloads.goals.rllib_environments import register_for_rllib

    assert ENV in register_for_rllib()
    return (
        PPOConfig()
        .environment(ENV, normalize_actions=False)
        .env_runners(num_env_runners=0)
        .rl_module(rl_module_spec=RLModuleSpec.from_module(module))
        .debugging(seed=0)
    )


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0")
def test_our_policy_acts_in_rllibs_env_runner(module, policy, ray_local):
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    runner = SingleAgentEnvRunner(config=runner_config(module))
    runner.module.set_state(module.get_state())
    episodes = runner.sample(num_episodes=2, explore=False)
    runner.stop()
    assert [len(episode) for episode in episodes] == [MAZE_STEPS, MAZE_STEPS]
    for episode in episodes:
        seen, actions = episode.get_observations(), episode.get_actions()
        for t in range(MAZE_STEPS):
            goal = np.zeros((1, 7), np.float32)
            goal[0, :2] = seen["desired_goal"][t]
            expected = policy.act(seen["observation"][t : t + 1], goal)
            np.testing.assert_array_equal(actions[t : t + 1], expected)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0")
@pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated!:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`use_polars` is deprecated, please:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`use_arrow_tensor_v2` is deprecated:DeprecationWarning")
def test_episodes_that_rllib_records_are_read_back_equal(module, ray_local, tmp_path):
    from ray.rllib.offline.offline_env_runner import OfflineSingleAgentEnvRunner

    config = runner_config(module).offline_data(output=str(tmp_path))
    runner = OfflineSingleAgentEnvRunner(config=config)
    runner.module.set_state(module.get_state())
    # Two episodes, in three pieces each.
    pieces = [runner.sample(num_timesteps=count)[0] for count in (50, 30, 20, 10, 10, 80)]
    runner.stop()
    read = read_rllib_episodes(tmp_path)
    assert read["observations"].shape == (2, MAZE_STEPS + 1, 7)
    assert read["actions"].shape == (2, MAZE_STEPS, 2)
    assert read["observations"].dtype == read["actions"].dtype == np.float32
    for index in range(2):
        parts_of_it = pieces[3 * index : 3 * index + 3]
        actions = [action for piece in parts_of_it for action in piece.get_actions()]
        np.testing.assert_array_equal(read["actions"][index], actions)
        seen = [piece.get_observations() for piece in parts_of_it]
        states = [step["observation"] for piece in seen for step in piece[:-1]]
        states.append(seen[-1][-1]["observation"])
        np.testing.assert_array_equal(read["observations"][index], states)
