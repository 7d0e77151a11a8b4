"""Settings of goal reaching: every default is stated here, once.

The defaults are what works best on the mazes; the values of the paper (arXiv:2206.11733) and of the
code it grew from are in `fidelity.py` and take their place where `fidelity: paper` is set.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.rundir import lasting
from farreach_workloads.goals import fidelity


class EnvironmentConfig(Config):
    """Which environment."""

    name: str = "maze"
    """Registered name; see `farreach list environments`."""
    options: dict[str, Any] = Field({})
    """Arguments of the environment's constructor, such as `id` for `name: gymnasium`."""


class CopiesConfig(EnvironmentConfig):
    """Which environment, and how many copies a rollout actor steps."""

    num_envs: int = Field(32, ge=1)
    """Copies that one rollout actor steps together."""


class FeaturesConfig(Config):
    """How observations become network inputs."""

    dims: Literal["state", "all"] = "state"
    """What the policy sees: `state` drops velocities that carry nothing and the clock."""
    angles: Literal["sincos", "raw"] = "sincos"
    """How raw angles enter the networks."""
    goal: Literal["masked", "full"] = "masked"
    """Whether the policy sees only the dims that define a goal, or the goal's whole observation."""
    relative: bool = True
    """Add arsinh of (goal - state) on the goal dims to the policy's input: linear near the goal,
    logarithmic far from it."""
    scale: Literal["walk", "none"] = "walk"
    """Divide inputs by their spread in the first random walks (`walk`), or leave them."""
    frequencies: int = Field(0, ge=0, le=8)
    """Add sines and cosines of 1, 2, 4, … times the policy's inputs, so many each: values that jump
    at a wall are then within reach of a small network (arXiv:2206.04672)."""


class PhasesConfig(Config):
    """The two phases of an episode: pursue a goal, then walk randomly from where that ended."""

    policy_steps: int = Field(100, ge=1)
    random_steps: int = Field(100, ge=1)
    random_start: Literal["goal", "reset"] = "goal"
    """`reset` is the negative control: random walks that never profit from the policy."""
    initial_random_steps: int = Field(10_000, ge=1)
    planned_frac: float = Field(0.5, ge=0, le=1)
    """Share of the copies that pursue their goal along the graph while collecting."""


class PlanningConfig(Config):
    """Planned execution: sub-goals along the shortest path of the graph."""

    lookahead_hops: int = Field(3, ge=1)
    """How many hops ahead the sub-goal lies."""
    replan_steps: int = Field(4, ge=1)
    """Policy steps between two choices of a sub-goal."""


class NetworkConfig(Config):
    """The reachability network, and the pairs it is trained on."""

    window: int = Field(10, ge=1)
    """τ: steps within which a state counts as reachable."""
    directed: bool = False
    """Whether only later states count as reachable, or both directions do."""
    dims: Literal["state", "goal"] = "state"
    """What the network sees: the environment's reachability dims, or its goal dims."""
    embedding: int = Field(16, ge=1)
    hidden: int = Field(64, ge=1)
    encoder_layers: int = Field(3, ge=1)
    comparator: Literal["metric", "network"] = "metric"
    """How two embeddings are compared: by their distance, or by the paper's small network."""
    comparator_layers: int = Field(2, ge=2)
    """Linear layers of `comparator: network`."""
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    batch: int = Field(512, ge=2)
    negative_frac: float = Field(0.5, gt=0, lt=1)
    in_trajectory_frac: float = Field(0.5, ge=0, le=1)
    """Share of the negatives that come from the same trajectory."""

    @model_validator(mode="after")
    def _layers_are_of_the_network(self) -> NetworkConfig:
        default = type(self).model_fields["comparator_layers"].default
        if self.comparator != "network" and self.comparator_layers != default:
            raise ValueError(
                f"comparator: {self.comparator} has no layers; remove comparator_layers or set "
                "comparator: network"
            )
        return self


