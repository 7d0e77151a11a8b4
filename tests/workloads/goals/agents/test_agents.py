"""Losses by hand, values against exact ones, and every agent learns to go the right way."""

import math

import numpy as np
import pytest
import torch

from farreach import messages
from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach_workloads.goals.agents import losses
from farreach_workloads.goals.agents.build import make_agent, make_policy
from farreach_workloads.goals.agents.crl import CrlSettings
from farreach_workloads.goals.agents.gcbc import GcbcSettings
from farreach_workloads.goals.agents.gciql import GciqlSettings
from farreach_workloads.goals.agents.gcivl import GcivlSettings
from farreach_workloads.goals.agents.hiql import HiqlSettings
from farreach_workloads.goals.agents.qrl import IntervalQuasimetric, QrlSettings
from farreach_workloads.goals.agents.rows import GoalMix, TrainingRows
from farreach_workloads.goals.agents.trunk import TrunkRows
from farreach_workloads.goals.config import FeaturesConfig, NetworkConfig
from farreach_workloads.goals.environments.base import GoalEnvironmentSpec
from farreach_workloads.goals.features import Features

SMALL = {"hidden": 32, "layers": 2, "batch": 128, "lr": 1e-3}
SPEC = GoalEnvironmentSpec(
    name="line",
    observation_dim=1,
    action_dim=1,
    horizon=20,
    success_threshold=1.0,
    reachability_dims=(0,),
    policy_dims=(0,),
    goal_dims=(0,),
    plane_dims=(0, 0),
)
ONE = np.ones(1, np.float32)
# On [-1, 1]: inputs of the networks stay small.
FEATURES = Features(SPEC, FeaturesConfig(relative=False, scale="none"), NetworkConfig(), ONE, ONE)

SETTINGS = [
    GcbcSettings(**SMALL),
    GcivlSettings(**SMALL),
    GciqlSettings(**SMALL),
    GciqlSettings(**SMALL, extraction="regression"),
    CrlSettings(**SMALL, latent=16),
    CrlSettings(**SMALL, latent=16, extraction="regression"),
    QrlSettings(**SMALL, latent=32, far_steps=20, far_softness=5),
    QrlSettings(**SMALL, latent=32, far_steps=20, far_softness=5, extraction="regression"),
    HiqlSettings(**SMALL, subgoal_steps=3),
]
NAMES = [f"{one.kind}-{getattr(one, 'extraction', '')}".strip("-") for one in SETTINGS]


def store_of(folder, observations, actions):
    """Episodes (n, t + 1) of positions and actions (n, t) on a line."""
    count, length = observations.shape
    moved = np.concatenate([np.zeros((count, 1)), actions], axis=1)
    columns = {
        "observation": observations.reshape(-1, 1).astype(np.float32),
        "action": moved.reshape(-1, 1).astype(np.float32),
    }
    record = write_shard(folder / "shard-00000.arrow", columns, [length] * count, 0, {})
    write_index(folder, "line", [record])
    return EpisodeStore.open(folder)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Random walks of up to 0.2 a step on [-1, 1]."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (300, 30))
    at = [rng.uniform(-1, 1, 300)]
    for t in range(30):
        at.append(np.clip(at[-1] + 0.2 * actions[:, t], -1, 1))
    store = store_of(tmp_path_factory.mktemp("line"), np.stack(at, axis=1), actions)
    return TrainingRows(store, FEATURES)


@pytest.fixture(scope="module")
def march(tmp_path_factory):
    """Always the same way, 0 → 0.1 → … → 0.9: one action, so that all values are exact."""
    at = np.tile(np.arange(10) / 10, (20, 1))
    return TrainingRows(store_of(tmp_path_factory.mktemp("march"), at, np.zeros((20, 9))), FEATURES)


def train(settings, rows, updates, seed=0):
    agent = make_agent(settings, FEATURES, 1, seed, "cpu")
    source, rng = TrunkRows(agent, rows), np.random.default_rng(seed)
    for _ in range(updates):
        arrays = source.inputs(settings.batch, rng)
        metrics = agent.update({k: torch.from_numpy(v) for k, v in arrays.items()})
    return agent, metrics


