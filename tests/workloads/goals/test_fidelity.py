import copy

import pytest

from farreach_workloads.goals import fidelity
from farreach_workloads.goals.config import AgentConfig, GoalsRunConfig


def test_paper_values_fill_only_what_is_not_set():
    raw = {"seed": 3, "agent": {"lr": 0.5, "batch": 7}, "goals": {}}
    before = copy.deepcopy(raw)
    filled = fidelity.with_paper_values(raw)
    assert raw == before
    assert filled["seed"] == 3
    assert filled["agent"]["lr"] == 0.5
    assert filled["agent"]["batch"] == 7
    assert filled["agent"]["discount"] == 0.99
    assert filled["goals"] == {"source": "memory", "mode": "uniform"}
    assert filled["memory"]["capacity"] == 500


def test_filling_never_changes_the_table_of_the_paper():
    table = copy.deepcopy(fidelity.PAPER)
    fidelity.with_paper_values({})["memory"]["capacity"] = 1
    assert table == fidelity.PAPER


def test_the_paper_s_values_are_those_of_the_method():
    config = GoalsRunConfig(fidelity="paper")
    assert (config.reachability.window, config.reachability.directed) == (10, False)
    assert config.reachability.refresh_every_steps == 20_000
    assert (config.memory.capacity, config.memory.threshold, config.memory.stride) == (500, 0, 1)
    assert config.goals.mode == "uniform"
    assert (config.reward.mode, config.relabel.original) == ("graph_goal", 1.0)
    agent = config.agent
    assert (agent.lr, agent.batch, agent.replay_steps) == (1e-3, 1024, 100_000)
    assert (agent.entropy_weight, agent.discount, agent.polyak) == (0.05, 0.99, 0.005)
    assert (agent.updates_per_policy_step, agent.lr_decay_frac) == (2.0, 0.0)
    assert config.phases.planned_frac == 0
    assert not config.memory.prune


def test_what_the_user_sets_stands_above_the_paper():
    config = GoalsRunConfig(fidelity="paper", agent={"batch": 64}, memory={"stride": 4})
    assert (config.agent.batch, config.agent.hidden) == (64, 256)
    assert (config.memory.stride, config.memory.capacity) == (4, 500)


def test_a_section_that_is_made_already_keeps_only_what_was_set_in_it():
    config = GoalsRunConfig(fidelity="paper", agent=AgentConfig(batch=64))
    assert (config.agent.batch, config.agent.hidden) == (64, 256)


def test_our_defaults_are_not_touched_without_the_switch():
    assert GoalsRunConfig().agent.batch == 256


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("reachability", "lr", 0.01),
        ("reachability", "batch", 64),
        ("reachability", "encoder_layers", 2),
        ("reachability", "negative_frac", 0.9),
        ("phases", "initial_random_steps", 100),
    ],
)
def test_what_differs_is_listed_though_our_default_is_the_papers(section, key, value):
    (line,) = fidelity.deviations(GoalsRunConfig(fidelity="paper", **{section: {key: value}}))
    assert line.startswith(f"{section}.{key}: {value} (paper: ")


def test_only_what_differs_is_listed_and_with_both_values():
    config = GoalsRunConfig(
        fidelity="paper", features={"goal": "masked"}, relabel={"original": 0.5, "future": 0.5}
    )
    assert fidelity.deviations(config) == [
        "features.goal: masked (paper: full)",
        "relabel.original: 0.5 (paper: 1.0)",
        "relabel.future: 0.5 (paper: 0.0)",
    ]
    assert fidelity.deviations(GoalsRunConfig(fidelity="paper")) == []