class ReachabilityConfig(NetworkConfig):
    """The reachability network and its refreshes."""

    recent_frac: float = Field(0.3, ge=0, lt=1)
    """Share of the pairs that come from walks since the last refresh: the memory is about to judge
    those, and in a ring full of old walks a new region would hardly be trained on."""
    first_pairs: int = Field(500_000, ge=1)
    refresh_pairs: int = Field(150_000, ge=1)
    refresh_every_steps: int = Field(12_800, ge=1)
    """Random-walk steps between two refreshes of network, memory and graph."""
    walk_capacity_steps: int = Field(1_000_000, ge=1)


class MemoryConfig(Config):
    """The goal memory and the graph over it."""

    capacity: int = Field(1_500, ge=2, le=32_000)
    threshold: float = 0.0
    """Logit below which no node reaches a state, which makes the state a new node."""
    stride: int = Field(2, ge=1)
    """Every stride-th state of a random walk is a candidate."""
    novelty: Literal["reachability", "oracle"] = "reachability"
    """`oracle` is the oracle curriculum: novelty by the environment's own distance."""
    oracle_radius: float = Field(0.8, gt=0)
    """Oracle distance that makes a state novel, in success thresholds; as many nodes come of 0.8 in
    the maze as of the learned novelty."""
    replace: Literal["random", "redundant"] = "random"
    """Which node a full memory gives up: any, or the one that others cover best."""
    prune: bool = False
    """Drop the later of two nodes that have become mutually reachable, at each refresh."""
    min_edge_support: int = Field(1, ge=1)
    """Transitions that must have been seen before an edge counts."""
    min_edge_share: float = Field(0.05, ge=0, lt=1)
    """Share of the transitions out of its less often left node that an edge must have."""
    min_edge_probability: float = Field(1e-3, ge=0, lt=1)
    """Reachability, in the better direction, below which the network contradicts an edge, which
    then does not count until the network changes its mind; 0 never contradicts."""


class GoalsConfig(Config):
    """Which goals the policy pursues while collecting."""

    source: Literal["memory", "replay", "evaluation"] = "memory"
    """`replay`: any state visited before; `evaluation`: the evaluation's own distribution."""
    mode: Literal["uniform", "novelty", "frontier", "success_band", "chained"] = "novelty"
    """How nodes are drawn from the memory."""


class RewardConfig(Config):
    """The reward, computed per batch from the current bundle and never stored."""

    mode: Literal[
        "graph_goal", "graph", "graph_node", "reachability", "oracle_dense", "oracle_sparse"
    ] = "graph_goal"
    scale: float = Field(0.1, gt=0)
    temperature: float = Field(1.0, gt=0)
    """Divides the logit before the sigmoid."""


class RelabelConfig(Config):
    """Shares of the goals that a batch of transitions is trained with."""

    original: float = Field(0.2, ge=0, le=1)
    future: float = Field(0.3, ge=0, le=1)
    node: float = Field(0.5, ge=0, le=1)
    replay: float = Field(0.0, ge=0, le=1)
    future_mean_steps: float = Field(10.0, gt=0)
    """Mean of the geometric distribution over how far ahead a future goal lies."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> RelabelConfig:
        total = self.original + self.future + self.node + self.replay
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"original + future + node + replay is {total:g}; the shares must add up to 1"
            )
        return self


class AgentSettings(Config):
    """What every agent has that learns by gradient steps."""

    lr: float = Field(1e-3, gt=0)
    lr_decay_frac: float = Field(0.4, ge=0, le=1)
    """Last share of training over which the learning rate falls linearly to a tenth."""
    batch: int = Field(256, ge=1)


class SacConfig(AgentSettings):
    """Goal-conditioned SAC with a fixed entropy weight."""

    kind: Literal["sac"] = "sac"
    network: Literal["concat", "heads"] = "concat"
    """Plain concatenation of state and goal, or the paper's separate heads."""
    hidden: int = Field(128, ge=1)
    discount: float = Field(0.98, gt=0, lt=1)
    entropy_weight: float = Field(0.02, ge=0)
    polyak: float = Field(0.005, gt=0, le=1)
    behaviour_weight: float = Field(0.0, ge=0)
    """Weight of the squared distance between the policy's and the data's action, in units of the
    mean size of the values (TD3+BC, arXiv:2106.06860); for data without all actions everywhere."""


