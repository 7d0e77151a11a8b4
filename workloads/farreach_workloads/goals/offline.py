"""Goal reaching from a fixed data set, without rewards: go-fresh (arXiv:2301.02099) and others.

The stages before the policy keep their results (`fresh/pipeline.py`); the policy then learns from
the data alone, and the environment is used to evaluate it.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from farreach import runtime
from farreach.actors.guard import Guard
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.cluster.demand import Demand
from farreach.config import flat
from farreach.data.episodes import OBSERVATION
from farreach.errors import CheckpointError
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped, StopRequest
from farreach_workloads.goals import fidelity
from farreach_workloads.goals.agents.build import make_agent
from farreach_workloads.goals.agents.rows import TrainingRows
from farreach_workloads.goals.agents.trunk import TrunkAgent, TrunkRows
from farreach_workloads.goals.config import SacConfig
from farreach_workloads.goals.counters import SUCCESS, mean_metrics
from farreach_workloads.goals.environments.base import GoalEnvironment, Ints
from farreach_workloads.goals.environments.factory import check_environment, make_environment
from farreach_workloads.goals.evaluate import success_table
from farreach_workloads.goals.export_policy import export_policy
from farreach_workloads.goals.fresh.config import FreshRunConfig
from farreach_workloads.goals.fresh.cover import transitions
from farreach_workloads.goals.fresh.dataset import check_data
from farreach_workloads.goals.fresh.hindsight import HindsightSource
from farreach_workloads.goals.fresh.learner import FreshLearner
from farreach_workloads.goals.fresh.pipeline import Foundation, Pipeline
from farreach_workloads.goals.fresh.relabel import PathRows, PathSource, RowSource
from farreach_workloads.goals.fresh.side_evaluation import SideEvaluator
from farreach_workloads.goals.replay import evaluate_checkpoint, plot_checkpoint
from farreach_workloads.goals.report import Reporter
from farreach_workloads.goals.sac import GoalSac

Config = FreshRunConfig

# Where a checkpoint's notes have the metrics of its policy.
EVALUATED = "evaluated"
# Updates between two looks at the clock and at whether to stop.
UPDATES_TOGETHER = 100
VISITED_ROWS = 1_000_000
_ASKED = ("runtime.cpus",)


def check(config: FreshRunConfig) -> list[str]:
    """Make the environment once and look for the data; where the run differs from the paper."""
    check_environment(config.environment)
    env = make_environment(config.environment, 1)
    notes = check_data(config, env)
    if not isinstance(config.agent, SacConfig):
        return [
            *notes,
            f"{config.agent.kind} trains on goals of the data alone; network, memory and graph "
            "serve planned execution and the pictures",
        ]
    paper = config.paper_values()
    if paper is None:
        return [*notes, f"the paper has no settings for environment {config.environment.name!r}"]
    deviations = fidelity.deviations(config, paper)
    if not deviations:
        return [*notes, "every setting is the paper's"]
    return [*notes, "differs from the paper in:", *(f"  {line}" for line in deviations)]


def demand(config: FreshRunConfig) -> list[Demand]:
    """What a run asks Ray for: the evaluator; its stages' tasks, before that, take what is free."""
    if config.runtime.placement == "inline":
        return []
    asked = {"CPU": config.runtime.cpus}
    return [Demand("evaluator", 1, asked), Demand("task", 1, asked, least=0)]


@dataclass
class Counters:
    """What a resumed run must know of the time before.

    Attributes:
        epoch: epochs of the policy that are done.
        evaluated, evaluated_at: the last one whose policy was evaluated, and its updates.
        train_s: seconds that its training took.
        evaluations: metrics of the last evaluations.
        foundation_s: seconds that the stages before took, kept results included.
    """

    epoch: int = 0
    evaluated: int = 0
    evaluated_at: int = -1
    train_s: float = 0.0
    foundation_s: float = 0.0
    evaluations: list[dict[str, float]] = field(default_factory=list)


