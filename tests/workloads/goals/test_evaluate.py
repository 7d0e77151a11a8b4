from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from farreach_workloads.goals import evaluate
from farreach_workloads.goals.evaluate import Evaluator, memory_metrics, probe
from farreach_workloads.goals.rollout import Planner

THRESHOLD = 0.5
HORIZON = 6  # goals lie within 4 units of the start in each dim, a step is one unit


class Scripted:
    """Stands in for the policy: `script` maps states and goals to actions."""

    def __init__(self, script):
        self.script, self.goals = script, []

    def __call__(self, config, features, action_dim):
        return self

    def load(self, weights):
        pass

    def act(self, observations, goals):
        self.goals.append(goals.copy())
        return self.script(observations, goals)


def straight(observations, goals):
    return np.clip(goals[:, :2] - observations[:, :2], -1, 1)


def still(observations, goals):
    return np.zeros((len(observations), 2), np.float32)


def pass_by(observations, goals):
    """Straight to the goal and two steps beyond, by steps that the action's clip bounds."""
    return np.clip(2 * goals[:, :2] - observations[:, :2], -1, 1)


@pytest.fixture
def run(toy, monkeypatch):
    def evaluated(script, bundle=None, env=None, **sections):
        policy = Scripted(script)
        monkeypatch.setattr(evaluate, "make_policy", policy)
        config = toy.config(**sections)
        evaluator = Evaluator(config, env or toy.env(40))
        metrics, outcome = evaluator.evaluate({}, bundle or toy.line(2))
        return metrics, outcome, policy

    return evaluated


def test_a_perfect_policy_scores_one_everywhere(run):
    metrics, outcome, _ = run(straight)
    assert metrics["evaluation/success_final"] == metrics["evaluation/success_any"] == 1
    assert metrics["evaluation/success_final_left"] == 1
    assert metrics["evaluation/success_final_right"] == 1
    assert metrics["evaluation/final_distance"] == pytest.approx(0, abs=1e-5)
    assert outcome.positions.shape == (40, HORIZON + 1, 3)
    np.testing.assert_allclose(outcome.positions[:, -1, :2], outcome.goals[:, :2], atol=1e-5)


def test_a_policy_that_stands_still_reaches_only_goals_at_the_start(run, toy):
    class Near(toy.Plane):
        def goals(self, count, rng):
            return super().goals(count, rng) / 4

    metrics, outcome, _ = run(still, env=Near(40, np.random.default_rng(0)))
    distance = np.hypot(*outcome.goals[:, :2].T)
    near = distance < THRESHOLD
    assert 3 < near.sum() < 20
    assert metrics["evaluation/success_final"] == metrics["evaluation/success_any"] == near.mean()
    assert metrics["evaluation/within_two_thresholds"] == (distance < 2 * THRESHOLD).mean()
    assert metrics["evaluation/final_distance"] == pytest.approx(distance.mean())
    np.testing.assert_allclose(outcome.final_distance, distance, rtol=1e-6)
    np.testing.assert_array_equal(outcome.final_distance, outcome.least_distance)


def test_success_is_read_at_the_last_step_and_passing_by_counts_apart(run):
    metrics, outcome, _ = run(pass_by)
    path = np.linalg.norm(outcome.positions[:, 1:, :2] - outcome.goals[:, None, :2], axis=2)
    assert metrics["evaluation/success_final"] == (path[:, -1] < THRESHOLD).mean()
    assert metrics["evaluation/success_any"] == (path.min(axis=1) < THRESHOLD).mean()
    assert metrics["evaluation/success_any"] > metrics["evaluation/success_final"]
    right = outcome.goals[:, 0] >= 0
    for name, own in (("right", right), ("left", ~right)):
        ever = (path[own].min(axis=1) < THRESHOLD).mean()
        assert metrics[f"evaluation/success_any_{name}"] == ever


