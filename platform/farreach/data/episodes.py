"""Episodes on disk: Arrow shards that are memory-mapped, with an index, statistics and hashes.

```
<data set>/
  dataset.json         what it is, statistics, and each shard with its hash; written last
  shard-00000.arrow    Arrow IPC, one record batch: pandas, polars, DuckDB and Ray Data read it too
```
A row is a step. An episode of T transitions has T + 1 rows, and `action` holds the action that
*led* to the row's observation, so that the first one is a dummy of zeros:
```
episode       0   0   0   0 |  1   1   1
step          0   1   2   3 |  0   1   2
observation  o0  o1  o2  o3 | o0  o1  o2
action        0  a1  a2  a3 |  0  a1  a2
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from farreach.disk import atomic_write
from farreach.errors import DataError

Array = NDArray[Any]
Ints = NDArray[np.integer[Any]]

FORMAT = 1
INDEX_FILE = "dataset.json"
OBSERVATION, ACTION = "observation", "action"
EPISODE, STEP = "episode", "step"
_METADATA_KEY = b"farreach"
_MAKE_AGAIN = "Delete it and make it again."


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T transitions.

    Attributes:
        where: file, and what else it takes to find it, for messages.
        columns: `observation` (T + 1, d), `action` (T + 1, a) whose row t led to observation t, and
            whatever else was recorded, (T + 1, k).
    """

    where: str
    columns: dict[str, Array]

    def __len__(self) -> int:
        """Rows, T + 1."""
        return len(self.columns[OBSERVATION])


@dataclass(frozen=True)
class Moments:
    """Statistics of one column, one value per dim, over `count` rows."""

    count: int
    mean: list[float]
    std: list[float]
    low: list[float]
    high: list[float]

    @staticmethod
    def of(values: Array) -> Moments:
        """Of rows (n, k)."""
        wide = values.astype(np.float64)
        mean, std, low, high = (
            function(wide, axis=0).tolist() for function in (np.mean, np.std, np.min, np.max)
        )
        return Moments(len(values), mean, std, low, high)

    @staticmethod
    def merged(parts: Sequence[Moments]) -> Moments:
        """Of all rows of several parts together."""
        count = np.array([part.count for part in parts], np.float64)
        share = (count / count.sum())[:, None]
        means = np.array([part.mean for part in parts])
        mean = (share * means).sum(axis=0)
        variance = (
            share * (np.array([part.std for part in parts]) ** 2 + (means - mean) ** 2)
        ).sum(axis=0)
        return Moments(
            int(count.sum()),
            mean.tolist(),
            np.sqrt(variance).tolist(),
            np.min([part.low for part in parts], axis=0).tolist(),
            np.max([part.high for part in parts], axis=0).tolist(),
        )


@dataclass(frozen=True)
class ShardRecord:
    """What the index says about a shard.

    Attributes:
        file: name within the data set.
        first_episode: number of its first episode.
        episodes, rows: how many.
        content: SHA-256 of the columns' names, types and values.
        source: how the data set was made, the same in every shard.
        statistics: of each column.
    """

    file: str
    first_episode: int
    episodes: int
    rows: int
    content: str
    source: dict[str, Any]
    statistics: dict[str, Moments]


