"""What a run shows: terminal progress, TensorBoard, metrics file and pictures, from one process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from farreach.metrics import Levels, MetricsWriter, Rates
from farreach.progress import Progress
from farreach.watch import COMMON, Rule, Watch
from farreach_workloads.goals import pictures
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.environments.base import GoalEnvironment, Ints
from farreach_workloads.goals.evaluate import Outcome

if TYPE_CHECKING:
    from farreach.rundir import RunDirectory
    from farreach_workloads.goals.config import ReachingConfig

FLUSH_EVERY_S = 2.0
# Rollouts up to this number have a curve each for how busy they are; all have that of their mean.
ROLLOUTS_SHOWN = 16

RULES = (
    Rule(
        "learner",
        "throughput/learner_waiting_share",
        lambda share: share > 0.7,
        "the learner has nothing to do {value:.0%} of the time, because rollouts collect too "
        "slowly: raise runtime.rollout_actors while there are CPUs, or environment.num_envs.",
    ),
    Rule(
        "rollouts",
        "throughput/rollouts_held_share",
        lambda share: share > 0.7,
        "{value:.0%} of the rollouts wait for the learner, which owes their steps updates: fewer "
        "runtime.rollout_actors are as fast, and a GPU (runtime.device) or a smaller agent.batch "
        "makes it faster.",
    ),
    Rule(
        "weights",
        "weights/age_versions",
        lambda versions: versions > 100,
        "rollouts act with weights that are {value:.0f} versions old: give them shorter fragments "
        "(phases.policy_steps, environment.num_envs), or start fewer runtime.rollout_actors.",
    ),
)


class Reporter:
    """Collects what the loops measure and writes it at a bearable rate."""

    def __init__(
        self,
        config: ReachingConfig,
        run: RunDirectory,
        env: GoalEnvironment,
        total: int,
        unit: str = "env steps",
        purge_step: int | None = None,
    ) -> None:
        """Open the files.

        Args:
            config: of the run.
            run: where the files go.
            env: draws walls and names categories.
            total: how many units of progress the run is long.
            unit: what they are.
            purge_step: as in `MetricsWriter`.
        """
        self._config, self._run, self._env, self._unit = config, run, env, unit
        self._metrics = MetricsWriter(run, purge_step, Watch(run, (*COMMON, *RULES)))
        self._progress = Progress(config.name, total, unit)
        self._rates, self._levels = Rates(), Levels()
        self._newest: dict[str, float] = {}
        self._busy_shares: dict[str, float] = {}
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._fields: dict[str, str | float] = {}
        self._flushed = time.monotonic()
        self._busy_s, self._busy_since = 0.0, time.monotonic()
        # Drawing takes seconds; the loop must not wait for it.
        self._drawing = ThreadPoolExecutor(1)
        self._drawn: list[tuple[int, Future[dict[str, Path]]]] = []

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics that come rarely, at once."""
        self._metrics.scalars(step, metrics)

    def count(self, name: str, amount: int) -> None:
        """Count towards a rate per second."""
        self._rates.add(name, amount)

    def levels(self, values: Mapping[str, float]) -> None:
        """Quantities that hold from now on; their means over time are written."""
        for name, value in values.items():
            self._levels.set(name, value)

    def reached(self, values: Mapping[str, float]) -> None:
        """Quantities whose newest value is written."""
        self._newest |= values

    def busy(self, role: str, share: float) -> None:
        """Share of the last time that a part has worked."""
        self._busy_shares[role] = share

    def rollout(self, step: int, metrics: Mapping[str, float]) -> None:
        """Average metrics that come with every fragment."""
        for name, value in metrics.items():
            self._sums[name].append(value)
        self._flush_means(step)

    def learner(self, step: int, metrics: Mapping[str, float]) -> None:
        """Average metrics of the learner, and see how busy it is."""
        self._busy_s += metrics["learner/busy_s"]
        self.rollout(step, {k: v for k, v in metrics.items() if k != "learner/busy_s"})

    def _flush_means(self, step: int) -> None:
        now = time.monotonic()
        if now - self._flushed < FLUSH_EVERY_S:
            return
        rates = self._rates.rates()
        values = {name: float(np.mean(v)) for name, v in self._sums.items()}
        values |= {f"throughput/{name}_per_s": rate for name, rate in rates.items()}
        values["throughput/learner_busy_share"] = self._busy_s / (now - self._busy_since)
        values |= self._levels.means() | self._newest | busy_metrics(self._busy_shares)
        for name, rate in rates.items():
            self._fields[f"{name.replace('_', ' ')}/s"] = f"{rate:,.0f}"
        self._metrics.scalars(step, values)
        self._sums.clear()
        self._flushed = self._busy_since = now
        self._busy_s = 0.0

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest evaluation."""
        self._fields["success"] = f"{metrics['evaluation/success_final']:.2f}"
        self._fields["planned"] = f"{metrics['evaluation_planned/success_final']:.2f}"

    def progress(self, step: int, fraction: float) -> None:
        """Show how far the run is."""
        kind = "env_steps" if self._unit == "env steps" else "updates"
        self.reached({"training/share": fraction, f"training/{kind}": float(step)})
        self._progress.update(step, self._fields, fraction)
        self._log_pictures(wait=False)

    def _log_pictures(self, *, wait: bool) -> None:
        """Put finished pictures into TensorBoard; raises what drawing raised."""
        while self._drawn and (wait or self._drawn[0][1].done()):
            step, files = self._drawn.pop(0)
            for name, path in files.result().items():
                self._metrics.figure(step, f"pictures/{name}", path)

    def figures(self, step: int, bundle: Bundle, outcome: Outcome, visits: Ints) -> None:
        """Draw the pictures into files and TensorBoard, and the nodes into its projector."""
        suffix = f"{step:09d}"
        scene = (self._config, self._env, bundle, outcome, visits.copy(), self._run.figures, suffix)
        self._drawn.append((step, self._drawing.submit(pictures.draw_all, *scene)))
        self._metrics.histogram(step, "memory/passes", np.log1p(bundle.passes))
        self._metrics.histogram(step, "graph/hops", bundle.hops.astype(np.float32).ravel())
        labels = self._env.categories(bundle.nodes)
        names = [self._env.spec.categories[i] if i >= 0 else "none" for i in labels]
        self._metrics.embedding(step, "memory/nodes", bundle.embeddings, names)

    def restored(self, step: int, bundle: Bundle) -> None:
        """Say where a resumed run continues."""
        self.log(f"continuing at {step:,} {self._unit} with {len(bundle)} memory nodes")

    def final(self, step: int) -> None:
        """Wait for the pictures and animate the visits."""
        self._log_pictures(wait=True)
        if film := pictures.animate(self._run.figures, "visits"):
            self._metrics.animation(step, "pictures/visits_over_time", film)

    def hparams(self, config: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Write TensorBoard's table of settings and results."""
        self._metrics.hparams(config, metrics)

    def log(self, message: str) -> None:
        """A line that stays in the terminal."""
        self._progress.log(message)

    def flush(self) -> None:
        """Put everything on the disk."""
        self._metrics.flush()

    def close(self) -> None:
        """Close the files and the progress bar."""
        self._drawing.shutdown(wait=True)
        self._progress.close()
        self._metrics.close()


def busy_metrics(shares: Mapping[str, float]) -> dict[str, float]:
    """How busy each part is, by role, and the mean of the rollouts."""
    rollouts = [share for role, share in shares.items() if role.startswith("rollout-")]
    shown = {
        f"busy/{role}": share
        for role, share in shares.items()
        if len(rollouts) <= ROLLOUTS_SHOWN or not role.startswith("rollout-")
    }
    return shown | ({"busy/rollouts": float(np.mean(rollouts))} if rollouts else {})
