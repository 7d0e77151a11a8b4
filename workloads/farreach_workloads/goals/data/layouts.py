"""The layouts that recorded episodes come in: ours, and those of others.

| layout | what it looks like |
|---|---|
| shards | a folder with `dataset.json`, see `farreach.data.episodes` |
| npz episodes | one `.npz` per episode: `observation`, `action`, both with T + 1 rows, the first action a dummy; ExORL's `physics` and other columns are kept |
| OGBench | one `.npz`: `observations`, `actions`, `terminals` of all episodes, the action of a row leads to the next row |
| RLlib | Parquet files that RLlib recorded, see `rllib_episodes` |
"""  # noqa: E501 (a table)

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.data.episodes import (
    ACTION,
    EPISODE,
    INDEX_FILE,
    OBSERVATION,
    STEP,
    Episode,
    EpisodeStore,
)
from farreach.errors import DataError
from farreach_workloads.goals.data.rllib_episodes import rllib_episodes

Array = NDArray[Any]

_KNOWN = (
    "Known are our own data sets, folders of .npz episodes (go-fresh, ExORL), OGBench's .npz and "
    "Parquet files recorded by RLlib."
)


@dataclass(frozen=True)
class Recording:
    """Recorded episodes in some layout.

    Attributes:
        layout: its name.
        episodes: one by one, in order; columns are float32 or float64.
    """

    layout: str
    episodes: Iterator[Episode]


def holds_recording(path: Path) -> bool:
    """Whether there are episodes to copy: a file, or a folder with files of others' layouts."""
    if not path.is_dir():
        return path.exists()
    return any(any(path.rglob(pattern)) for pattern in ("*.npz", "*.parquet"))


def open_recording(path: Path, observation_dim: int | None = None) -> Recording:
    """Find out what layout a file or folder has.

    Args:
        path: the file or folder.
        observation_dim: of the environment it was recorded in, if that is known.

    Raises:
        DataError: there is nothing, or nothing known.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    if path.is_dir():
        if (path / INDEX_FILE).exists():
            return Recording("shards", EpisodeStore.open(path).episodes())
        if files := sorted(path.rglob("*.npz")):
            return _of_folder(path, files)
        if any(path.rglob("*.parquet")):
            return Recording("RLlib", rllib_episodes(path, observation_dim))
    elif path.suffix == ".npz":
        if _is_ogbench(path):
            return Recording("OGBench", _ogbench_episodes(path))
        return Recording("npz episodes", _npz_episodes([path]))
    elif path.suffix == ".parquet":
        return Recording("RLlib", rllib_episodes(path, observation_dim))
    raise DataError(f"{path}: holds no recorded episodes. {_KNOWN}")


def _of_folder(path: Path, files: list[Path]) -> Recording:
    """The recording that the .npz files of a folder hold."""
    try:
        is_ogbench = _is_ogbench(files[0])
    except DataError:  # said when its episode's turn comes
        is_ogbench = False
    if not is_ogbench:
        return Recording("npz episodes", _npz_episodes(files))
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files)
        raise DataError(
            f"{path}: holds files of OGBench, each of which is a data set of its own. Name one of "
            f"them: {names}."
        )
    return Recording("OGBench", _ogbench_episodes(files[0]))


def _is_ogbench(path: Path) -> bool:
    """Whether an .npz file has OGBench's columns."""
    with _opened(path) as file:
        return "terminals" in file and OBSERVATION not in file


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The arrays of an .npz file; its errors become DataErrors."""
    try:
        # Opened here, since NumPy leaves a file open that it cannot read.
        with open(path, "rb") as stream, np.load(stream) as file:
            yield file
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: is no whole .npz file ({error}). Copy or record it again."
        ) from error


def _load(path: Path, *needed: str) -> dict[str, Array]:
    """The arrays of a file; raises DataError unless the needed ones are among them."""
    with _opened(path) as file:
        # Others may be pickled Python objects (infos), which are not loaded.
        arrays = {name: file[name] for name in file if name in needed or _is_numeric(file, name)}
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}. "
            "Record the episode again, or remove the file."
        )
    for name in needed:
        if not arrays[name].ndim or arrays[name].dtype.kind not in "biuf":
            raise DataError(
                f"{path}: {name} is no array of numbers with a row for each step, but of shape "
                f"{arrays[name].shape} and type {arrays[name].dtype}. Record it again, or remove "
                "the file."
            )
    return arrays


def _is_numeric(file: Any, name: str) -> bool:
    """Whether an array holds numbers, by its header alone."""
    with file.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return bool(np.issubdtype(read(member)[2], np.number))


def _npz_episodes(files: list[Path]) -> Iterator[Episode]:
    for path in files:
        arrays = _load(path, OBSERVATION, ACTION)
        rows = len(arrays[OBSERVATION])
        columns = {
            name: _as_rows(values)
            for name, values in arrays.items()
            # Rows get numbers of ours by these names.
            if name not in (EPISODE, STEP)
            and (name in (OBSERVATION, ACTION) or (values.ndim and len(values) == rows))
        }
        yield Episode(str(path), columns)


def _ogbench_episodes(path: Path) -> Iterator[Episode]:
    arrays = _load(path, "observations", "actions", "terminals")
    observations, actions = arrays["observations"], arrays["actions"]
    if not len(observations) == len(actions) == len(arrays["terminals"]):
        raise DataError(
            f"{path}: observations, actions and terminals have {len(observations)}, {len(actions)} "
            f"and {len(arrays['terminals'])} rows, and need the same. Copy or record it again."
        )
    ends = np.flatnonzero(arrays["terminals"]) + 1
    if not len(ends) or ends[-1] != len(observations):
        raise DataError(
            f"{path}: its last row does not end an episode, so that the file is cut. Copy or "
            "record it again."
        )
    start = 0
    for number, end in enumerate(ends.tolist()):
        led = np.zeros((end - start, *actions.shape[1:]), np.float32)
        led[1:] = actions[start : end - 1]  # the last action leads out of the episode
        columns = {OBSERVATION: _as_rows(observations[start:end]), ACTION: led}
        yield Episode(f"{path}, episode {number}", columns)
        start = end


def _as_rows(values: Array) -> Array:
    """(n, ...) → (n, k), floats; integers become float32."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    return flat if flat.dtype == np.float64 else flat.astype(np.float32)
