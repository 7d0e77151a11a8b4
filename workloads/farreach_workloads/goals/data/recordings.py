"""What is wrong with recorded episodes, and copying those that are right into a data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.config import from_words
from farreach.data.episodes import (
    ACTION,
    OBSERVATION,
    Episode,
    EpisodeStore,
    ShardRecord,
    write_index,
    write_shard,
)
from farreach.errors import DataError
from farreach_workloads.goals.config import EnvironmentConfig
from farreach_workloads.goals.data.layouts import Recording, open_recording
from farreach_workloads.goals.environments.base import GoalEnvironmentSpec
from farreach_workloads.goals.environments.factory import make_environment

Array = NDArray[Any]

# Faults of one kind that are spelled out; the rest are counted.
SHOWN = 5
SHARD_ROWS = 1_000_000
# The check of the alignment looks at so many transitions, and believes a lag that explains so much
# more of the change of the observations than the right one does.
ALIGNMENT_ROWS = 50_000
ALIGNMENT_MARGIN = 0.02
# Of n changes, k inputs that have nothing to do with them explain k / n on average, and more than
# this many times k / n in none of some fifty dims.
ALIGNMENT_CHANCE = 12.0


@dataclass
class Report:
    """What a look at every episode found.

    Attributes:
        layout: of the recording.
        episodes, rows: how many.
        faults: what makes it unusable, each with file, episode, what and how to mend.
        warnings: what is likely not meant.
    """

    layout: str
    episodes: int = 0
    rows: int = 0
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_recording(path: Path, environment: EnvironmentConfig | str | None = None) -> Report:
    """Look at every episode of a file or folder in any layout.

    Args:
        path: the file or folder.
        environment: the one it was recorded in, if it is known; text as in `environment_named`.

    Raises:
        DataError: it cannot be read as recorded episodes at all.
        ConfigError: no such environment.
    """
    spec = _spec(_known(environment))
    recording = _opened(path, spec)
    examiner = _Examiner(spec)
    report = Report(recording.layout)
    if recording.layout == "shards":
        report.faults += EpisodeStore.open(path).damaged()
    try:
        for episode in recording.episodes:
            report.episodes += 1
            report.rows += len(episode)
            examiner.look_at(episode)
    except DataError as error:  # a file in the middle that cannot be read
        report.faults.append(f"{error} What comes after it was not looked at.")
    if not report.episodes and not report.faults:
        report.faults.append(f"{path}: holds no episode. Record some.")
    report.faults += examiner.faults()
    report.warnings += examiner.warnings()
    return report


def import_recording(
    path: Path, out: Path, environment: EnvironmentConfig | str | None = None
) -> list[str]:
    """Copy the episodes of a file or folder in any layout into a data set of ours.

    Args:
        path: the file or folder.
        out: the folder to make; it must not hold a data set.
        environment: see `check_recording`.

    Returns:
        Warnings.

    Raises:
        DataError: the first fault, with file and episode; nothing is left behind but whole shards.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty. Name another folder.")
    known = _known(environment)
    spec = _spec(known)
    recording = _opened(path, spec)
    examiner = _Examiner(spec)
    source = {
        "layout": recording.layout,
        "path": str(path.resolve()),
        "environment": None if known is None else known.model_dump(mode="json"),
    }
    out.mkdir(parents=True, exist_ok=True)
    shards: list[ShardRecord] = []
    first = 0
    for group in _groups(recording.episodes, SHARD_ROWS):
        for episode in group:
            examiner.look_at(episode)
        if faults := examiner.faults():
            raise DataError(faults[0])
        columns = {
            name: np.concatenate([episode.columns[name] for episode in group])
            for name in examiner.columns
        }
        lengths = [len(episode) for episode in group]
        file = out / f"shard-{len(shards):05}.arrow"
        shards.append(write_shard(file, columns, lengths, first, source))
        first += len(group)
    if not shards:
        raise DataError(f"{path}: holds no episode. Record some.")
    write_index(out, path.stem, shards)
    return examiner.warnings()


def environment_named(text: str) -> EnvironmentConfig:
    """The environment that `NAME` or `NAME:OPTION=VALUE,…` says, as on the command line.

    Such as `maze` or `gymnasium:id=PointMaze_UMaze-v3`; values are YAML.

    Raises:
        ConfigError: it does not read so.
    """
    name, _, options = text.partition(":")
    words = [f"options.{word}" for word in re.split(r",(?=\w+=)", options) if word]
    return from_words([f"name={name}", *words], EnvironmentConfig)


def _known(environment: EnvironmentConfig | str | None) -> EnvironmentConfig | None:
    return environment_named(environment) if isinstance(environment, str) else environment


def _spec(environment: EnvironmentConfig | None) -> GoalEnvironmentSpec | None:
    if environment is None:
        return None
    env = make_environment(environment, 1)
    env.close()
    return env.spec


def _opened(path: Path, spec: GoalEnvironmentSpec | None) -> Recording:
    return open_recording(path, None if spec is None else spec.observation_dim)


def _groups(episodes: Iterator[Episode], rows: int) -> Iterator[list[Episode]]:
    """Consecutive episodes of about so many rows together."""
    group: list[Episode] = []
    count = 0
    for episode in episodes:
        group.append(episode)
        count += len(episode)
        if count >= rows:
            yield group
            group, count = [], 0
    if group:
        yield group


