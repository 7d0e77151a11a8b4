"""Says in plain words when a run's numbers are clearly wrong, once per kind, and what to change."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from farreach.console import warn
from farreach.rundir import RunDirectory

# Seconds over which a number is judged: every run begins slowly, and each number wavers.
HOLD_S = 90.0
# An evaluation that takes this share of the time between two leaves nothing in between.
EVALUATING_SHARE = 0.8
SHORT_EVALUATION_S = 5.0


class Rule(NamedTuple):
    """When a metric is wrong.

    Attributes:
        kind: one word; a remark of a kind is made once.
        metric: `group/name`.
        is_wrong: of a value, or of the mean over `for_s`.
        text: the remark with its remedy; `{value}` is that value or mean.
        for_s: seconds over which the mean is taken; 0: each value counts.
    """

    kind: str
    metric: str
    is_wrong: Callable[[float], bool]
    text: str
    for_s: float = HOLD_S


# What can go wrong in every workload; those of `vitals.py` are measured for all of them.
COMMON = (
    Rule(
        "disk",
        "machine/disk_free_gb",
        lambda free: free < 1.0,
        "only {value:.2f} GB are free on the run's disk, and a checkpoint needs room beside the "
        "one before: free some, or lower training.keep_checkpoints and resume.",
        0.0,
    ),
    Rule(
        "memory",
        "machine/memory_free_share",
        lambda share: share < 0.06,
        "only {value:.0%} of this machine's memory are left, and Ray ends processes when 5% are: "
        "start fewer actors or workers here, or take smaller batches or a smaller replay.",
        0.0,
    ),
    Rule(
        "spilling",
        "ray/spilled_mb",
        lambda spilled: spilled > 0,
        "Ray has moved {value:.0f} MB out of its object store to the disk, which is slow: give it "
        "a larger one (`ray start --object-store-memory`, in a container also --shm-size), or "
        "keep less in flight with fewer actors.",
        0.0,
    ),
)


class Watch:
    """Looks at every number that is written, and remarks on what is wrong.

    ```
    watch = Watch(run, (*COMMON, Rule("data", "throughput/data_wait_share", …)))
    watch.look(1000, {"throughput/data_wait_share": 0.9})
    ```
    A remark is an event of the run and a line in the terminal.
    """

    def __init__(
        self,
        run: RunDirectory,
        rules: Sequence[Rule] = COMMON,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch over a run; `clock` returns seconds."""
        self._run, self._rules, self._clock = run, rules, clock
        self._said: set[str] = set()
        self._seen: dict[str, deque[tuple[float, float]]] = {}  # (time in s, value) by kind
        self._evaluated_s: float | None = None
        self._long_evaluations = 0

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Take in metrics `group/name` of a step."""
        now = self._clock()
        for rule in self._rules:
            value = values.get(rule.metric)
            mean = None if value is None else self._mean(rule, now, value)
            if mean is not None and rule.is_wrong(mean):
                self.remark(step, rule.text.format(value=mean), rule.kind)
        self._look_for_nan(step, values)
        if "evaluation/seconds" in values:
            self._look_at_evaluation(now, step, values["evaluation/seconds"])

    def remark(self, step: int, text: str, kind: str | None = None) -> None:
        """Say it, the first time; remarks without a kind are told apart by their text."""
        if (kind or text) in self._said:
            return
        self._said.add(kind or text)
        self._run.event("remark", step=step, about=kind, text=text)
        warn(f"note      {text}")

    def _mean(self, rule: Rule, now: float, value: float) -> float | None:
        """Mean of what was seen in the rule's time, None until so much has passed."""
        seen = self._seen.setdefault(rule.kind, deque())
        seen.append((now, value))
        while len(seen) > 2 and seen[1][0] <= now - rule.for_s:
            seen.popleft()
        if now - seen[0][0] < rule.for_s:
            return None
        # The oldest value describes the time before it.
        recent = [value for _, value in seen][1:] or [value]
        return sum(recent) / len(recent)

    def _look_for_nan(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if is_of_learning(name) and not math.isfinite(value):
                self.remark(
                    step,
                    f"{name} is {value}: training has diverged. Lower the learning rate or clip "
                    "gradients, and go on from a checkpoint before this.",
                    "nan",
                )

    def _look_at_evaluation(self, now: float, step: int, seconds: float) -> None:
        before, self._evaluated_s = self._evaluated_s, now
        if before is None:
            return
        gap = now - before
        is_long = seconds >= SHORT_EVALUATION_S and seconds >= EVALUATING_SHARE * gap
        self._long_evaluations = self._long_evaluations + 1 if is_long else 0
        if self._long_evaluations >= 2:
            self.remark(
                step,
                f"an evaluation takes {seconds:.0f} s, and they come every {gap:.0f} s: evaluate "
                "less often (training.evaluate_every_epochs, evaluation.every_steps), or on less.",
                "evaluation",
            )


def is_of_learning(name: str) -> bool:
    """Whether a metric must be a number for training to be sound; evaluations may lack some."""
    group, _, rest = name.partition("/")
    return group == "learner" or (rest.endswith("loss") and not group.startswith("evaluation"))
