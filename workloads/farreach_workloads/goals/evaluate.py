"""Evaluation on held-out goals: success at the end and at any step, per category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats

from farreach import seeding
from farreach_workloads.goals.agents.build import Acting, make_policy
from farreach_workloads.goals.bundle import nodes_per_category
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints
from farreach_workloads.goals.rollout import Planner

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle
    from farreach_workloads.goals.config import ReachingConfig
    from farreach_workloads.goals.features import Features

# The goals are the same for every run and every seed, so that runs can be compared goal by goal.
GOALS_SEED = 20_220_611
PROBED = 100  # uniform states whose pairs probe network and graph
NEAR_FRAC = 0.02  # of these pairs count as near
SHORTCUT_THRESHOLDS = 8  # success thresholds of free path between the ends of an edge


def success_table(metrics: Mapping[str, float], categories: tuple[str, ...]) -> list[str]:
    """Lines for the terminal: success at the last step per category, flat and graph-planned."""
    lines = ["goals        success   planned along the graph"]
    names = [*(f"_{name}" for name in categories if len(categories) > 1), ""]
    for name in names:
        flat = metrics.get(f"evaluation/success_final{name}")
        planned = metrics.get(f"evaluation_planned/success_final{name}")
        if flat is not None and planned is not None:
            lines.append(f"{name.strip('_') or 'all':<12} {flat:7.3f}   {planned:7.3f}")
    return lines


@dataclass(frozen=True)
class Outcome:
    """What happened to each of n goals.

    Attributes:
        goals: (n, d).
        final_distance: (n,) oracle distance at the last step.
        least_distance: (n,) the smallest on the way.
        positions: (n, steps + 1, d) float32, the walked paths.
        planned: what happened to the same goals along the graph, if that was tried.
    """

    goals: Floats
    final_distance: Floats
    least_distance: Floats
    positions: Floats
    planned: Outcome | None = None


class Evaluator:
    """Runs all goals at once: `config.evaluation.episodes` copies of the environment.

    Success is read at the **last** step (`success_final`, the papers' protocol) and at any step
    (`success_any`, as OGBench and JaxGCRL count). The policy acts with the tanh of its mean.
    """

    def __init__(self, config: ReachingConfig, env: GoalEnvironment) -> None:
        """`env` must have one copy per evaluation episode."""
        torch.set_num_threads(config.runtime.torch_threads)
        self._config, self._env = config, env
        env.rng = np.random.default_rng(GOALS_SEED + 1)
        self.goals = env.goals(env.num_envs, np.random.default_rng(GOALS_SEED))

    def evaluate(
        self, weights: Mapping[str, np.ndarray], bundle: Bundle
    ) -> tuple[dict[str, float], Outcome]:
        """Flat and graph-planned success, coverage of the memory; and both outcomes."""
        features = bundle.features(self._config, self._env.spec)
        policy = make_policy(self._config.agent, features, self._env.spec.action_dim)
        policy.load(weights)
        planner = Planner(bundle.guide("uniform"), self._config, features)
        flat = self._run(policy, None)
        planned = self._run(policy, planner)
        metrics = self._summary("evaluation", flat) | self._summary("evaluation_planned", planned)
        metrics |= memory_metrics(bundle, self._env, self.goals)
        metrics |= probe(bundle, features, self._env, self.goals)
        return metrics, replace(flat, planned=planned)

    def _run(self, policy: Acting, planner: Planner | None) -> Outcome:
        env, config = self._env, self._config
        env.rng = np.random.default_rng(seeding.child_seed(GOALS_SEED, "reset"))
        observations = env.reset()
        slots = planner.nearest_to_goals(self.goals) if planner else None
        least = np.full(env.num_envs, np.inf)
        walked = [observations]
        pursued = self.goals
        for t in range(env.spec.horizon):
            if planner is not None and slots is not None and t % config.planning.replan_steps == 0:
                pursued = planner.subgoals(observations, self.goals, slots)
            actions = policy.act(observations, pursued)
            for _ in range(env.spec.action_repeat):
                observations = env.step(actions)
            distance = env.distance(observations, self.goals)
            least = np.minimum(least, distance)
            walked.append(observations)
        return Outcome(self.goals, distance, least, np.stack(walked, axis=1))

    def _summary(self, group: str, outcome: Outcome) -> dict[str, float]:
        spec = self._env.spec
        final = outcome.final_distance < spec.success_threshold
        ever = outcome.least_distance < spec.success_threshold
        metrics = {
            f"{group}/success_final": float(final.mean()),
            f"{group}/success_any": float(ever.mean()),
            f"{group}/within_two_thresholds": float(
                (outcome.final_distance < 2 * spec.success_threshold).mean()
            ),
            f"{group}/final_distance": float(outcome.final_distance.mean()),
        }
        if len(spec.categories) > 1:
            label = self._env.goal_categories(self.goals)
            for index, name in enumerate(spec.categories):
                own = label == index
                if own.any():
                    metrics[f"{group}/success_final_{name}"] = float(final[own].mean())
                    metrics[f"{group}/success_any_{name}"] = float(ever[own].mean())
        return metrics


def memory_metrics(bundle: Bundle, env: GoalEnvironment, uniform: Floats) -> dict[str, float]:
    """How the memory covers the environment, in oracle terms (evaluation only).

    Args:
        bundle: the memory.
        env: supplies categories and distances.
        uniform: (n, d) states uniform over what can be reached.
    """
    metrics = nodes_per_category(bundle, env)
    nearest = np.full(len(uniform), np.inf)
    for node in bundle.nodes:
        nearest = np.minimum(nearest, env.distance(uniform, np.broadcast_to(node, uniform.shape)))
    metrics["memory/distance_to_node"] = float(nearest.mean())
    *_, is_shortcut = shortcuts(bundle, env)
    if len(is_shortcut):
        metrics["graph/shortcut_frac"] = float(is_shortcut.mean())
    return metrics


def shortcuts(bundle: Bundle, env: GoalEnvironment) -> tuple[Ints, Ints, np.ndarray]:
    """The ends of all edges, (k,) both, and which lead through walls by the oracle, (k,) bool.

    An edge is such a shortcut if the free path between its ends is longer than
    `SHORTCUT_THRESHOLDS` success thresholds. Undirected edges count once.
    """
    i, j = np.nonzero(bundle.edges if bundle.directed else np.triu(bundle.edges, 1))
    length = env.path_distance(bundle.nodes[i], bundle.nodes[j])
    return i, j, length > SHORTCUT_THRESHOLDS * env.spec.success_threshold


def probe(
    bundle: Bundle, features: Features, env: GoalEnvironment, uniform: Floats
) -> dict[str, float]:
    """How well network and graph know what is near what, in oracle terms (evaluation only).

    Among all pairs of some uniform states:

    * `reachability/probe_auc`: how often a pair of the nearest fiftieth has a higher logit than
      another pair; 0.5 is guessing, 1 is perfect.
    * `graph/hop_correlation`: rank correlation of hops with the length of the shortest free path.

    Args:
        bundle: network and graph.
        features: the network's input.
        env: supplies path distances.
        uniform: (n, d) states uniform over what can be reached; `PROBED` of them are used. A
            single one makes no pair, and nothing is told.
    """
    states = np.unique(uniform[:PROBED], axis=0)
    if len(states) < 2:
        return {}
    i, j = np.nonzero(~np.eye(len(states), dtype=bool))
    length = env.path_distance(states[i], states[j])
    embeddings = bundle.network.embed(features.reachability(states))
    metrics = {}
    hops = bundle.hops[bundle.nearest(embeddings)[i], bundle.nearest_to_goals(embeddings)[j]]
    if np.ptp(hops) > 0 and np.ptp(length) > 0:
        metrics["graph/hop_correlation"] = float(stats.spearmanr(hops, length).statistic)
    near = length <= np.quantile(length, NEAR_FRAC)
    if near.any() and not near.all():
        rank = stats.rankdata(bundle.network.logits(embeddings[i], embeddings[j]))
        few, rest = near.sum(), (~near).sum()
        # Mann and Whitney's statistic over its largest value is the area under the ROC curve.
        above = rank[near].sum() - few * (few + 1) / 2
        metrics["reachability/probe_auc"] = float(above / (few * rest))
    return metrics
