"""Experience: episodes as rollouts have collected them, and relabelled rows drawn from them.

The learner has all of it in its own process, so that no batch ever travels; or it is kept in shards
beside the rollouts (`runtime.replay_shards`), which relabel and reward what the learner takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach import messages, seeding
from farreach.data.replay import Ring
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.relabel import Relabeller

if TYPE_CHECKING:
    from farreach_workloads.goals.config import GoalsRunConfig

# Name of a column → (rows, …).
Rows = dict[str, Floats]

# Stored episodes that are annotated anew when a bundle comes in.
REANNOTATED_EPISODES = 64
COLUMNS = ("observations", "actions", "goals", "goal_slot", "nearest", "version")


def capacity(config: GoalsRunConfig) -> int:
    """Episodes that the learner keeps, or each of the shards."""
    episodes = config.agent.replay_steps // config.phases.policy_steps
    return max(1, episodes // max(1, config.runtime.replay_shards))


class Experience:
    """A replay, or a shard of it.

    ```
    experience.set_bundle(bundle)
    experience.add(episodes)
    rows = experience.rows(8192)
    ```
    """

    def __init__(
        self, config: GoalsRunConfig, env: GoalEnvironment, shard: int | None = None
    ) -> None:
        """Empty; shard number `shard`, or None for the learner's own."""
        self._config, self._env = config, env
        self._ring = Ring(capacity(config))
        self._relabeller = Relabeller(config, env)
        name = "learner" if shard is None else "replay"
        self.rng = seeding.generator(config.seed, name, shard or 0)
        self._last_seq: dict[int, int] = {}
        self._bundle: Bundle | None = None
        self._features: Features | None = None

    def add(self, episodes: Mapping[str, Any]) -> None:
        """Store episodes; a message that came before is dropped.

        Args:
            episodes: `observations` (n, steps + 1, d), `actions` (n, steps, a), `goals` (n, d),
                `goal_slot` (n,), `nearest` (n, steps + 1) and `version` (n,) of the bundle they
                were annotated with; `producer` and `seq` identify the message.
        """
        producer, seq = episodes["producer"], episodes["seq"]
        if seq <= self._last_seq.get(producer, -1):
            return
        self._last_seq[producer] = seq
        self._ring.append({name: episodes[name] for name in COLUMNS})

    def take_over(self, observations: Floats, actions: Floats) -> None:
        """Store what another run has experienced, with the last state as the goal.

        Args:
            observations: (n, steps + 1, d).
            actions: (n, steps, a).
        """
        count, shape = len(observations), observations.shape[:2]
        # Nodes of version -1 are no longer what they were, so that each use looks them up.
        self._ring.append(
            {
                "observations": observations,
                "actions": actions,
                "goals": observations[:, -1],
                "goal_slot": np.full(count, -1),
                "nearest": np.zeros(shape, np.int32),
                "version": np.full(count, -1),
            }
        )

    def set_bundle(self, bundle: Bundle) -> None:
        """Use this bundle from the next rows on and re-annotate a few stored episodes with it."""
        self._bundle = bundle
        self._features = bundle.features(self._config, self._env.spec)
        if not len(self._ring):
            return
        rows = self.rng.integers(0, len(self._ring), min(REANNOTATED_EPISODES, len(self._ring)))
        observations = self._ring["observations"][rows]
        flat = observations.reshape(-1, observations.shape[-1])
        nearest = bundle.nearest(bundle.network.embed(self._features.reachability(flat)))
        self._ring["nearest"][rows] = nearest.reshape(observations.shape[:2])
        # The goal keeps its slot only if that still means the same node.
        slot, version = self._ring["goal_slot"][rows], self._ring["version"][rows]
        self._ring["goal_slot"][rows] = np.where(bundle.valid(slot, version), slot, -1)
        self._ring["version"][rows] = bundle.version

    def rows(self, count: int) -> Rows:
        """Transitions drawn uniformly, relabelled and rewarded.

        Returns:
            `pair` and `next_pair` (count, w), features of state and goal; `action` (count, a);
            `reward` (count,); all float32.
        """
        assert self._bundle is not None
        assert self._features is not None
        sample = self._relabeller.sample(self._ring, self._bundle, self._features, count, self.rng)
        return {
            "pair": self._features.pair(sample.observation, sample.goal),
            "next_pair": self._features.pair(sample.next_observation, sample.goal),
            "action": sample.action,
            "reward": self._relabeller.reward(sample, self._bundle, self._features),
        }

    def draw(self, count: int) -> tuple[Rows, int]:
        """`rows`, and how many they are, which a caller can ask for without fetching them."""
        return self.rows(count), count

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs but the bundle."""
        return {
            "ring": self._ring.state(),
            "last_seq": dict(self._last_seq),
            "rng": messages.generator_state(self.rng),
        }

    def restore(self, state: Mapping[str, Any], bundle: Bundle | None = None) -> None:
        """Take over a `state`, and the bundle that was in use."""
        if bundle is not None:
            self.set_bundle(bundle)
        self._ring.restore(state["ring"])
        self._last_seq = dict(state["last_seq"])
        if state["rng"] is not None:
            messages.restore_generator(self.rng, state["rng"])


def dealt_out(content: Mapping[str, Any], config: GoalsRunConfig) -> dict[str, Any]:
    """A checkpoint's parts with its experience among as many shards as there are now.

    Args:
        content: role → state.
        config: has the number of shards; none stands for the learner.

    Returns:
        The same if the number was that before. Else the newest episodes are dealt out in turn, and
        shards that were not there before have the generators that they begin with.
    """
    shards = [f"replay-{i}" for i in range(config.runtime.replay_shards)]
    before = [role for role in content if role.startswith("replay-")]
    if sorted(shards) == sorted(before):
        return dict(content)
    sources = [content[role] for role in ("learner", *before)]
    columns = _by_age([source["ring"] for source in sources])
    last_seq: dict[int, int] = {}
    for source in sources:
        for producer, seq in source["last_seq"].items():
            last_seq[producer] = max(seq, last_seq.get(producer, -1))
    size, holders = capacity(config), shards or ["learner"]
    found = {role: state for role, state in content.items() if role not in before}
    nothing = {"ring": _ring_of({}, size), "last_seq": {}}
    found["learner"] = found["learner"] | nothing
    for index, role in enumerate(holders):
        own = {name: values[index :: len(holders)][-size:] for name, values in columns.items()}
        kept = found.get(role) or content.get(role) or {"rng": None}
        found[role] = kept | {"ring": _ring_of(own, size), "last_seq": dict(last_seq)}
    return found


def _ring_of(columns: Mapping[str, Any], size: int) -> dict[str, Any]:
    total = len(next(iter(columns.values()))) if columns else 0
    return {"capacity": size, "total": total, "columns": dict(columns)}


def _by_age(rings: Sequence[Mapping[str, Any]]) -> Rows:
    """Columns of all rings together; records of several rings take turns, the newest come last."""
    unrolled, ages = [], []
    for ring in rings:
        if not ring["columns"]:
            continue
        held = min(ring["total"], ring["capacity"])
        first = ring["total"] % ring["capacity"] if ring["total"] > ring["capacity"] else 0
        order = (first + np.arange(held)) % held
        unrolled.append({name: values[order] for name, values in ring["columns"].items()})
        ages.append(np.arange(held) - held)
    if not unrolled:
        return {}
    order = np.argsort(np.concatenate(ages), kind="stable")
    names = unrolled[0]
    return {name: np.concatenate([each[name] for each in unrolled])[order] for name in names}
