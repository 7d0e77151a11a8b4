import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from farreach_workloads.goals.config import AgentConfig
from farreach_workloads.goals.networks import sample_squashed
from farreach_workloads.goals.sac import GoalSac


class Sizes:
    pair_width = 6
    observation_width = 4


def agent(seed=0, **settings):
    return GoalSac(AgentConfig(hidden=32, **settings), Sizes, 2, seed, "cpu")


def batch(count=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "pair": torch.randn(count, 6, generator=g),
        "next_pair": torch.randn(count, 6, generator=g),
        "action": torch.rand(count, 2, generator=g) * 2 - 1,
        "reward": torch.randn(count, generator=g),
    }


def test_log_probability_equals_the_transformed_distribution_of_torch():
    mean, log_std = torch.tensor([[0.3, -0.5]]), torch.tensor([[-0.7, 0.2]])
    noise = torch.tensor([[0.4, -1.1]])
    action, log_prob = sample_squashed(mean, log_std, noise)
    expected = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    value = expected.log_prob(action).sum(1)
    torch.testing.assert_close(log_prob, value, atol=1e-4, rtol=0)
    assert log_prob.shape == (1,)
    assert math.isclose(action[0, 0].item(), math.tanh(0.3 + math.exp(-0.7) * 0.4), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("network", "dims", "actor", "critic"),
    [
        # Heads 7-64-64-16: 512 + 4,160 + 1,040 = 5,712 each. Actor trunk 32-256-256-4: 75,268.
        # A critic's trunk 34-256-256-1: 75,009, two of them.
        ("heads", (7, 14), 2 * 5_712 + 75_268, 2 * 5_712 + 2 * 75_009)
    ],
)
def test_the_papers_networks_have_the_counted_sizes(network, dims, actor, critic):
    class Maze:
        observation_width, pair_width = dims

    paper = GoalSac(AgentConfig(hidden=256, network=network), Maze, 2, 0, "cpu")
    assert sum(p.numel() for p in paper.actor.parameters()) == actor
    assert sum(p.numel() for p in paper.critic.parameters()) == critic


def reference_update(sac, data, noise):
    """The losses written out with ordinary autograd, one network at a time."""
    alpha, discount = sac.config.entropy_weight, sac.config.discount
    count = len(data["pair"])
    with torch.no_grad():
        next_action, next_log_prob = sample_squashed(*sac.actor(data["next_pair"]), noise[:count])
        q = torch.minimum(*sac.target(data["next_pair"], next_action))
        continues = data.get("continues", torch.ones(count))
        y = data["reward"] + discount * continues * (q - alpha * next_log_prob)
    q1, q2 = sac.critic(data["pair"], data["action"])
    return ((q1 - y) ** 2).mean() + ((q2 - y) ** 2).mean()


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("network", ["concat", "heads"])
def test_one_update_equals_the_losses_written_out(network, ends, weight):
    settings = {"network": network, "behaviour_weight": weight}
    sac, twin = agent(**settings), agent(**settings)
    data = batch()
    if ends:
        data["continues"] = (torch.arange(64) % 3 > 0).float()
    noise = torch.randn(128, 2, generator=torch.Generator().manual_seed(0))
    twin._noise.manual_seed(0)
    sac._noise.manual_seed(0)
    loss = reference_update(sac, data, noise)
    # critic: one Adam step on that loss; actor: one step on α log π - min Q with the new critic
    critic_adam = torch.optim.Adam(sac.critic.parameters(), lr=sac.config.lr)
    loss.backward()
    critic_adam.step()
    mean, log_std = sac.actor(data["pair"])
    action, log_prob = sample_squashed(mean, log_std, noise[64:])
    best = torch.minimum(*sac.critic(data["pair"], action))
    imitation = (torch.tanh(mean) - data["action"]).square().sum(dim=1).mean()
    actor_loss = (sac.config.entropy_weight * log_prob - best).mean()
    actor_loss = actor_loss + weight * best.detach().abs().mean() * imitation
    actor_adam = torch.optim.Adam(sac.actor.parameters(), lr=sac.config.lr)
    actor_adam.zero_grad()
    actor_loss.backward()
    actor_adam.step()
    old_target = [p.clone() for p in twin.target.parameters()]
    critic_loss = twin.update(data)["critic_loss"]
    torch.testing.assert_close(critic_loss, loss.detach(), rtol=1e-5, atol=1e-6)
    for name in ("actor", "critic"):
        for ours, expected in zip(
            getattr(twin, name).parameters(), getattr(sac, name).parameters(), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    polyak = sac.config.polyak
    for before, now, critic in zip(
        old_target, twin.target.parameters(), twin.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(now, (1 - polyak) * before + polyak * critic)


def test_a_restored_agent_goes_on_bit_for_bit():
    from farreach import messages

    one = agent()
    for i in range(5):
        one.update(batch(seed=i))
    other = agent(seed=9)
    other.restore(messages.unpack(messages.pack(one.state())))
    for i in range(5, 10):
        one.update(batch(seed=i))
        other.update(batch(seed=i))
    for a, b in zip(one.export_policy().values(), other.export_policy().values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_learns_to_point_at_the_goal():
    """A bandit: the reward is minus the distance between action and goal."""
    sac = agent(lr=3e-3, discount=0.01, entropy_weight=0.001)
    rng = torch.Generator().manual_seed(1)
    for _ in range(600):
        pair = torch.rand(128, 6, generator=rng) * 1.6 - 0.8
        action = torch.rand(128, 2, generator=rng) * 2 - 1
        reward = -(action - pair[:, 4:]).norm(dim=1)
        sac.update({"pair": pair, "next_pair": pair, "action": action, "reward": reward})
    pair = torch.rand(200, 6, generator=rng) * 1.6 - 0.8
    with torch.no_grad():
        mean, _ = sac.actor(pair)
    assert (torch.tanh(mean) - pair[:, 4:]).norm(dim=1).mean() < 0.2
