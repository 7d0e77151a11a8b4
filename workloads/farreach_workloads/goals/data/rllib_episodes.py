"""Episodes that RLlib recorded (`config.offline_data(output=…)`), as arrays.

By default RLlib's new API stack writes Parquet files with one column `item`; each row is a
`SingleAgentEpisode` state, packed by msgpack with the array encoding of msgpack-numpy. That
encoding pickles arrays of Python objects (the `infos`): they are skipped, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow
from pyarrow import parquet

from farreach.data.episodes import ACTION, OBSERVATION, Episode
from farreach.errors import DataError
from farreach_workloads.goals.environments.base import Floats

COLUMN = "item"


@dataclass(frozen=True)
class _Piece:
    """What one row holds of an episode: observations (t + 1, d), actions (t, a)."""

    where: str
    episode: str
    start: int
    observations: Floats
    actions: Floats


def read_rllib_episodes(path: Path, observation_dim: int | None = None) -> dict[str, Floats]:
    """All recorded episodes of a file, or of all Parquet files below a folder.

    Pieces of an episode, as RLlib writes them unless it samples complete episodes, are joined.
    What is there several times counts once: unless `output_max_rows_per_file` is set, RLlib writes
    everything again with every sample. Of Dict observations the entry `observation` is taken,
    behind the entry `achieved_goal` if only both together have `observation_dim` dims: so has
    `GymnasiumGoals` its rows, while our own environments have the goal in the observation.

    Args:
        path: a file, or the folder given to RLlib as `output`.
        observation_dim: of the environment it was recorded in, if that is known.

    Returns:
        `observations` (n, T + 1, d) and `actions` (n, T, a), in the order of the files.

    Raises:
        DataError: there are no episodes, one is malformed or incomplete, or lengths differ.
    """
    episodes = _whole_episodes(path, observation_dim)
    first = episodes[0]
    for episode in episodes[1:]:
        for name in ("observations", "actions"):
            shape, expected = getattr(episode, name).shape, getattr(first, name).shape
            if shape != expected:
                raise DataError(
                    f"{episode.where}: episode {episode.episode}: {name} have shape {shape}, those "
                    f"of the first episode {expected}. Record episodes of one length and "
                    'environment, with env_runners(batch_mode="complete_episodes").'
                )
    return {
        "observations": np.stack([episode.observations for episode in episodes]),
        "actions": np.stack([episode.actions for episode in episodes]),
    }


def rllib_episodes(path: Path, observation_dim: int | None = None) -> Iterator[Episode]:
    """The same episodes one by one, each of its own length; see `read_rllib_episodes`.

    Raises:
        DataError: there are no episodes, or one is malformed or incomplete.
    """
    for piece in _whole_episodes(path, observation_dim):
        led = np.zeros((len(piece.observations), piece.actions.shape[1]), np.float32)
        led[1:] = piece.actions
        columns = {OBSERVATION: piece.observations, ACTION: led}
        yield Episode(f"{piece.where}, episode {piece.episode}", columns)


def _whole_episodes(path: Path, observation_dim: int | None) -> list[_Piece]:
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    pieces: dict[str, list[_Piece]] = {}
    for file in files:
        for row, packed in enumerate(_rows(file)):
            piece = _piece(packed, f"{file}, row {row}", observation_dim)
            pieces.setdefault(piece.episode, []).append(piece)
    if not pieces:
        raise DataError(f"{path}: holds no recorded episode. Name the folder given as `output`.")
    return [_joined(parts) for parts in pieces.values()]


def _rows(file: Path) -> list[Any]:
    try:
        table = parquet.ParquetFile(file).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}. Record it again.") from error
    if table.column_names != [COLUMN]:
        raise DataError(
            f"{file}: has columns {', '.join(table.column_names)} instead of {COLUMN}. Record "
            "whole episodes with offline_data(output_write_episodes=True)."
        )
    return table.column(COLUMN).to_pylist()


def _piece(packed: Any, where: str, observation_dim: int | None) -> _Piece:
    """One row; raises DataError if it is not a whole piece of an episode."""
    name = "?"
    try:
        state = msgpack.unpackb(packed, object_hook=_array, strict_map_key=False)
        name = str(state["id_"])
        start = int(state["t_started"])
        observations = _steps(state["observations"], observation_dim)
        actions = _steps(state["actions"])
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise DataError(
            f"{where}: episode {name}: is no packed SingleAgentEpisode "
            f"({type(error).__name__}: {error}). Record it again, or remove the file."
        ) from error
    if len(observations) != len(actions) + 1:
        raise DataError(
            f"{where}: episode {name}: has {len(observations)} observations for {len(actions)} "
            "actions, and needs one more than actions. Record it again, or remove the file."
        )
    return _Piece(where, name, start, observations, actions)


def _array(content: dict[Any, Any]) -> Any:
    """Undo the encoding of one array or number; None for an array of Python objects."""
    # The keys are bytes or text, depending on how the packer was set.
    plain = {key.decode() if isinstance(key, bytes) else key: content[key] for key in content}
    if not {"nd", "type", "data"} <= plain.keys():
        return content
    if plain.get("kind") in (b"O", "O") or plain["type"] in (b"|O", "|O", b"O", "O"):
        return None
    kind = plain["type"].decode() if isinstance(plain["type"], bytes) else plain["type"]
    flat = np.frombuffer(plain["data"], np.dtype(kind))
    return flat.reshape(plain["shape"]) if plain["nd"] else flat[0]


def _steps(buffer: Mapping[str, Any], dim: int | None = None) -> Floats:
    """The steps of a lookback buffer, (t, k) float32, without those before the piece's start."""
    data = buffer["data"]
    if isinstance(data, Sequence) and data and isinstance(data[0], Mapping):
        data = {name: [step[name] for step in data] for name in data[0]}
    if isinstance(data, Mapping):
        steps = _rows_of(data["observation"])
        if dim not in (None, steps.shape[1]) and "achieved_goal" in data:
            both = np.concatenate([_rows_of(data["achieved_goal"]), steps], axis=1)
            steps = both if both.shape[1] == dim else steps
    else:
        steps = _rows_of(data)
    return steps[int(buffer["lookback"]) :]


def _rows_of(steps: Any) -> Floats:
    """(t, ...) → (t, k) float32."""
    rows = np.asarray(steps, np.float32)
    return rows.reshape(len(rows), -1)


def _equal(one: _Piece, other: _Piece) -> bool:
    return np.array_equal(one.observations, other.observations) and np.array_equal(
        one.actions, other.actions
    )


def _joined(pieces: list[_Piece]) -> _Piece:
    """The whole episode; raises DataError if a piece is missing or there in two versions."""
    by_start: dict[int, _Piece] = {}
    for piece in pieces:
        known = by_start.setdefault(piece.start, piece)
        if not _equal(piece, known):
            raise DataError(
                f"{piece.where}: episode {piece.episode}: step {piece.start} and what follows is "
                f"not what {known.where} says. Remove one of the two."
            )
    ordered = [by_start[start] for start in sorted(by_start)]
    first, reached = ordered[0], 0
    for piece in ordered:
        if piece.start != reached:
            raise DataError(
                f"{piece.where}: episode {piece.episode}: continues at step {piece.start}, but "
                f"{reached} steps were recorded before it. Add the missing files."
            )
        reached += len(piece.actions)
    observations = [first.observations[:1], *(piece.observations[1:] for piece in ordered)]
    actions = np.concatenate([piece.actions for piece in ordered])
    return _Piece(first.where, first.episode, 0, np.concatenate(observations), actions)
