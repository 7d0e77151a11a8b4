"""Rollouts: pursue a goal with the policy, then walk randomly from where that ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from farreach import messages, seeding
from farreach.actors.weights import Kept
from farreach.data.replay import Ring
from farreach.errors import EnvironmentFault, FarreachError
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints
from farreach_workloads.goals.sac import Policy

if TYPE_CHECKING:
    from farreach_workloads.goals.bundle import Bundle, Guide
    from farreach_workloads.goals.config import GoalsRunConfig, ReachingConfig
    from farreach_workloads.goals.features import Features

Message = dict[str, Any]

# Units within which a policy that is to go to a node may well find that it is there.
HERE = 2.0
# Units within which a goal is reached, and below which a copy has not moved.
REACHED, STILL = 0.5, 0.2
# Choices within which a copy gets further than a unit, or else goes to and fro.
PATIENCE = 5
# Hops of lookahead that a moving copy regains with each choice of a sub-goal.
REGAINED = 0.25


class Planner:
    """Graph-planned execution: what to pursue now on the way to a goal.

    Every `replan_steps` steps the node `lookahead_hops` along the shortest path becomes the
    sub-goal; the goal itself takes over once it is that near. Nodes that a masked goal cannot tell
    from where the copy is (it would have to turn only) are passed over, or it would stay there. A
    copy that has not moved since the last choice, or has gone to and fro for some, is given a
    sub-goal one hop nearer, in the end its own node, because the way straight to this one may lead
    into a wall; one that moves regains a hop in four choices.
    """

    def __init__(self, guide: Guide, config: ReachingConfig, features: Features) -> None:
        """Plan on the nodes and ways of a guide, whose features these are."""
        self._guide, self._features = guide, features
        self._furthest = config.planning.lookahead_hops
        self._ahead: Floats = np.zeros(0)
        self._before: Floats | None = None
        self._anchor: Floats = np.zeros(0)
        self._waited: Ints = np.zeros(0, np.int64)

    def nearest(self, observations: Floats) -> Ints:
        """The node of each observation, (n,)."""
        embeddings = self._guide.network.embed(self._features.reachability(observations))
        return self._guide.nearest(embeddings)

    def nearest_to_goals(self, goals: Floats) -> Ints:
        """The node that stands for each goal, (n,)."""
        embeddings = self._guide.network.embed(self._features.reachability(goals))
        return self._guide.nearest_to_goals(embeddings)

    def subgoals(self, observations: Floats, goals: Floats, goal_slots: Ints) -> Floats:
        """What to pursue from each observation: (n, d) observations of nodes or the goals.

        The copies must be the same, in the same order, from call to call.
        """
        guide = self._guide
        reached = self._features.units_apart(observations, goals) < REACHED
        own = self.nearest(observations)
        self._adapt(observations, reached, own)
        ahead = self._ahead.astype(np.int64)
        node = guide.subgoal(own, goal_slots, ahead)
        while True:
            near = self._features.units_apart(observations, guide.nodes[node]) <= HERE
            passed = (node != goal_slots) & near & (ahead > 0)
            if not passed.any():
                break
            node[passed] = guide.next_hop[node[passed], goal_slots[passed]]
        there = ((node == goal_slots) | reached)[:, None]
        return np.where(there, goals, guide.nodes[node])

    def _adapt(self, observations: Floats, reached: np.ndarray, own: Ints) -> None:
        if self._before is None:
            self._ahead = np.full(len(observations), float(self._furthest))
            self._anchor, self._waited = observations.copy(), np.zeros(len(observations), np.int64)
        else:
            moved = self._features.units_apart(self._before, observations)
            away = self._features.units_apart(self._anchor, observations) > 1.0
            self._waited = np.where(away, 0, self._waited + 1)
            stuck = ((moved < STILL) | (self._waited >= PATIENCE)) & ~reached
            anew = away | (self._waited >= PATIENCE)
            self._anchor[anew], self._waited[anew] = observations[anew], 0
            ahead = self._ahead + np.where(stuck, -1, REGAINED)
            # Its own node is no help to a copy that is there, and none is left to one that is
            # stuck on the way to it: all over again.
            there = self._features.units_apart(observations, self._guide.nodes[own]) < REACHED
            over = (ahead < 0) | ((ahead < 1) & there)
            self._ahead = np.where(over, self._furthest, np.minimum(ahead, self._furthest))
        self._before = observations.copy()


def planned_copies(config: GoalsRunConfig) -> int:
    """How many copies of a rollout follow the graph; the others go straight to their goals."""
    planned = round(config.phases.planned_frac * config.environment.num_envs)
    return planned if config.goals.source == "memory" else 0


def guide_for_rollouts(bundle: Bundle, config: GoalsRunConfig) -> Guide:
    """What `Rollout.collect` takes."""
    return bundle.guide(config.goals.mode, plans=planned_copies(config) > 0)


class Rollout:
    """A batch of environments with a copy of the policy.

    ```
    walks, info = rollout.first_walks(10_000)
    episodes, walks, info = rollout.collect(weights, guide, env_steps=0)
    ```
    Messages carry `producer` and `seq`, so that a receiver can drop what it has had.
    """

    def __init__(
        self, config: GoalsRunConfig, env: GoalEnvironment, index: int, incarnation: int = 0
    ) -> None:
        """Rollout number `index`; a replacement after a death gets the next `incarnation`."""
        torch.set_num_threads(config.runtime.torch_threads)
        self._config, self._env, self._index = config, env, index
        self.begin_anew(incarnation)
        self._seen = Ring(max(1, config.agent.replay_steps // config.phases.policy_steps))
        self._planned = planned_copies(config)
        self._weights, self._guide = Kept(), Kept()
        self._scaled = (b"", b"")
        self._features: Features | None = None
        self._policy: Policy | None = None

    def begin_anew(self, incarnation: int) -> None:
        """Take the randomness of an incarnation, and number messages anew."""
        seed, index = self._config.seed, self._index
        self._producer = index + 1_000_000 * incarnation
        self._seq = 0
        self._rng = seeding.generator(seed, f"rollout/{incarnation}", index)
        self._env.rng = seeding.generator(seed, f"environment/{incarnation}", index)

    def first_walks(self, steps: int) -> tuple[Message, Message]:
        """At least `steps` random steps in walks from the reset state; (walks, info)."""
        rounds = -(-steps // (self._env.num_envs * self._config.phases.random_steps))
        walked = [self._random_walk(self._reset()) for _ in range(rounds)]
        observations = np.concatenate(walked)
        nobody = np.full(len(observations), -1)
        walks = self._walks(observations, nobody, 0, np.zeros(len(observations), bool), 0)
        return walks, self._info(observations[:, 1:], 0, observations.shape[1] - 1, {})

    def collect_newest(
        self, weights: Sequence[Any], guide: Sequence[Any], env_steps: int
    ) -> tuple[Message, Message, Message]:
        """`collect` with weights and guide as `Kept` reads them: most are the same as before."""
        return self.collect(self._weights.read(weights), self._guide.read(guide), env_steps)

    def collect(
        self, weights: Mapping[str, np.ndarray], guide: Guide, env_steps: int
    ) -> tuple[Message, Message, Message]:
        """One policy phase and one random phase in every copy.

        Args:
            weights: the policy's, from `GoalSac.export_policy`.
            guide: of the newest bundle.
            env_steps: steps that all rollouts had taken before.

        Returns:
            Episodes for the learner, random walks for reachability and memory, and a small
            message of counters and metrics.
        """
        config = self._config
        features = self._features_of(guide)
        policy = self._load(weights, features)
        planner = Planner(guide, config, features)
        goals, slots = self._choose_goals(guide)
        observations, actions = self._pursue(policy, planner, guide, goals, slots)
        final = observations[:, -1]
        start = self._reset() if config.phases.random_start == "reset" else final
        walked = self._random_walk(start)
        flat = observations.reshape(-1, observations.shape[-1])
        nearest = planner.nearest(flat).reshape(observations.shape[:2]).astype(np.int32)
        reached = nearest[:, -1] == slots
        count = len(goals)
        episodes = {
            "observations": observations,
            "actions": actions,
            "goals": goals,
            "goal_slot": slots,
            "nearest": nearest,
            "version": np.full(count, guide.version),
            "producer": self._producer,
            "seq": self._seq,
        }
        self._seq += 1
        if config.goals.source == "replay":
            self._seen.append({"observations": observations})
        walks = self._walks(walked, slots, guide.version, reached, env_steps)
        metrics = {}
        if config.goals.source == "memory":
            direct = reached[self._planned :] if self._planned < count else reached
            metrics = {
                "rollout/reached_node": float(reached.mean()),
                "rollout/reached_node_direct": float(direct.mean()),
            }
            chosen = guide.chances
            entropy = -(chosen * np.log(np.maximum(chosen, 1e-300))).sum()
            metrics["rollout/goal_entropy_frac"] = float(entropy / max(np.log(len(guide)), 1e-9))
        visited = np.concatenate([observations[:, 1:], walked[:, 1:]], axis=1)
        return episodes, walks, self._info(visited, actions.shape[1], walked.shape[1] - 1, metrics)

    def _features_of(self, guide: Guide) -> Features:
        """Those that were there before as long as they are the same: all of a run's are."""
        scaled = (guide.scale.tobytes(), guide.unit.tobytes())
        if self._features is None or scaled != self._scaled:
            self._features = guide.features(self._config, self._env.spec)
            self._scaled, self._policy = scaled, None
        return self._features

    def _load(self, weights: Mapping[str, np.ndarray], features: Features) -> Policy:
        """The policy with other weights: making one takes as long as several steps."""
        if self._policy is None:
            self._policy = Policy(self._config.agent, features, self._env.spec.action_dim)
        self._policy.load(weights)
        return self._policy

    def _choose_goals(self, guide: Guide) -> tuple[Floats, Ints]:
        """A goal observation (n, d) and its node (n,), -1 if it is none, for every copy."""
        count, source = self._env.num_envs, self._config.goals.source
        if source == "evaluation":
            return self._env.goals(count, self._rng), np.full(count, -1)
        if source == "replay" and len(self._seen):
            seen = self._seen["observations"]
            rows = self._rng.integers(0, len(seen), count)
            return seen[rows, self._rng.integers(0, seen.shape[1], count)], np.full(count, -1)
        slots = self._rng.choice(len(guide), count, p=guide.chances)
        return guide.nodes[slots], slots

    def _pursue(
        self, policy: Policy, planner: Planner, guide: Guide, goals: Floats, slots: Ints
    ) -> tuple[Floats, Floats]:
        """The policy phase: observations (n, steps + 1, d) and actions (n, steps, a)."""
        phases, env = self._config.phases, self._env
        chained = self._config.goals.mode == "chained" and self._config.goals.source == "memory"
        current = self._reset()
        observations = np.empty(
            (env.num_envs, phases.policy_steps + 1, current.shape[1]), np.float32
        )
        actions = np.empty((env.num_envs, phases.policy_steps, env.spec.action_dim), np.float32)
        observations[:, 0] = current
        planned, direct = slice(0, self._planned), slice(self._planned, None)
        pursued = goals.copy()
        for t in range(phases.policy_steps):
            if chained:
                before = guide.predecessor[slots]
                via = (before >= 0) & (t < phases.policy_steps // 2)
                towards = np.where(via[:, None], guide.nodes[before], goals)
                pursued[direct] = towards[direct]
            if self._planned and t % self._config.planning.replan_steps == 0:
                pursued[planned] = planner.subgoals(
                    current[planned], goals[planned], slots[planned]
                )
            actions[:, t] = policy.act(current, pursued, self._rng)
            try:
                current = env.step(actions[:, t])
            except Exception:
                self._expect_numbers(observations[:, : t + 1], actions[:, : t + 1])
                raise
            observations[:, t + 1] = current
        self._expect_numbers(observations, actions)
        self._expect_finite(observations)
        return observations, actions

    def _reset(self) -> Floats:
        return self._env.reset()

    def _random_walk(self, start: Floats) -> Floats:
        """Uniform random actions from where the copies are: (n, steps + 1, d)."""
        steps = self._config.phases.random_steps
        shape = (steps, self._env.num_envs, self._env.spec.action_dim)
        walked = self._env.walk(self._rng.uniform(-1.0, 1.0, shape).astype(np.float32))
        observations = np.concatenate([start[None], walked]).swapaxes(0, 1)
        self._expect_finite(observations)
        return np.ascontiguousarray(observations)

    def _expect_numbers(self, observations: Floats, actions: Floats) -> None:
        """Physics may take NaN for no action at all, and the run would go on for nothing.

        What follows from observations that are no numbers is the environment's fault.
        """
        if np.isfinite(actions).all():
            return
        first = int(np.argmin(np.isfinite(actions).all((0, 2))))
        if np.isfinite(observations[:, : first + 1]).all():
            raise FarreachError(
                "the policy's actions are no longer numbers: its training has diverged. Lower "
                "agent.lr, agent.discount or reward.scale, and train again."
            )

    def _expect_finite(self, observations: Floats) -> None:
        if not np.isfinite(observations).all():
            row, step, dim = np.argwhere(~np.isfinite(observations))[0]
            raise EnvironmentFault(
                f"environment {self._env.spec.name!r} returned {observations[row, step, dim]} in "
                f"dim {dim} at step {step} of copy {row}. Mend the environment, or bound its "
                "actions or state so that it stays finite."
            )

    def _walks(
        self, observations: Floats, slots: Ints, version: int, reached: np.ndarray, env_steps: int
    ) -> Message:
        return {
            "observations": observations,
            "goal_slot": slots,
            "goal_version": np.full(len(slots), version),
            "reached": reached,
            "env_steps": env_steps,
        }

    def _info(
        self, visited: Floats, policy_steps: int, random_steps: int, metrics: dict[str, float]
    ) -> Message:
        """Counters; `visits` (cells,) counts the visited states per coverage cell."""
        cell, count = self._env.cells(visited.reshape(-1, visited.shape[-1]))
        return {
            "policy_steps": policy_steps * self._env.num_envs,
            "walk_steps": len(visited) * random_steps,
            "visits": np.bincount(cell[cell >= 0], minlength=count) if count else np.zeros(0, int),
            "metrics": metrics,
        }

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs; between two calls of `collect` no episode is open."""
        return {
            "seq": self._seq,
            "producer": self._producer,
            "rng": messages.generator_state(self._rng),
            "environment_rng": messages.generator_state(self._env.rng),
            "seen": self._seen.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`."""
        self._seq, self._producer = state["seq"], state["producer"]
        messages.restore_generator(self._rng, state["rng"])
        messages.restore_generator(self._env.rng, state["environment_rng"])
        self._seen.restore(state["seen"])