def write_shard(
    path: Path,
    columns: Mapping[str, Array],
    lengths: Sequence[int] | Ints,
    first_episode: int,
    source: Mapping[str, Any],
) -> ShardRecord:
    """Write whole episodes into one file, atomically.

    Args:
        path: the file, which replaces an older one.
        columns: `observation`, `action` and others, (rows, k) float32 or float64, all episodes one
            after the other.
        lengths: rows of each episode.
        first_episode: number of the first.
        source: how the data set was made; JSON.

    Raises:
        RunDirectoryError: the disk refuses it.
    """
    lengths = np.asarray(lengths, np.int64)
    assert lengths.sum() == len(columns[OBSERVATION])
    assert all(len(values) == lengths.sum() for values in columns.values())
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = {
        EPISODE: np.repeat(first_episode + np.arange(len(lengths)), lengths),
        STEP: (np.arange(len(starts)) - starts).astype(np.int32),
    }
    arrays = {
        name: np.ascontiguousarray(values) for name, values in (index | dict(columns)).items()
    }
    record = ShardRecord(
        file=path.name,
        first_episode=first_episode,
        episodes=len(lengths),
        rows=len(starts),
        content=_content(arrays),
        source=dict(source),
        statistics={name: Moments.of(values) for name, values in columns.items()},
    )
    metadata = {"format": FORMAT, **asdict(record)}
    schema = pa.schema(
        [_field(name, values) for name, values in arrays.items()],
        metadata={_METADATA_KEY: json.dumps(metadata)},
    )
    batch = pa.record_batch([_as_arrow(values) for values in arrays.values()], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    atomic_write(path, sink.getvalue().to_pybytes())
    return record


def _field(name: str, values: Array) -> Any:
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.field(name, kind if values.ndim == 1 else pa.list_(kind, values.shape[1]), False)


def _as_arrow(values: Array) -> Any:
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _content(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.data if values.flags.c_contiguous else values.tobytes())
    return digest.hexdigest()


def read_shard(path: Path) -> tuple[ShardRecord, dict[str, Array]]:
    """A shard's record and its columns, which are views of the mapped file.

    Raises:
        DataError: it is missing, torn, or no shard of this format.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path)))
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        batch = table.get_batch(0)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: is no whole shard of episodes ({type(error).__name__}: {error}). "
            f"{_MAKE_AGAIN}"
        ) from error
    if metadata.pop("format") != FORMAT:
        raise DataError(f"{path}: was written by another version. {_MAKE_AGAIN}")
    statistics = {name: Moments(**values) for name, values in metadata.pop("statistics").items()}
    columns = {}
    for field, values in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_fixed_size_list(field.type):
            flat = values.flatten().to_numpy(zero_copy_only=True)
            columns[field.name] = flat.reshape(-1, field.type.list_size)
        else:
            columns[field.name] = values.to_numpy(zero_copy_only=True)
    return ShardRecord(statistics=statistics, **metadata), columns


def write_index(folder: Path, name: str, shards: Sequence[ShardRecord]) -> None:
    """Write `dataset.json`, which makes the shards in `folder` a data set."""
    merged = {
        column: asdict(Moments.merged([shard.statistics[column] for shard in shards]))
        for column in shards[0].statistics
    }
    digest = hashlib.sha256("".join(shard.content for shard in shards).encode())
    files = [
        {
            key: getattr(shard, key)
            for key in ("file", "first_episode", "episodes", "rows", "content")
        }
        for shard in shards
    ]
    episodes, rows = (sum(getattr(shard, key) for shard in shards) for key in ("episodes", "rows"))
    content = {
        "format": FORMAT,
        "name": name,
        "source": shards[0].source,
        "episodes": episodes,
        "rows": rows,
        "transitions": rows - episodes,
        "content": digest.hexdigest(),
        "statistics": merged,
        "shards": files,
    }
    atomic_write(folder / INDEX_FILE, json.dumps(content, indent=2) + "\n")


class Column:
    """One column over all shards, mapped from the disk.

    ```
    store["observation"][rows]          # (len(rows), d), a copy
    ```
    """

    def __init__(self, pieces: Sequence[Array], ends: Ints) -> None:
        """Pieces one after the other; `ends[i]` is the number of rows up to the i-th's end."""
        self._pieces, self._ends = pieces, ends
        self.dim = pieces[0].shape[1]
        self.dtype = pieces[0].dtype

    def __len__(self) -> int:
        """Rows."""
        return int(self._ends[-1])

    def __getitem__(self, rows: Ints) -> Array:
        """Gather rows by number: (n,) → (n, dim)."""
        if len(self._pieces) == 1:
            return self._pieces[0].take(rows, axis=0)  # four times as fast as indexing
        result = np.empty((len(rows), self.dim), self.dtype)
        which = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(which, kind="stable")
        counts = np.bincount(which, minlength=len(self._pieces))
        begin = 0
        for piece, count in enumerate(counts):
            if count:
                mine = order[begin : begin + count]
                start = self._ends[piece - 1] if piece else 0
                result[mine] = self._pieces[piece].take(rows[mine] - start, axis=0)
                begin += count
        return result

    def blocks(self, size: int) -> Iterator[tuple[int, Array]]:
        """The whole column in order, at most `size` rows at a time: first row and view."""
        begin = 0
        for piece in self._pieces:
            for start in range(0, len(piece), size):
                yield begin + start, piece[start : start + size]
            begin += len(piece)


class EpisodeStore:
    """A data set of episodes, opened for reading; nothing is loaded until it is looked at.

    ```
    store = EpisodeStore.open(Path("data/maze_random"))
    row = store.starts[episode] + t                       # observation t of an episode
    observation, action = store["observation"][row], store["action"][row + 1]
    ```

    Attributes:
        path: the folder.
        info: the content of `dataset.json`.
        starts: (episodes + 1,) int64, row of each episode's first step; the last is all rows.
    """

    def __init__(self, path: Path, info: Mapping[str, Any], shards: list[dict[str, Array]]) -> None:
        """Users call `open`."""
        self.path, self.info = path, info
        ends = np.cumsum([len(shard[STEP]) for shard in shards])
        self.columns = {
            name: Column([shard[name] for shard in shards], ends)
            for name in shards[0]
            if name not in (EPISODE, STEP)
        }
        offsets = ends - [len(shard[STEP]) for shard in shards]
        first = [
            offset + np.flatnonzero(shard[STEP] == 0)
            for offset, shard in zip(offsets, shards, strict=True)
        ]
        self.starts: Ints = np.concatenate([*first, ends[-1:]]).astype(np.int64)

    @classmethod
    def open(cls, path: Path) -> EpisodeStore:
        """Open a data set.

        Raises:
            DataError: there is none, it is not finished, or a shard is missing or of another set.
        """
        info = read_index(path)
        shards = []
        for entry in info["shards"]:
            record, columns = read_shard(path / entry["file"])
            if record.content != entry["content"]:
                raise DataError(
                    f"{path / entry['file']}: is not the shard that {INDEX_FILE} names. "
                    f"{_MAKE_AGAIN}"
                )
            shards.append(columns)
        return cls(path, info, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files itself."""
        return EpisodeStore.open, (self.path,)

    def __getitem__(self, column: str) -> Column:
        """A column such as `observation`."""
        return self.columns[column]

    def __len__(self) -> int:
        """Episodes."""
        return len(self.starts) - 1

    @property
    def rows(self) -> int:
        """Steps of all episodes, the first of each included."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> Ints:
        """Rows of each episode, (episodes,)."""
        return np.diff(self.starts)

    def episodes(self) -> Iterator[Episode]:
        """Every episode in order, its columns views of the mapped files."""
        for entry in self.info["shards"]:
            path = self.path / entry["file"]
            _, columns = read_shard(path)
            first = np.flatnonzero(columns[STEP] == 0)
            ends = np.append(first[1:], len(columns[STEP]))
            for start, end in zip(first, ends, strict=True):
                kept = {name: columns[name][start:end] for name in self.columns}
                yield Episode(f"{path}, episode {columns[EPISODE][start]}", kept)

    def damaged(self) -> list[str]:
        """Shards whose values are not those that were written, by their hashes."""
        found = []
        for entry in self.info["shards"]:
            path = self.path / entry["file"]
            _, columns = read_shard(path)
            if _content(columns) != entry["content"]:
                found.append(f"{path}: its values have changed since it was written. {_MAKE_AGAIN}")
        return found


def read_index(path: Path) -> dict[str, Any]:
    """The content of a data set's `dataset.json`.

    Raises:
        DataError: there is none, or it is malformed.
    """
    file = path / INDEX_FILE
    try:
        info: dict[str, Any] = json.loads(file.read_text())
        known = info["format"] == FORMAT and info["shards"][0]["file"]
    except FileNotFoundError:
        raise DataError(
            f"{path}: has no {INDEX_FILE}, so it is no data set or not finished. Name another "
            "folder, or finish it with the command that began it."
        ) from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read ({type(error).__name__}: {error}). {_MAKE_AGAIN}"
        ) from error
    if not known:
        raise DataError(f"{file}: was written by another version. {_MAKE_AGAIN}")
    return info
