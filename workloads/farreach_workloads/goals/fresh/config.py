"""Settings of offline goal reaching: every default is stated here, once.

The defaults are what works best on the maze's random data; `fidelity: paper` takes the values of
arXiv:2301.02099 and its released code (`fresh/paper.py`) wherever a config says nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.data.fetched import absolute, local
from farreach_workloads.goals.agents.build import OfflineAgent, agent_kind
from farreach_workloads.goals.config import (
    EnvironmentConfig,
    EvaluationConfig,
    FeaturesConfig,
    MachineConfig,
    NetworkConfig,
    OfflineSacConfig,
    ReachingConfig,
    SacConfig,
)
from farreach_workloads.goals.fidelity import with_paper_values
from farreach_workloads.goals.fresh import paper


class DataConfig(Config):
    """The data set."""

    path: str = "data/maze_random"
    """Its folder, or recorded episodes in another layout, which are then copied once."""
    config: str | None = None
    """The configuration that it is recorded from if the folder holds none."""
    cache: str = "runs/cache"
    """Where the results of stages are kept, for all runs."""

    # Parts of a run, and later commands, may have another working directory.
    _from_anywhere = field_validator("path")(absolute)
    _on_this_machine = field_validator("cache")(local)


class OfflineFeaturesConfig(FeaturesConfig):
    """Inputs of the networks; nobody corrects offline what a smooth value gets wrong at a wall."""

    frequencies: int = Field(4, ge=0, le=8)
    """Add sines and cosines of 1, 2, 4, … times the policy's inputs, so many each."""


class FitConfig(NetworkConfig):
    """The reachability network and its training."""

    epochs: int = Field(4, ge=1)
    epoch_pairs: int = Field(500_000, ge=1)
    """Fresh pairs per epoch."""
    validation_pairs: int = Field(100_000, ge=1)
    """Pairs of the held-out episodes, the last twentieth, after each epoch."""


class CoverConfig(Config):
    """The memory: a cover of the data."""

    capacity: int = Field(1_500, ge=2, le=32_000)
    threshold: float = 0.0
    """Logit below which nothing is reached, either way."""
    keep_frac: float = Field(0.002, gt=0, le=1)
    """Share of the observations that are candidates."""


class GraphConfig(Config):
    """The directed graph over the memory."""

    edge_frac: float = Field(0.1, gt=0, le=1)
    """Share of the transitions that draw edges."""
    min_edge_support: int = Field(1, ge=1)
    """Transitions that must have been seen before an edge counts."""
    min_edge_probability: float = Field(1e-3, ge=0, lt=1)
    """Reachability below which the network contradicts an edge, which is then removed."""


class ShapedRewardConfig(Config):
    """What a row's next state s' is worth on the way to its goal; nothing is terminal."""

    distance: Literal["hops", "lengths", "reachability", "oracle", "oracle_sparse"] = "lengths"
    """`hops`: scale × (-hops + weight × (σ(R(s' → g) / temperature) - 1)), arXiv:2301.02099.
    `lengths`: -scale × the length of the way along the graph, see `fresh/lengths.py`.
    `reachability`: scale × R(s' → g), the paper's ablation without a graph.
    `oracle`: -scale × the true length of the way, an upper bound.
    `oracle_sparse`: 0 where the goal is truly reached, else -scale."""
    scale: float = Field(0.1, gt=0)
    weight: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)


class RowsConfig(Config):
    """Which rows a batch consists of."""

    path: float = Field(0.4, ge=0, le=1)
    """Share of the paper's rows: goals drawn from all observations, sub-goals on the shortest path
    and transitions along it, in the shares 1 : nodes of the path : edges with a transition."""
    future: float = Field(0.3, ge=0, le=1)
    """Share of goals that the same episode reaches later."""
    node: float = Field(0.3, ge=0, le=1)
    """Share of goals that are uniform memory nodes."""
    subgoal_rows: bool = True
    """Whether path rows include sub-goals."""
    edge_rows: bool = True
    """Whether path rows include transitions along the path."""
    future_mean_steps: float = Field(10.0, gt=0)
    """Mean of the geometric distribution over how far ahead a future goal lies."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> RowsConfig:
        total = self.path + self.future + self.node
        if abs(total - 1) > 1e-6:
            raise ValueError(f"path + future + node is {total:g}; the shares must add up to 1")
        return self


class HindsightConfig(Config):
    """The rows of the baselines: reward 1 where the goal is reached, which ends the pursuit."""

    negative_actions: Literal["none", "uniform", "policy"] = "none"
    """Whether each row is followed by one with another action, reward 0: uniform (HER + uniform
    negatives) or the policy's own (Actionable Models)."""
    random_goals: Literal["zero", "value"] = "zero"
    """Reward of a transition with a goal from elsewhere: 0, or its value (Actionable Models)."""
    rescale_values: bool = False
    """Multiply values by `scale` once more, as the released code does."""
    piece_steps: int | None = Field(None, ge=1)
    """Cut episodes into pieces of so many transitions; None leaves them whole."""
    scale: float = Field(1.0, gt=0)