def test_goals_are_reported_under_their_own_categories(run, toy):
    class Turns(toy.Plane):
        def goal_categories(self, goals):
            return np.arange(len(goals)) % 2

    metrics, outcome, _ = run(still, env=Turns(40, np.random.default_rng(0)))
    near = np.hypot(*outcome.goals[:, :2].T) < THRESHOLD
    assert metrics["evaluation/success_final_left"] == near[::2].mean()
    assert metrics["evaluation/success_final_right"] == near[1::2].mean()


def test_the_goals_node_is_the_one_that_gets_to_it_if_directions_differ(toy):
    # Forwards a unit costs 1, backwards 10; nodes at 0 and 2. From 0.8 one gets to 2, and 0 gets
    # to it.
    def planner_of(bundle):
        features = bundle.features(toy.config(), toy.Plane.spec)
        return Planner(bundle.guide("uniform"), toy.config(), features)

    bundle = toy.bundle([0.0, 2.0], [(0, 1)], network=toy.network(1.0, 1.0, 10.0), directed=True)
    planner = planner_of(bundle)
    between = toy.points([0.8])
    assert planner.nearest(between).tolist() == [1]
    assert planner.nearest_to_goals(between).tolist() == [0]
    undirected = replace(bundle, directed=False)
    planner = planner_of(undirected)
    assert planner.nearest_to_goals(between).tolist() == [1]


def test_the_whole_is_the_mean_of_the_categories_weighted_by_their_goals(run):
    def right_only(observations, goals):
        return straight(observations, goals) * (goals[:, :1] >= 0)

    metrics, outcome, _ = run(right_only)
    right = outcome.goals[:, 0] >= 0
    near = np.hypot(*outcome.goals[:, :2].T) < THRESHOLD
    assert metrics["evaluation/success_final_right"] == 1
    assert metrics["evaluation/success_final_left"] == near[~right].mean()
    weighted = right.sum() * 1 + (~right).sum() * metrics["evaluation/success_final_left"]
    assert metrics["evaluation/success_final"] == pytest.approx(weighted / 40)
    assert right.sum() not in (0, 20, 40)


def test_goals_are_the_same_whatever_the_seed_of_the_run(run):
    goals = [run(still, seed=seed)[1].goals for seed in (0, 1)]
    np.testing.assert_array_equal(*goals)


