"""An index on disk: built from embedded documents, searched, changed, merged.

```
index = Index.build(Path("vectors"), Path("index"), IndexConfig(kind="ivf_flat", shards=4))
hits = index.search(queries, 10, where="section = 'devel'")
index.ids(hits.of(0)[1])
```
Writers write new files and put a new manifest in place of the old one as their last step: a reader
sees one state or the other, and a writer that dies leaves the old one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach.errors import DataError
from farreach.index import parts as part_files
from farreach.index import shards, tune
from farreach.index import state as states
from farreach.index.files import link_or_copy, only_writer
from farreach.index.kinds import IndexConfig
from farreach.index.parts import Part
from farreach.index.reader import Reader
from farreach.index.state import State
from farreach.index.vectors import MANIFEST, Rows, Vectors, refuse_repeated, some

# Share of what is deleted or in no shard from which on an index should be made compact.
WASTE = 0.1


class Index(Reader):
    """An index that may be changed; rows mean what they did until `compact` numbers them anew."""

    @classmethod
    def open(cls, path: Path) -> Index:
        """The present state of an index.

        Raises:
            DataError: there is none, or it is damaged.
        """
        state = states.read(path)
        try:
            return cls(path, state)
        except DataError:
            if states.read(path).generation == state.generation:
                raise
        return cls.open(path)  # a writer has put others in place of the files

    @classmethod
    def build(cls, vectors: Path, out: Path, config: IndexConfig, workers: int = 0) -> Index:
        """Build an index; after an interruption the same call goes on with it.

        Args:
            vectors: a folder of embedded documents, which is left as it is; the index shares its
                files where the file system can.
            out: folder of the index; one that is there stays in use until the new one is ready.
            config: how.
            workers: Ray tasks side by side, each builds a shard; 0: in this process.

        Raises:
            DataError: there are no vectors, they do not fit the settings, or `out` is their folder
                or cannot be written.
            ActorError: workers died again and again.
        """
        source, out = Vectors.open(vectors), out.absolute()
        if out.resolve() == vectors.resolve():
            raise DataError(f"{out}: holds the vectors. Choose another folder for the index.")
        with only_writer(out):
            before = _before(out)
            parts = _adopted(source, out)
            held = Vectors(out, parts, source.model, source.normalised)
            built = shards.build(out, held, config, workers)
            state = State(0, config, source.model, source.normalised, parts, built, None, ())
            states.publish(out, state, before)
        return cls.open(out)

    @classmethod
    def merge(cls, paths: Sequence[Path], out: Path) -> Index:
        """One index of several, in their order; nothing is trained or added again.

        Args:
            paths: indexes of one kind and model.
            out: folder of the new index, none of theirs.

        Raises:
            DataError: they do not fit together, or an id is in several.
        """
        sources, out = [Index.open(path) for path in paths], out.absolute()
        if out.resolve() in [path.resolve() for path in paths]:
            raise DataError(f"{out}: is one of those to merge. Choose another folder.")
        _refuse_unlike(sources)
        with only_writer(out):
            before = _before(out)
            for source in sources:
                for file in source.state.files() - {source.state.deleted or ""}:
                    link_or_copy(source.path / file, out / file)
            state = _joined(sources)
            begins = _begins([source.state.rows for source in sources])
            gone = [one.deleted + begin for one, begin in zip(sources, begins, strict=True)]
            deleted = np.concatenate(gone)
            found = np.ones(state.rows, bool)
            found[deleted] = False
            held = Vectors(out, state.parts, state.model, state.normalised)
            refuse_repeated(out, held.repeated(found))
            name = states.write_deleted(out, before, deleted)
            states.publish(out, replace(state, deleted=name), before)
        return cls.open(out)

    @property
    def waste(self) -> float:
        """Share of what is deleted or in no shard; above WASTE, `compact` pays."""
        added = sum(shard.end - shard.begin for shard in self.state.added())
        deleted = self.state.rows - self.count
        shares = added / max(1, self.state.points), deleted / max(1, self.state.rows)
        return min(1.0, sum(shares))

    def refresh(self) -> bool:
        """Turn to the present state, if another process has changed the index; whether it has."""
        if states.read(self.path).generation == self.state.generation:
            return False
        self._become(Index.open(self.path).state)
        return True

    def add(self, vectors: Path, *, replacing: bool = False) -> int:
        """Add embedded documents; they are searched exactly until `compact` takes them in.

        Args:
            vectors: a folder of them.
            replacing: documents whose ids are there take their place; else that is an error.

        Returns:
            How many were replaced.

        Raises:
            DataError: they are of another width or model, an id is there already, or another
                process is writing.
        """
        source = Vectors.open(vectors)
        with self._changing() as before:
            self._refuse_foreign(source)
            ids = source.ids(np.arange(source.count))
            _, rows = self.alive(ids) if replacing else self.refuse_known(ids)
            parts = (*before.parts, *_adopted(source, self.path))
            deleted = np.concatenate([self.deleted, rows])
            self._publish(before, replace(before, parts=parts), deleted)
        return len(rows)

    def refuse_known(self, ids: list[str]) -> tuple[Rows, Rows]:
        """As `alive`, of ids none of which can be found; raises DataError if one can."""
        places, rows = self.alive(ids)
        if len(rows):
            there = [ids[place] for place in places.tolist()]
            raise DataError(
                f"{self.path}: {len(there)} of the ids to add are there already: {some(there)}. "
                "Leave them out, or replace them (replace=true)."
            )
        return places, rows

    def holds(self, vectors: Path) -> bool:
        """Whether this very folder of embedded documents was added before."""
        source = Vectors.open(vectors)
        there = {part.name for part in self.state.parts}
        return {_adopted_name(source, part) for part in source.parts} <= there

    def delete(self, ids: Sequence[str]) -> None:
        """Have documents no longer found; none is deleted if one is unknown.

        Raises:
            DataError: it counts and names ids that are not there; or another process is writing.
        """
        wanted = list(dict.fromkeys(ids))
        with self._changing() as before:
            places, rows = self.alive(wanted)
            if len(rows) < len(wanted):
                unknown = [wanted[place] for place in np.setdiff1d(range(len(wanted)), places)]
                raise DataError(
                    f"{self.path}: {len(unknown)} of {len(wanted)} ids to delete are not there: "
                    f"{some(unknown)}. Nothing was deleted; leave them out."
                )
            self._publish(before, before, np.concatenate([self.deleted, rows]))

    def compact(self, workers: int = 0) -> None:
        """Build the shards again from all documents that can be found; rows are numbered anew.

        Raises:
            DataError: no document is left, or another process is writing.
            ActorError: workers died again and again.
        """
        with self._changing() as before:
            if not self.count:
                raise DataError(f"{self.path}: no document is left. Build another index.")
            parts = tuple(self._without_deleted())
            held = Vectors(self.path, parts, before.model, before.normalised)
            built = shards.build(self.path.absolute(), held, before.config, workers)
            state = replace(before, parts=parts, shards=built)
            self._publish(before, state, np.empty(0, np.int64))

    def tune(self, queries: NDArray[Any], *, k: int = 10, recall: float = 0.95) -> float:
        """Keep the least effort with which searches reach a recall, for all who open the index.

        Args:
            queries: (n, d) that are like those to come; some hundreds.
            k: hits of each that count.
            recall: share of the truly best k that is to be found.

        Returns:
            The share that is found, below `recall` if no effort reaches it.

        Raises:
            DataError: the queries do not fit, or another process is writing.
        """
        with self._changing() as before:
            config, reached = tune.tuned(
                lambda settings: self.search(queries, k, config=settings),
                self.search_exactly(queries, k),
                before.config,
                least=k if before.config.kind == "hnsw" else 1,
                most=before.points if before.config.kind == "hnsw" else self._lists,
                target=recall,
            )
            self._publish(before, replace(before, config=config), self.deleted)
        return reached

    @contextmanager
    def _changing(self) -> Iterator[State]:
        """Holds the index for writing; gives its present state, which is open then."""
        with only_writer(self.path):
            self.refresh()
            yield self.state

    def _publish(self, before: State, state: State, deleted: Rows) -> None:
        """Make a state, with these rows deleted, the present one, and open it."""
        name = states.write_deleted(self.path, before, deleted)
        state = states.publish(self.path, replace(state, deleted=name), before)
        self._become(state)

    def _become(self, state: State) -> None:
        path = self.path
        self.__dict__.clear()
        Reader.__init__(self, path, state)

    @property
    def _lists(self) -> int:
        """About how many lists each shard divides the space into."""
        return self.config.lists_for(self.state.points)

    def _refuse_foreign(self, source: Vectors) -> None:
        for what, ours, theirs in (
            ("vectors of other width", self.width, source.width),
            ("another model", self.model, source.model),
            ("vectors that differ in being normalised", self.state.normalised, source.normalised),
        ):
            if ours != theirs:
                raise DataError(
                    f"{source.path}: has {what}: {theirs!r} and not {ours!r} as {self.path}. "
                    "Embed the documents with the index's model and settings."
                )

    def _without_deleted(self) -> Iterator[Part]:
        """Parts with all documents that can be found; those that have others are written anew."""
        begin = 0
        for part in self.state.parts:
            end = begin + part.count
            gone = self.deleted[np.searchsorted(self.deleted, begin) :]
            gone = gone[: np.searchsorted(gone, end)] - begin
            if not len(gone):
                yield part
            elif len(gone) < part.count:
                yield self._rewritten(part, begin, gone)
            begin = end

    def _rewritten(self, part: Part, begin: int, gone: Rows) -> Part:
        """A part without some of its rows; `begin` is its first row."""
        name = _named(part.name.encode(), gone.tobytes())
        if part_files.is_there(self.path, name):
            return part_files.described(self.path, name)
        kept = np.delete(np.arange(begin, begin + part.count), gone)
        firsts, ends = self.vectors.begins[kept], self.vectors.begins[kept + 1]
        points = np.concatenate([np.arange(*pair) for pair in zip(firsts, ends, strict=True)])
        before = self.vectors.begins[begin]
        [(_, vectors)] = self.vectors.pieces(before, self.vectors.begins[begin + part.count])
        documents, counts = self.documents(kept), (ends - firsts).tolist()
        return part_files.write(self.path, name, vectors[points - before], documents, counts)


def _before(out: Path) -> State | None:
    """The state of what is in a folder, if there is an index."""
    return states.read(out) if (out / MANIFEST).exists() else None


def _adopted(source: Vectors, out: Path) -> tuple[Part, ...]:
    """The parts of a folder of vectors in an index's folder, under names of their own."""
    found = []
    for part in source.parts:
        name = _adopted_name(source, part)
        for old, new in zip(part_files.files(part.name), part_files.files(name), strict=True):
            link_or_copy(source.path / old, out / new)
        found.append(replace(part, name=name))
    return tuple(found)