class OfflineSacConfig(SacConfig):
    """SAC on a data set: the shaped reward grows with the distance, so the horizon may be near."""

    discount: float = Field(0.9, gt=0, lt=1)
    entropy_weight: float = Field(0.03, ge=0)


class AgentConfig(SacConfig):
    """Goal-conditioned SAC, its replay and how much it learns from it."""

    replay_steps: int = Field(400_000, ge=1)
    updates_per_policy_step: float = Field(0.07, gt=0)


class EvaluationConfig(Config):
    """Evaluation on held-out goals, which training never sees."""

    every_steps: int = Field(100_000, ge=1)
    episodes: int = Field(500, ge=1)
    last: int = Field(3, ge=1)
    """How many of the last evaluations the reported mean covers."""
    stop_success: float | None = Field(None, gt=0, le=1)
    """Stop early once the mean success_final of the last evaluations reaches this."""
    stop_worst: float = Field(0.0, ge=0, le=1)
    """... and no category's mean lies below this."""


class TrainingConfig(Config):
    """How long to train and how often to save."""

    env_steps: int = Field(3_000_000, ge=1)
    """Environment steps in all, random ones included."""
    max_minutes: float | None = Field(None, gt=0)
    """Wall-clock limit of training."""
    checkpoint_every_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints in async mode."""
    checkpoint_every_steps: int = Field(500_000, ge=1)
    """Environment steps between checkpoints in sync mode, where time must not matter."""
    keep_checkpoints: int = Field(2, ge=1)
    figures_every_steps: int = Field(200_000, ge=1)
    """Environment steps between two sets of pictures; the last evaluation gets one besides."""


class StartConfig(Config):
    """What a run begins with, instead of with nothing."""

    run: str | None = None
    """Folder of an offline run (or `latest`) whose policy and data this one continues online."""
    data_steps: int = Field(500_000, ge=1)
    """Steps of its data set that network, memory and replay take over; at most half of the
    replay."""

    _kept = field_validator("run")(lasting)


class CpusConfig(Config):
    """CPUs that each role reserves."""

    learner: float = Field(1.0, ge=0)
    rollout: float = Field(0.5, ge=0)
    reachability: float = Field(0.2, ge=0)
    memory: float = Field(0.2, ge=0)
    evaluator: float = Field(0.1, ge=0)
    replay: float = Field(0.5, ge=0)


class MachineConfig(Config):
    """What each process uses of its machine."""

    torch_threads: int = Field(1, ge=1)
    """Torch threads of each process."""
    device: str = "cpu"
    """Device of the learner: cpu or cuda."""


Role = Literal["learner", "rollout", "reachability", "memory", "evaluator", "replay"]


class RuntimeConfig(MachineConfig):
    """Where the parts run and how tightly they are coupled."""

    mode: Literal["async", "sync"] = "async"
    """`sync` runs the parts in one fixed order: bit-equal for a seed, slower."""
    placement: Literal["actor", "inline"] = "actor"
    """`inline` runs everything in the driver's process."""
    rollout_actors: int = Field(1, ge=1, le=4096)
    replay_shards: int = Field(0, ge=0, le=256)
    """Actors beside the rollouts that keep the replay and draw, relabel and reward what the learner
    takes; 0 leaves that to the learner, and no batch travels. For a learner on a GPU that waits for
    its batches, and for a replay that does not fit into its machine."""
    learner_chunk: int = Field(32, ge=1)
    """Updates per call of the learner."""
    max_restarts: int = Field(20, ge=0)
    """Deaths per role within ten minutes before the run gives up; those of machines that were taken
    away after a notice do not count."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds that an actor may wait for room, such as a machine that the cluster adds for it."""
    cpus: CpusConfig = CpusConfig()
    resources: dict[Role, dict[str, float]] = Field({})
    """What each role reserves besides of the cluster's own resources, by which a cluster tells its
    kinds of machines apart: `{rollout: {rollout: 1}, learner: {learner: 1}}`."""

    def has(self, role: str) -> bool:
        """Whether a run has such a process: `learner`, `rollout` (any of them), `rollout-1`."""
        name, dash, number = role.partition("-")
        count = {"rollout": self.rollout_actors, "replay": self.replay_shards}.get(name)
        if dash:
            return count is not None and number.isdecimal() and int(number) < count
        return name in get_args(Role) and count != 0

    @model_validator(mode="after")
    def _inline_is_sync(self) -> RuntimeConfig:
        if self.placement == "inline" and self.mode == "async":
            raise ValueError(
                "placement: inline has one process and cannot be asynchronous; set mode: sync"
            )
        if self.placement == "inline" and self.rollout_actors > 1:
            raise ValueError(
                "placement: inline steps one batch; raise environment.num_envs instead of "
                "runtime.rollout_actors"
            )
        return self