class EpochsConfig(Config):
    """How long the policy trains, and how often it is evaluated and saved."""

    epochs: int = Field(300, ge=1)
    epoch_updates: int = Field(1_000, ge=1)
    max_minutes: float | None = Field(None, gt=0)
    """Wall-clock limit of the policy's training."""
    evaluate_every_epochs: int = Field(10, ge=1)
    checkpoint_every_epochs: int = Field(10, ge=1)
    figures_every_epochs: int = Field(50, ge=1)
    keep_checkpoints: int = Field(2, ge=1)


class PlacementConfig(MachineConfig):
    """Where stages that split into parts are worked on."""

    placement: Literal["tasks", "inline"] = "tasks"
    """Ray tasks, or this process alone."""
    cpus: float = Field(1.0, gt=0)
    """CPUs that each task reserves."""


class FreshRunConfig(ReachingConfig):
    """A run of go-fresh, or of another agent on its stages."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"name", "training", "evaluation", "runtime", "chaos"}
    )
    """Sections that may change when a run is resumed."""

    fidelity: Literal["improved", "paper"] = "improved"
    """`paper`: whatever is not set explicitly takes the paper's value instead of ours."""
    method: Literal["fresh", "hindsight"] = "fresh"
    """What SAC trains on: go-fresh's rows, or those of one of its baselines. Other agents draw
    their own; for them and the baselines the stages serve planning and evaluation alone."""
    data: DataConfig = DataConfig()
    features: OfflineFeaturesConfig = OfflineFeaturesConfig()
    reachability: FitConfig = FitConfig()
    memory: CoverConfig = CoverConfig()
    graph: GraphConfig = GraphConfig()
    reward: ShapedRewardConfig = ShapedRewardConfig()
    relabel: RowsConfig = RowsConfig()
    hindsight: HindsightConfig = HindsightConfig()
    agent: OfflineAgent = OfflineSacConfig()
    training: EpochsConfig = EpochsConfig()
    runtime: PlacementConfig = PlacementConfig()
    chaos: ChaosConfig = ChaosConfig()

    @model_validator(mode="after")
    def _lengths_need_a_metric(self) -> FreshRunConfig:
        if self.reward.distance == "lengths" and self.reachability.comparator != "metric":
            raise ValueError(
                "reward.distance: lengths needs reachability.comparator: metric, whose logits are "
                "distances; set hops with another"
            )
        return self

    @model_validator(mode="after")
    def _chaos_finds_somebody(self) -> FreshRunConfig:
        if self.runtime.placement == "inline" and self.chaos.needs_processes:
            raise ValueError(
                "chaos: there is nobody to kill in a run of one process; set runtime.placement: "
                "tasks"
            )
        if others := set(self.chaos.roles) - {"evaluator"}:
            raise ValueError(
                f"chaos.roles: a run has no {' or '.join(sorted(others))} beside its driver, only "
                "an evaluator; name that, or leave roles out"
            )
        return self

    @model_validator(mode="after")
    def _method_is_of_sac(self) -> FreshRunConfig:
        if self.method != "fresh" and not isinstance(self.agent, SacConfig):
            raise ValueError(f"method: {self.method} trains SAC; remove it or agent.kind")
        if self.fidelity == "paper" and not isinstance(self.agent, SacConfig):
            raise ValueError(
                f"fidelity: paper is go-fresh's and trains SAC, not {agent_kind(self.agent)}"
            )
        return self

    @model_validator(mode="after")
    def _hindsight_is_its_method(self) -> FreshRunConfig:
        if self.method == "fresh" and self.hindsight != HindsightConfig():
            raise ValueError(
                "hindsight: it has no part in method: fresh; set method: hindsight or remove it"
            )
        return self

    @model_validator(mode="after")
    def _epochs_are_the_clock(self) -> FreshRunConfig:
        for name in ("every_steps", "stop_success", "stop_worst"):
            if getattr(self.evaluation, name) != getattr(EvaluationConfig(), name):
                raise ValueError(
                    f"evaluation.{name} is of runs that learn online; an offline run is evaluated "
                    "by training.evaluate_every_epochs and ends by training.epochs or "
                    "training.max_minutes"
                )
        return self

    @model_validator(mode="after")
    def _paper_has_the_environment(self) -> FreshRunConfig:
        if self.fidelity == "paper" and self.paper_values() is None:
            raise ValueError(
                f"fidelity: paper has no values for environment {self.environment.name!r}, only "
                f"for {', '.join(paper.ENVIRONMENTS)}; remove it or name one of them"
            )
        return self

    def paper_values(self) -> dict[str, dict[str, Any]] | None:
        """What the paper sets for this environment and method; see `fresh/paper.py`."""
        return paper.paper_values(self.environment.name, self.method)

    @model_validator(mode="before")
    @classmethod
    def _take_paper_values(cls, raw: Any) -> Any:
        is_paper = isinstance(raw, dict) and raw.get("fidelity") == "paper"
        if is_paper and agent_kind(raw.get("agent", {})) == "sac":
            values = paper.paper_values(_name_of(raw.get("environment", {})), raw.get("method"))
            return raw if values is None else with_paper_values(raw, values)
        return raw


def _name_of(environment: Any) -> Any:
    """The name in the raw settings of an environment; one that is not named is the default."""
    if isinstance(environment, dict):
        return environment.get("name", EnvironmentConfig().name)
    return getattr(environment, "name", None)