def _adopted_name(source: Vectors, part: Part) -> str:
    facts = (source.path / part_files.files(part.name)[0]).stat()
    identity = f"{source.path.resolve()} {part.name} {facts.st_size} {facts.st_mtime_ns}"
    return _named(identity.encode())


def _named(*contents: bytes) -> str:
    whole = hashlib.sha256()
    for content in contents:
        whole.update(content)
    return f"part-{whole.hexdigest()[:16]}"


def _refuse_unlike(sources: Sequence[Index]) -> None:
    if not sources:
        raise DataError("no index to merge was named. Name two or more.")
    first = sources[0]
    for source in sources[1:]:
        first._refuse_foreign(source.vectors)
        if source.config.kind != first.config.kind:
            raise DataError(
                f"{source.path}: is of kind {source.config.kind}, and {first.path} is of kind "
                f"{first.config.kind}. Build one index from the vectors of both."
            )


def _joined(sources: Sequence[Index]) -> State:
    """The state with the rows of several one after the other, but for what is deleted."""
    first = sources[0].state
    begins = _begins([source.state.points for source in sources])
    moved = [
        replace(shard, begin=shard.begin + begin, end=shard.end + begin)
        for source, begin in zip(sources, begins, strict=True)
        for shard in source.state.shards
    ]
    parts = tuple(part for source in sources for part in source.state.parts)
    return replace(first, parts=parts, shards=tuple(moved), deleted=None)


def _begins(counts: Sequence[int]) -> list[int]:
    """Where each begins of so many, one after the other."""
    return np.cumsum([0, *counts[:-1]]).tolist()