class Offline:
    """Trains the policy on what the stages have left."""

    def __init__(
        self,
        config: FreshRunConfig,
        run: RunDirectory,
        reporter: Reporter,
        stop: StopRequest,
        env: GoalEnvironment,
        foundation: Foundation,
    ) -> None:
        """A fresh agent; `restore` may follow."""
        self._config, self._run, self._reporter, self._stop = config, run, reporter, stop
        self._foundation = foundation
        agent, source = agent_and_rows(config, env, foundation)
        self.learner = FreshLearner(config, agent, source, foundation.bundle)
        self._guard = Guard(run, config.chaos, reporter.log)
        self._evaluator = SideEvaluator(config, foundation.bundle, self._guard)
        self._waiting: _Evaluation | None = None
        self._unscored: Checkpoint | None = None  # which the run was resumed from
        self._visits = visited(foundation, env)
        self._checkpoints = CheckpointStore(run.checkpoints, config.training.keep_checkpoints)
        self.counters = Counters()
        self._begun = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        content = checkpoint.parts()
        if content["coordinator"]["foundation"] != self._foundation.name:
            raise CheckpointError(
                f"{checkpoint.path}: its policy stands on {content['coordinator']['foundation']}, "
                f"but the stages now give {self._foundation.name}: the data set or the code has "
                "changed. Bring back the old one, or train anew."
            )
        self.learner.restore(content["learner"])
        self.counters = Counters(**content["coordinator"]["counters"])
        if (found := checkpoint.info.get(EVALUATED)) is not None:
            self._count(_Evaluation(self.learner.updates, self.counters.epoch, None), found)
        is_unscored = checkpoint.path in self._checkpoints.held()
        self._checkpoints.release_all()
        if is_unscored:
            self._checkpoints.hold(checkpoint.path)
            self._unscored = checkpoint
        self._reporter.restored(self.learner.updates, self._foundation.bundle)

    def run(self) -> dict[str, float]:
        """Train to the end; the final metrics.

        Raises:
            Stopped: the user asked for it; a last checkpoint is written.
        """
        self._begun = time.monotonic()
        training, counters = self._config.training, self.counters
        self._reporter.scalars(self.learner.updates, self._foundation.metrics)
        # A checkpoint is written before its policy is evaluated.
        if not self._begin_evaluation_if_due() and self._unscored is not None:
            self._checkpoints.release(self._unscored.path)
        self._unscored = None
        while not self._finished():
            self._epoch()
            counters.epoch += 1
            save = counters.epoch % training.checkpoint_every_epochs == 0 or self._finished()
            if not self._begin_evaluation_if_due() and save:
                self._write()
        self._take_evaluation()
        self._reporter.final(self.learner.updates)
        final = mean_metrics(counters.evaluations[-self._config.evaluation.last :])
        return (
            final
            | self._foundation.metrics
            | {
                "training/updates": float(self.learner.updates),
                "training/epochs": float(counters.epoch),
                "training/minutes": counters.train_s / 60,
                "training/foundation_minutes": counters.foundation_s / 60,
            }
        )

    def _epoch(self) -> None:
        """The updates of one epoch, or what is left of one that was interrupted."""
        size = self._config.training.epoch_updates
        end = (self.counters.epoch + 1) * size
        while self.learner.updates < end:
            if self._stop.signum is not None:
                self._take_evaluation()
                self._write()
                raise Stopped(self._stop.signum)
            if self._waiting is not None and self._evaluator.is_done():
                self._take_evaluation()
            self._guard.tend()
            if self._out_of_time():
                return
            count = min(UPDATES_TOGETHER, end - self.learner.updates)
            metrics = self.learner.update(count, self._done_share())
            self._reporter.count("updates", count)
            self._reporter.learner(self.learner.updates, metrics)
            self._reporter.progress(self.learner.updates, self._done_share())

    def _elapsed_s(self) -> float:
        return self.counters.train_s + time.monotonic() - self._begun

    def _out_of_time(self) -> bool:
        limit = self._config.training.max_minutes
        return limit is not None and self._elapsed_s() >= 60 * limit

    def _finished(self) -> bool:
        return self.counters.epoch >= self._config.training.epochs or self._out_of_time()

    def _done_share(self) -> float:
        """Share of training that is done, by updates or by time, whichever is further."""
        training = self._config.training
        share = self.learner.updates / (training.epochs * training.epoch_updates)
        if training.max_minutes is not None:
            share = max(share, self._elapsed_s() / (60 * training.max_minutes))
        return min(1.0, share)

    def _begin_evaluation_if_due(self) -> bool:
        """Write this epoch's policy, and evaluate it beside training; it gets its score then.

        Returns:
            Whether it was due.
        """
        counters, every = self.counters, self._config.training.evaluate_every_epochs
        due = counters.epoch % every == 0 or self._finished()
        if not due or counters.evaluated >= counters.epoch:
            return False
        self._take_evaluation()
        checkpoint = self._unscored or self._write(held=True)
        self._waiting = _Evaluation(self.learner.updates, counters.epoch, checkpoint)
        self._evaluator.begin(self.learner.policy())
        if self._config.runtime.placement == "inline":
            self._take_evaluation()
        return True

    def _count(self, evaluation: _Evaluation, metrics: dict[str, float]) -> None:
        counters = self.counters
        counters.evaluated, counters.evaluated_at = evaluation.epoch, evaluation.updates
        counters.evaluations.append(metrics)
        del counters.evaluations[: -self._config.evaluation.last]

    def _take_evaluation(self) -> None:
        """Wait for the evaluation that is under way, if there is one, and report it."""
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        metrics, outcome = self._evaluator.result()
        self._count(waiting, metrics)
        self._reporter.scalars(waiting.updates, metrics)
        self._reporter.evaluated(waiting.updates, metrics)
        due = waiting.epoch % self._config.training.figures_every_epochs == 0
        if due or self._finished():
            bundle = self._foundation.bundle
            self._reporter.figures(waiting.updates, bundle, outcome, self._visits)
        if waiting.checkpoint is not None:
            score, found = metrics.get(SUCCESS), {EVALUATED: metrics}
            self._checkpoints.add_score(waiting.checkpoint, score, found)
            self._checkpoints.tidy()

    def _write(self, *, held: bool = False) -> Checkpoint:
        """A checkpoint of now; one that is held is kept until it has its score."""
        now, counters, updates = time.monotonic(), self.counters, self.learner.updates
        counters.train_s += now - self._begun
        self._begun = now
        content = {
            "learner": self.learner.state(),
            "coordinator": {
                "counters": asdict(counters),
                "foundation": self._foundation.name,
                "visits": self._visits,
            },
        }
        info = {"updates": updates, "epoch": counters.epoch}
        is_scored = counters.evaluated_at == updates  # not a policy some updates further
        score = counters.evaluations[-1].get(SUCCESS) if is_scored else None
        path = self._checkpoints.save(content, step=updates, info=info, score=score, held=held)
        self._reporter.flush()
        self._run.event("checkpoint", path=path.name, **info)
        return self._checkpoints.chosen(path.name)

    def stop(self) -> None:
        """End the evaluator."""
        self._evaluator.stop()
        self._guard.close()