class ReachingConfig(Config):
    """What every run has that learns to reach goals, online or from a data set."""

    name: str = "goals"
    seed: int = Field(0, ge=0)
    environment: EnvironmentConfig = EnvironmentConfig()
    features: FeaturesConfig = FeaturesConfig()
    reachability: NetworkConfig = NetworkConfig()
    planning: PlanningConfig = PlanningConfig()
    agent: AgentSettings = SacConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: MachineConfig = MachineConfig()


class GoalsRunConfig(ReachingConfig):
    """A run of Walk the Random Walk or of one of its baselines."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"name", "training", "evaluation", "runtime", "chaos"}
    )
    """Sections that may change when a run is resumed."""

    fidelity: Literal["improved", "paper"] = "improved"
    """`paper`: whatever is not set explicitly takes the paper's value instead of ours."""
    start: StartConfig = StartConfig()
    environment: CopiesConfig = CopiesConfig()
    phases: PhasesConfig = PhasesConfig()
    reachability: ReachabilityConfig = ReachabilityConfig()
    memory: MemoryConfig = MemoryConfig()
    goals: GoalsConfig = GoalsConfig()
    reward: RewardConfig = RewardConfig()
    relabel: RelabelConfig = RelabelConfig()
    agent: AgentConfig = AgentConfig()
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    chaos: ChaosConfig = ChaosConfig()

    @model_validator(mode="before")
    @classmethod
    def _take_paper_values(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("fidelity") == "paper":
            return fidelity.with_paper_values(raw)
        return raw

    @model_validator(mode="after")
    def _combinations(self) -> GoalsRunConfig:
        walks = self.phases.random_steps
        if self.reachability.window >= walks:
            raise ValueError(
                f"reachability.window {self.reachability.window} leaves no negatives in a random "
                f"walk of phases.random_steps {walks}; make the walk longer"
            )
        batch = self.environment.num_envs * self.phases.policy_steps
        if self.agent.replay_steps < batch:
            raise ValueError(
                "agent.replay_steps is smaller than one batch of episodes "
                "(environment.num_envs × phases.policy_steps); raise it"
            )
        if (shards := self.runtime.replay_shards) and self.agent.replay_steps < shards * batch:
            raise ValueError(
                f"agent.replay_steps leaves each of the {shards} runtime.replay_shards room for "
                "less than one batch of episodes (environment.num_envs × phases.policy_steps), and "
                "the rest of every batch would be lost; lower replay_shards, or raise replay_steps"
            )
        if self.goals.source == "replay" and self.relabel.node > 0:
            raise ValueError("relabel.node needs goals.source: memory; set relabel.replay instead")
        if self.runtime.placement == "inline" and self.chaos.needs_processes:
            raise ValueError(
                "chaos: there is nobody to kill in a run of one process; set runtime.placement: "
                "actor"
            )
        if nobody := [role for role in self.chaos.roles if not self.runtime.has(role)]:
            raise ValueError(
                f"chaos.roles: this run has no {' or '.join(nobody)} to kill; its roles are "
                f"{', '.join(role for role in get_args(Role) if self.runtime.has(role))}, and "
                "one of several is named with its number, such as rollout-0"
            )
        return self