def test_every_evaluation_starts_alike(toy, monkeypatch):
    monkeypatch.setattr(evaluate, "make_policy", Scripted(straight))
    evaluator = Evaluator(toy.config(), toy.env(40))
    first, second = (evaluator.evaluate({}, toy.line(2))[1].positions for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_planned_evaluation_goes_by_the_nodes_and_flat_does_not(run, toy):
    bundle = toy.line(2, apart=1000.0)  # every state and goal falls to node 0: the goal at once
    _, outcome, policy = run(straight, bundle)
    assert len(policy.goals) == 2 * HORIZON
    for goals in policy.goals:
        np.testing.assert_array_equal(goals, outcome.goals)

    planning = {"lookahead_hops": 1, "replan_steps": 100}
    edges = [(0, 4), (4, 1), (1, 3), (3, 2)]
    short = np.full(3, 0.1, np.float32)  # so that half a unit of x is away, not here
    bundle = toy.bundle([-3, 0, 3, 0.5, -0.5], edges, unit=short)
    metrics, outcome, policy = run(straight, bundle, planning=planning)
    xs = np.array([-3, 0, 3, 0.5, -0.5])
    nearest = np.abs(outcome.goals[:, :1] - xs).argmin(axis=1)
    via = {0: -0.5, 2: 0.5}  # the ends lie two hops away, behind these
    far = np.isin(nearest, [0, 2])
    expected = np.where(far, [via.get(n, 0) for n in nearest], outcome.goals[:, 0])
    for goals in policy.goals[:HORIZON]:
        np.testing.assert_array_equal(goals, outcome.goals)
    for goals in policy.goals[HORIZON:]:  # never chosen anew within the horizon
        np.testing.assert_allclose(goals[:, 0], expected)
    assert metrics["evaluation/success_final"] == 1
    assert metrics["evaluation_planned/success_final"] < 1


def test_each_decision_is_held_for_the_environment_s_repeat(run, toy):
    from dataclasses import replace

    class Repeating(toy.Plane):
        spec = replace(toy.Plane.spec, action_repeat=3, horizon=2)

    env = Repeating(40, np.random.default_rng(0))
    _, outcome, policy = run(lambda o, g: np.full((len(o), 2), 0.25, np.float32), env=env)
    assert outcome.positions.shape == (40, 3, 3)
    np.testing.assert_allclose(outcome.positions[0, :, 0], [0, 0.75, 1.5])
    assert len(policy.goals) == 4


def test_memory_metrics_measure_the_cover_by_the_oracle(toy):
    bundle = toy.bundle([-2.0, 1.0, 3.0, 30.0], [(0, 1), (1, 2), (2, 3)])
    uniform = toy.points([-2.0, 2.5, 5.0])
    metrics = memory_metrics(bundle, toy.env(), uniform)
    assert metrics["memory/nodes_left"] == 1
    assert metrics["memory/nodes_right"] == 3
    assert metrics["memory/distance_to_node"] == pytest.approx((0 + 0.5 + 2) / 3)
    assert metrics["graph/shortcut_frac"] == pytest.approx(1 / 3)  # longer than 8 × 0.5


def test_a_network_that_ranks_by_distance_has_a_perfect_probe_and_an_inverted_one_none(toy):
    states = toy.points(np.random.default_rng(0).uniform(-4, 4, 60))
    for cost, expected in ((1.0, 1.0), (-1.0, 0.0)):
        network = toy.network(1.0, forwards=cost, backwards=cost)
        bundle = toy.bundle([-3.0, 0.0, 3.0], [(0, 1), (1, 2)], network=network)
        metrics = probe(bundle, bundle.features(toy.config(), toy.Plane.spec), toy.env(), states)
        assert metrics["reachability/probe_auc"] == pytest.approx(expected)


def test_the_probe_is_the_area_under_the_curve_of_its_pairs(toy):
    rng = np.random.default_rng(1)
    states = np.zeros((40, 3), np.float32)
    states[:, :2] = rng.uniform(-4, 4, (40, 2))
    # The network sees ten times as much in steps to the right as in steps to the left.
    bundle = toy.bundle([0.0, 1.0], [(0, 1)], network=toy.network(1.0, backwards=10.0))
    metrics = probe(bundle, bundle.features(toy.config(), toy.Plane.spec), toy.env(), states)
    pairs = [(a, b) for a in range(40) for b in range(40) if a != b]
    gap = np.array([states[b, :2] - states[a, :2] for a, b in pairs], np.float64)
    score = -(np.maximum(gap, 0) + 10 * np.maximum(-gap, 0)).sum(axis=1)
    distance = np.hypot(*gap.T)
    near = distance <= np.quantile(distance, 0.02)
    assert metrics["reachability/probe_auc"] == pytest.approx(roc_auc(near, score), abs=1e-4)


def roc_auc(label, score):
    """By counting pairs; a tie is half."""
    wins = [(a > score[~label]).mean() + (a == score[~label]).mean() / 2 for a in score[label]]
    return np.mean(wins)


def test_one_goal_can_be_evaluated_though_it_makes_no_pair(run, toy):
    metrics, outcome, _ = run(straight, env=toy.env(1))
    assert metrics["evaluation/success_final"] == 1
    assert len(outcome.goals) == 1
    assert "reachability/probe_auc" not in metrics


def test_a_shortcut_through_a_wall_spoils_the_correlation_of_hops(toy):
    xs = np.arange(8) * 10.0
    line = [(i, i + 1) for i in range(7)]
    features = toy.bundle(xs, line).features(toy.config(), toy.Plane.spec)
    good = probe(toy.bundle(xs, line), features, toy.env(), toy.points(xs))
    spoilt = probe(toy.bundle(xs, [*line, (0, 7)]), features, toy.env(), toy.points(xs))
    assert good["graph/hop_correlation"] == pytest.approx(1)
    apart = np.array([abs(i - j) for i in range(8) for j in range(8) if i != j])
    around = stats.spearmanr(apart, np.minimum(apart, 8 - apart)).statistic
    assert spoilt["graph/hop_correlation"] == pytest.approx(around)