@dataclass
class _Evaluation:
    """One that is under way.

    Attributes:
        updates, epoch: of the policy.
        checkpoint: with that policy, which is to have its score, if there is one.
    """

    updates: int
    epoch: int
    checkpoint: Checkpoint | None


def agent_and_rows(
    config: FreshRunConfig, env: GoalEnvironment, foundation: Foundation
) -> tuple[GoalSac | TrunkAgent, RowSource]:
    """A fresh agent, and what it trains on."""
    store, bundle = foundation.store, foundation.bundle
    features = bundle.features(config, env.spec)
    agent = make_agent(
        config.agent, features, env.spec.action_dim, config.seed, config.runtime.device
    )
    if isinstance(agent, TrunkAgent):
        return agent, TrunkRows(agent, TrainingRows(store, features))
    if config.method == "hindsight":
        return agent, HindsightSource(store, features, config.hindsight, agent)
    rows = PathRows(
        store,
        transitions(store),
        foundation.outward,
        foundation.inward,
        foundation.graph,
        config.relabel,
    )
    return agent, PathSource(rows, store, bundle, features, config.reward, env)


def visited(foundation: Foundation, env: GoalEnvironment) -> Ints:
    """States of the data per coverage cell, from a sample of them; empty without such cells."""
    rows = np.linspace(0, foundation.store.rows - 1, min(VISITED_ROWS, foundation.store.rows))
    cell, count = env.cells(foundation.store[OBSERVATION][rows.astype(np.int64)])
    return np.bincount(cell[cell >= 0], minlength=count) if count else np.zeros(0, np.int64)


def run(
    config: FreshRunConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Run all stages, the policy from a checkpoint if there is one; see `Workload`."""
    env = make_environment(config.environment, 1)
    step = None if checkpoint is None else int(checkpoint.info["updates"])
    total = config.training.epochs * config.training.epoch_updates
    tasks = config.runtime.placement == "tasks"
    reporter = Reporter(config, run, env, total, "updates", purge_step=step)
    begun = time.monotonic()
    try:
        with runtime.connection(demand(config), settings=_ASKED) if tasks else nullcontext():
            foundation = Pipeline(config, env, reporter.log).run(
                lambda epoch, metrics: reporter.log(_epoch_line(config, epoch, metrics))
            )
            with StopRequest() as stop:
                offline = Offline(config, run, reporter, stop, env, foundation)
                try:
                    if checkpoint is not None:
                        offline.restore(checkpoint)
                    offline.counters.foundation_s += time.monotonic() - begun
                    metrics = offline.run()
                finally:
                    offline.stop()
        reporter.hparams(flat(config.model_dump()), metrics)
        for line in success_table(metrics, env.spec.categories):
            reporter.log(line)
        reporter.log(f"pictures     {run.figures}")
        reporter.log(f"tensorboard  {run.tensorboard}")
        reporter.log(f"checkpoints  {run.checkpoints}")
        return metrics
    finally:
        reporter.close()


def _epoch_line(config: FreshRunConfig, epoch: int, metrics: dict[str, float]) -> str:
    accuracy = metrics["reachability/validation_accuracy"]
    loss = metrics["reachability/validation_loss"]
    return (
        f"{'':<13} epoch {epoch}/{config.reachability.epochs}: held-out accuracy {accuracy:.3f}, "
        f"loss {loss:.3f}"
    )


def evaluate(
    config: FreshRunConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Metrics of a checkpoint on the held-out goals."""
    return evaluate_checkpoint(config, checkpoint, episodes)[0]


def plot(config: FreshRunConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Draw every picture of a checkpoint again."""
    return plot_checkpoint(config, run, checkpoint)


export = export_policy
