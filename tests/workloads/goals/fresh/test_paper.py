"""`fidelity: paper` offline: whose values, where, and that none is forgotten."""

import pytest

from farreach import config as configs
from farreach.errors import ConfigError
from farreach_workloads.goals.fidelity import deviations
from farreach_workloads.goals.fresh.config import FreshRunConfig
from farreach_workloads.goals.fresh.paper import ENVIRONMENTS, paper_values


def paper(environment="maze", method="fresh", **sections):
    return FreshRunConfig(
        fidelity="paper", environment={"name": environment}, method=method, **sections
    )


def differing(config):
    return deviations(config, config.paper_values())


@pytest.mark.parametrize(
    ("environment", "window", "layers", "capacity", "frac", "lr", "discount", "alpha", "scale"),
    [
        ("maze", 5, (16, 64, 2), 1000, 0.01, 3e-4, 0.9, 0.05, (0.1, 1)),
        ("pusher", 10, (16, 64, 2), 1000, 0.01, 5e-4, 0.95, 1e-4, (0.01, 100)),
        ("walker", 2, (128, 128, 4), 10_000, 0.05, 3e-4, 0.95, 0.01, (0.5, 1)),
    ],
)
def test_each_environment_has_a_column_of_its_own(
    environment, window, layers, capacity, frac, lr, discount, alpha, scale
):
    config = paper(environment)
    network, agent = config.reachability, config.agent
    assert network.window == window
    assert (network.embedding, network.hidden, network.comparator_layers) == layers
    assert network.lr == (3e-4 if environment == "walker" else 1e-3)
    assert config.memory.capacity == capacity
    assert config.memory.keep_frac == config.graph.edge_frac == frac
    assert (agent.lr, agent.discount, agent.entropy_weight) == (lr, discount, alpha)
    assert (config.reward.scale, config.reward.weight) == scale
    assert config.training.evaluate_every_epochs == (10 if environment == "maze" else 20)
    assert differing(config) == []


@pytest.mark.parametrize(
    ("environment", "alpha", "scale"),
    [("maze", 0.01, 1), ("pusher", 0.005, 1), ("walker", 0.001, 10)],
)
def test_the_baselines_own_values_are_no_deviations(environment, alpha, scale):
    config = paper(environment, "hindsight")
    agent = config.agent
    assert (agent.lr, agent.discount, agent.entropy_weight) == (1e-4, 0.99, alpha)
    assert (config.hindsight.scale, config.hindsight.rescale_values) == (scale, True)
    assert config.reachability == paper(environment).reachability
    assert differing(config) == []


@pytest.mark.parametrize(
    ("section", "settings", "line"),
    [
        ("relabel", {"subgoal_rows": False}, "relabel.subgoal_rows: False (paper: True)"),
        ("relabel", {"edge_rows": False}, "relabel.edge_rows: False (paper: True)"),
        ("reachability", {"embedding": 64}, "reachability.embedding: 64 (paper: 16)"),
        ("reachability", {"lr": 0.01}, "reachability.lr: 0.01 (paper: 0.001)"),
        ("reachability", {"dims": "goal"}, "reachability.dims: goal (paper: state)"),
        ("memory", {"threshold": 2.0}, "memory.threshold: 2.0 (paper: 0.0)"),
        ("evaluation", {"episodes": 50}, "evaluation.episodes: 50 (paper: 500)"),
    ],
)
def test_a_setting_of_the_method_that_differs_is_listed(section, settings, line):
    assert differing(paper(**{section: settings})) == [line]


# Settings that are ours, or that tell one baseline from another.
FREE = {
    "features": set(),
    "reachability": set(),
    "memory": set(),
    "graph": set(),
    "reward": set(),
    "relabel": {"future_mean_steps"},
    "hindsight": {"negative_actions", "random_goals", "piece_steps"},
    "agent": {"kind"},
}


@pytest.mark.parametrize("section", FREE)
def test_no_setting_of_the_method_is_missing(section):
    config = paper(method="hindsight")
    known = set(config.paper_values()[section])
    assert known == set(type(getattr(config, section)).model_fields) - FREE[section]


def test_an_environment_that_the_paper_has_not_is_refused():
    assert paper_values("ogbench_pointmaze", "fresh") is None
    settings = ["fidelity=paper", "environment={name: ogbench_pointmaze}"]
    with pytest.raises(ConfigError, match=r"no values for environment 'ogbench_pointmaze', only"):
        configs.load(configs.find("goals/fresh_maze"), settings)
    assert ENVIRONMENTS == ("maze", "pusher", "walker")


@pytest.mark.parametrize("name", ["paper", "her", "her_uniform", "actionable"])
def test_the_shipped_presets_differ_from_the_paper_in_nothing(name):
    config = configs.load(configs.find(f"goals/fresh_maze_{name}")).config
    assert config.fidelity == "paper"
    assert differing(config) == []