def pairs(states, goals):
    states, goals = (np.asarray(one, np.float32)[:, None] for one in (states, goals))
    return torch.from_numpy(FEATURES.pair(states, goals))


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_every_agent_learns_which_way_the_goal_lies(settings, line):
    agent, metrics = train(settings, line, 1_000)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    policy = make_policy(settings, FEATURES, 1)
    policy.load(agent.export_policy())
    rng = np.random.default_rng(1)
    at, goal = rng.uniform(-0.9, 0.9, (2, 400, 1)).astype(np.float32)
    action = policy.act(at, goal)
    assert np.abs(action).max() <= 1
    apart = np.abs(goal - at) > 0.3
    assert (np.sign(action) == np.sign(goal - at))[apart].mean() > 0.93


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_a_restored_agent_goes_on_bit_for_bit(settings, line):
    one, _ = train(settings, line, 3)
    other = make_agent(settings, FEATURES, 1, 9, "cpu")
    other.restore(messages.unpack(messages.pack(one.state())))
    rng = np.random.default_rng(4)
    for _ in range(3):
        batch = {k: torch.from_numpy(v) for k, v in one.draw(line, 32, rng).items()}
        one.update(batch)
        other.update(batch)
    for a, b in zip(one.export_policy().values(), other.export_policy().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    state = one.state()
    for name, value in one.export_policy().items():
        np.testing.assert_array_equal(state["actor"][name].numpy(), value)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_targets_follow_slowly(settings, line):
    agent = make_agent(settings, FEATURES, 1, 0, "cpu")
    before = {k: v.clone() for k, v in agent.targets.state_dict().items()}
    batch = agent.draw(line, 32, np.random.default_rng(0))
    agent.update({k: torch.from_numpy(v) for k, v in batch.items()})
    networks = agent.networks.state_dict()
    for name, value in agent.targets.state_dict().items():
        expected = 0.995 * before[name] + 0.005 * networks[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(networks[name], before[name]) or not value.any()


EXACT = {"critic_goals": GoalMix(current=0.2, future=0.8), "discount": 0.9, "polyak": 0.05}


@pytest.mark.parametrize(
    "settings",
    [
        GcivlSettings(**SMALL, **EXACT, expectile=0.7),
        GciqlSettings(**SMALL, **EXACT, expectile=0.7),
        HiqlSettings(**SMALL, **EXACT, expectile=0.7, subgoal_steps=3),
    ],
    ids=["gcivl", "gciql", "hiql"],
)
def test_values_are_discounted_steps_to_the_goal(settings, march):
    """With one action only, every expectile of the value is -(1 - γ^k) / (1 - γ), k steps away."""
    agent, _ = train(settings, march, 2_500)
    steps = np.arange(1, 9)
    pair = pairs(np.zeros(8), steps / 10)
    with torch.no_grad():
        if settings.kind == "hiql":
            value = agent._value(pair, agent.networks).mean(dim=0)
        else:
            value = agent.networks["value"](pair)
            value = value.mean(dim=0) if settings.kind == "gcivl" else value[:, 0]
    expected = -(1 - 0.9**steps) / (1 - 0.9)
    np.testing.assert_allclose(value.numpy(), expected, atol=0.35)


def test_the_quasimetric_counts_steps(march):
    settings = QrlSettings(**SMALL, latent=32, far_steps=20, far_softness=2)
    agent, _ = train(settings, march, 2_500)
    at = torch.arange(10)[:, None] / 10
    with torch.no_grad():
        embedded = agent.networks["embedding"](at.float())
        ahead = [
            agent.networks["quasimetric"](embedded[:1], embedded[k : k + 1]).item()
            for k in range(1, 10)
        ]
        back = agent.networks["quasimetric"](embedded[9:], embedded[:1]).item()
    # A step may cost one, and a little more that the slack allows; nothing ever goes back.
    np.testing.assert_allclose(ahead, np.arange(1, 10), rtol=0.3)
    assert back > 1.5 * ahead[-1]


def test_the_contrastive_critic_is_the_log_ratio_of_probabilities(march):
    """Its optimum is log p(g|s, a) / (p(g) × negatives), arXiv:2206.07568, equation 5."""
    goals = GoalMix(future=1.0)
    settings = CrlSettings(**SMALL | {"batch": 16}, latent=16, critic_goals=goals)
    agent, _ = train(settings, march, 5_000)
    state, goal = torch.full((10, 1), 0.4), torch.arange(10.0)[:, None] / 10
    with torch.no_grad():
        logits = agent.networks["critic"](torch.cat([state, torch.zeros(10, 1)], dim=1), goal)
    found = logits.mean(dim=0).numpy()
    # From state s the goals s + 1 … 9 are equally likely, and the nine states are.
    anyhow = np.array([sum(1 / (9 - s) for s in range(g)) / 9 for g in range(5, 10)])
    # Between goals 4 and 5 lies a jump, which a small network smooths.
    np.testing.assert_allclose(found[6:], np.log(1 / 5 / anyhow / (16 - 1))[1:], atol=0.4)
    assert found[:4].max() < found[5:].min() - 1


def test_expectile_weighs_by_the_sign_of_the_advantage():
    advantage, error = torch.tensor([0.5, -0.5, 0.0]), torch.tensor([2.0, -1.0, 3.0])
    found = losses.expectile(advantage, error, 0.9)
    torch.testing.assert_close(found, torch.tensor([0.9 * 4, 0.1 * 1, 0.9 * 9]))


def test_advantages_weigh_exponentially_up_to_a_hundred():
    advantage, loss = torch.tensor([math.log(2), -math.log(2), 9.0]), torch.tensor([1.0, 2.0, 3.0])
    found = losses.advantage_weighted(advantage, loss, 2.0)
    torch.testing.assert_close(found, torch.tensor((4 * 1 + 0.25 * 2 + 100 * 3) / 3))


def test_behaviour_is_half_the_squared_distance():
    mean, action = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(losses.behaviour(mean, action), torch.tensor([2.5]))


def test_values_are_measured_by_their_own_size():
    value, loss = torch.tensor([-3.0, 1.0]), torch.tensor([1.0, 2.0])
    # mean -1, mean size 2: 0.5 + 0.1 × 1.5
    found = losses.value_and_behaviour(value, loss, 0.1)
    torch.testing.assert_close(found, torch.tensor(0.65), rtol=1e-5, atol=1e-5)


def union_length(x, y):
    """Length of the union of [x_i, max(x_i, y_i)], by sweeping."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(zip(x, np.maximum(x, y), strict=True)):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def test_the_quasimetric_is_the_length_of_unions_and_obeys_its_laws():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 50, 12)).astype(np.float32)
    module = IntervalQuasimetric(4)
    module.mixing.data.fill_(0.7)
    share = 1 / (1 + math.exp(-0.7))

    def distance(a, b):
        with torch.no_grad():
            return module(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    parts = np.array(
        [
            [union_length(a, b) for a, b in zip(one.reshape(3, 4), two.reshape(3, 4), strict=True)]
            for one, two in zip(x, y, strict=True)
        ]
    )
    expected = share * parts.mean(axis=1) + (1 - share) * parts.max(axis=1)
    np.testing.assert_allclose(distance(x, y), expected, rtol=1e-5)
    assert (distance(x, z) <= distance(x, y) + distance(y, z) + 1e-5).all()
    np.testing.assert_array_equal(distance(x, x), 0)
    assert not np.allclose(distance(x, y), distance(y, x))


def test_a_latent_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="latent 10 is no multiple of interval_dims 8"):
        QrlSettings(latent=10)


def test_only_the_inputs_learn_through_frozen_networks(line):
    settings = GciqlSettings(**SMALL)
    agent = make_agent(settings, FEATURES, 1, 0, "cpu")
    batch = agent.draw(line, 32, np.random.default_rng(0))
    loss, _ = agent.actor_loss({k: torch.from_numpy(v) for k, v in batch.items()})
    loss.backward()
    assert all(p.grad is None for p in agent.networks["critic"].parameters())
    assert any(p.grad.abs().sum() > 0 for p in agent.networks["actor"].parameters())
    assert all(p.requires_grad for p in agent.networks["critic"].parameters())
