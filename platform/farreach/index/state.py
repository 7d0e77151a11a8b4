"""What an index consists of, as its manifest says, and how one state takes the place of another.

```
<index>/
  manifest.json                             names all other files; replaced last, in one step
  part-<hash>.npy  part-<hash>.parquet      vectors and documents
  shard-<hash>-00000-of-00004.faiss         a range of points, indexed; none for the kind `flat`
  deleted-00000003.npy                      rows that are no longer found
```
No file but the manifest ever changes. Files of the state before stay until the next change, for
readers that have it open. What a writer left that died is removed by the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.index import parts as part_files
from farreach.index.files import written_aside
from farreach.index.kinds import IndexConfig
from farreach.index.parts import Part
from farreach.index.vectors import MANIFEST, Rows

SCHEMA = 1
# Not the parts of a folder of vectors, whose numbers are shorter.
_OURS = re.compile(r"\.?(part-[0-9a-f]{16}\.|shard-|trained-|deleted-).*")


@dataclass(frozen=True)
class Shard:
    """A range of points that is searched as one.

    Attributes:
        begin: first point.
        end: one past the last.
        file: FAISS's index; None: the vectors themselves are searched.
        trained: shards with the same name here divide the space into the same lists.
    """

    begin: int
    end: int
    file: str | None
    trained: str | None


@dataclass(frozen=True)
class State:
    """One state of an index.

    Attributes:
        generation: grows with every change.
        config: how it was built and is searched.
        model: hash of the model of its vectors.
        normalised: whether they have norm 1.
        parts: vectors and documents; rows and points as in `farreach.index.vectors`.
        shards: what is indexed; other points were added since.
        deleted: name of the file of deleted rows.
        earlier: files of the state before.
    """

    generation: int
    config: IndexConfig
    model: str
    normalised: bool
    parts: tuple[Part, ...]
    shards: tuple[Shard, ...]
    deleted: str | None
    earlier: tuple[str, ...]

    @property
    def rows(self) -> int:
        """All rows, deleted ones too."""
        return sum(part.count for part in self.parts)

    @property
    def points(self) -> int:
        """All points, those of deleted rows too."""
        return sum(part.size for part in self.parts)

    def added(self) -> Iterator[Shard]:
        """Ranges of points that no shard has."""
        begin = 0
        for shard in sorted(self.shards, key=lambda shard: shard.begin):
            if begin < shard.begin:
                yield Shard(begin, shard.begin, None, None)
            begin = shard.end
        if begin < self.points:
            yield Shard(begin, self.points, None, None)

    def files(self) -> set[str]:
        """Names of all its files but the manifest."""
        names = {name for part in self.parts for name in part_files.files(part.name)}
        names |= {shard.file for shard in self.shards if shard.file is not None}
        return names | ({self.deleted} if self.deleted else set())


def read(folder: Path) -> State:
    """The present state of an index.

    Raises:
        DataError: there is none, or its manifest is damaged or of another version.
    """
    file = folder / MANIFEST
    try:
        raw = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{folder}: has no {MANIFEST}, so it holds no index, or not a whole one yet. Build it "
            "to the end, or name another folder."
        ) from None
    except ValueError as error:
        raise DataError(f"{file}: is damaged: {error}. Build the index again.") from error
    if isinstance(raw, dict) and "vectors" in raw:
        raise DataError(
            f"{folder}: holds embedded documents and no index of them yet. Build one with "
            f"`farreach index build {folder} INDEX`."
        )
    if not isinstance(raw, dict) or raw.get("index") != SCHEMA:
        raise DataError(f"{file}: describes no index that this version reads. Build it again.")
    try:
        return State(
            generation=raw["generation"],
            config=IndexConfig(**raw["config"]),
            model=raw["model"],
            normalised=raw["normalised"],
            parts=tuple(Part(**part) for part in raw["parts"]),
            shards=tuple(Shard(**shard) for shard in raw["shards"]),
            deleted=raw["deleted"],
            earlier=tuple(raw["earlier"]),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError(f"{file}: is incomplete: {error}. Build the index again.") from error


def publish(folder: Path, state: State, before: State | None) -> State:
    """Make a state, whose files are written, the present one; only the writer may call it.

    Args:
        folder: of the index.
        state: its `generation` and `earlier` are filled in here.
        before: the present state.
    """
    earlier = () if before is None else tuple(sorted(before.files()))
    generation = 1 if before is None else before.generation + 1
    state = replace(state, generation=generation, earlier=earlier)
    content: dict[str, Any] = {"index": SCHEMA, **asdict(state)}
    content["config"] = state.config.model_dump()
    atomic_write(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    kept = state.files().union(earlier)
    for file in folder.iterdir():
        if _OURS.fullmatch(file.name) and file.name not in kept:
            file.unlink(missing_ok=True)
    return state


def write_deleted(folder: Path, before: State | None, rows: Rows) -> str | None:
    """Write which rows are deleted, for the state after `before`; the file's name, None if none."""
    if not len(rows):
        return None
    name = f"deleted-{0 if before is None else before.generation:08d}.npy"
    with written_aside(folder / name) as temporary, open(temporary, "wb") as file:
        np.save(file, np.sort(rows))
    return name


def read_deleted(folder: Path, state: State) -> Rows:
    """Rows that are deleted, in rising order.

    Raises:
        DataError: their file cannot be read.
    """
    if state.deleted is None:
        return np.empty(0, np.int64)
    file = folder / state.deleted
    try:
        return np.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}. Build the index again.") from error