class _Examiner:
    """Collects what is wrong with the episodes it is shown.

    Attributes:
        columns: names of those that all episodes have: the first one's.
    """

    def __init__(self, spec: GoalEnvironmentSpec | None) -> None:
        self.columns: list[str] = []
        # Dims that each column must have, and who has so many.
        self._expected: dict[str, tuple[int, str]] = {}
        self._faults: dict[str, list[str]] = {}
        self._outside: list[str] = []
        self._besides: list[str] = []
        self._kept: list[Episode] = []
        self._kept_rows = 0
        if spec is not None:
            whose = f"environment {spec.name}"
            self._expected[OBSERVATION] = (spec.observation_dim, whose)
            self._expected[ACTION] = (spec.action_dim, whose)

    def look_at(self, episode: Episode) -> None:
        """Examine one episode."""
        columns = episode.columns
        rows = len(episode)
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in lengths.items())
            self._fault(
                episode,
                "unequal columns",
                f"its columns have different lengths: {said}. All need T + 1 rows for T "
                "transitions, with a dummy as the first action.",
            )
            return
        if rows < 2:
            self._fault(episode, "no transition", f"has {rows} rows and so no transition.")
            return
        dims = {name: values.shape[1] for name, values in columns.items()}
        if not self.columns:
            self.columns = list(dims)
            for name, dim in dims.items():
                self._expected.setdefault(name, (dim, episode.where))
        for name, (dim, whose) in self._expected.items():
            if dims.get(name) != dim:
                self._fault(
                    episode,
                    "other dims",
                    f"its {name} has {dims.get(name, 'no')} dims, where {whose} has {dim}.",
                )
                return
        if besides := dims.keys() - self._expected:
            self._besides.append(f"{episode.where}: its {', '.join(sorted(besides))}")
        for name, values in columns.items():
            bad = ~np.isfinite(values)
            if bad.any():
                row, dim = np.argwhere(bad)[0]
                self._fault(
                    episode,
                    "not finite",
                    f"{name} holds {values[row, dim]} at step {row}, dim {dim}.",
                )
                return
        if np.abs(columns[ACTION]).max() > 1 + 1e-6:
            self._outside.append(episode.where)
        if self._kept_rows < ALIGNMENT_ROWS:
            self._kept.append(episode)
            self._kept_rows += rows

    def _fault(self, episode: Episode, kind: str, what: str) -> None:
        self._faults.setdefault(kind, []).append(f"{episode.where}: {what}")

    def faults(self) -> list[str]:
        """What makes the recording unusable."""
        return [line for found in self._faults.values() for line in _first_few(found)]

    def warnings(self) -> list[str]:
        """What is likely not meant."""
        found = []
        if self._besides:
            found.append(
                f"{self._besides[0]} is left out, since the first episode has none; so it is in "
                f"{len(self._besides)} episodes."
            )
        if self._outside:
            found.append(
                f"{self._outside[0]}: actions lie outside of [-1, 1], as in {len(self._outside)} "
                "episodes. Policies act in [-1, 1]: scale the actions by the action space's bounds."
            )
        if self._kept and (lag := misalignment(self._kept)):
            found.append(
                f"{self._kept[0].where} and others: what happens at a step is explained best by "
                f"the action {abs(lag)} step {'later' if lag > 0 else 'earlier'}. The action of "
                "row t must be the one that led to observation t, and that of row 0 a dummy."
            )
        return found


def _first_few(lines: list[str]) -> list[str]:
    rest = len(lines) - SHOWN
    return lines[:SHOWN] + ([f"... and {rest} more like these."] if rest > 0 else [])


def misalignment(episodes: list[Episode]) -> int:
    """By how many rows actions and observations are shifted against each other, -1, 0 or 1.

    The change of the observations is regressed on the actions of the row before, of the same and of
    the next row, one at a time; where another than the same explains more, by `ALIGNMENT_MARGIN` of
    the variance of some dim, the rows are shifted. Changes of more than four deviations (a wrapped
    angle) are left out.
    """
    changes, actions = [], {lag: [] for lag in (-1, 0, 1)}  # type: ignore[var-annotated]
    for episode in episodes:
        observation, action = (episode.columns[name] for name in (OBSERVATION, ACTION))
        if len(episode) < 4:
            continue
        rows = np.arange(2, len(episode) - 1)
        changes.append(observation[rows].astype(np.float64) - observation[rows - 1])
        for lag, found in actions.items():
            found.append(action[rows + lag].astype(np.float64))
    if not changes:
        return 0
    change = np.concatenate(changes)
    explained = {lag: _explained(np.concatenate(found), change) for lag, found in actions.items()}
    best = max((-1, 1), key=lambda lag: explained[lag].max())
    inputs = 1 + actions[0][0].shape[1]
    margin = ALIGNMENT_MARGIN + ALIGNMENT_CHANCE * inputs / len(change)
    return best if explained[best].max() > explained[0].max() + margin else 0


def _explained(actions: Array, change: Array) -> Array:
    """Share of the variance of each dim that a linear function of the actions explains, (d,)."""
    shares = np.zeros(change.shape[1])
    for dim, values in enumerate(change.T):
        centred = values - values.mean()
        kept = np.abs(centred) <= 4 * values.std()
        if kept.sum() <= actions.shape[1] + 1 or values[kept].std() < 1e-9:
            continue
        inputs = np.column_stack([actions[kept], np.ones(kept.sum())])
        rest = values[kept] - inputs @ np.linalg.lstsq(inputs, values[kept], rcond=None)[0]
        shares[dim] = 1 - rest.var() / values[kept].var()
    return shares
