"""One state of an index, open for searching: its vectors, shards and what is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farreach import runtime
from farreach.cluster.demand import Demand
from farreach.data.text import Document
from farreach.errors import DataError
from farreach.index import state as states
from farreach.index.flat import rescored
from farreach.index.hits import Hits, best, merged
from farreach.index.kinds import Floats, IndexConfig
from farreach.index.points import best_documents, is_few, search_documents
from farreach.index.shards import Mask, RemoteShards, Searches, Shards
from farreach.index.state import State
from farreach.index.vectors import Rows, Vectors
from farreach.index.where import selected

FILTERS_KEPT = 16


@dataclass(frozen=True)
class _Selection:
    """What may be found.

    Attributes:
        count: of documents.
        points: by point, whether it is one of theirs; None: all are.
    """

    count: int
    points: Mask | None


class Reader:
    """An index as it was when it was opened, whatever becomes of it since.

    Attributes:
        path: its folder.
        state: what its manifest said.
        vectors: vectors and documents by row.
        deleted: rows that are no longer found, in rising order.
    """

    def __init__(self, path: Path, state: State, remote: Searches | None = None) -> None:
        """Open the files of a state.

        Args:
            path: folder of the index.
            state: of it.
            remote: searches the shards; by default this process does.

        Raises:
            DataError: a file is missing or damaged.
        """
        self.path, self.state = path, state
        self.vectors = Vectors(path, state.parts, state.model, state.normalised)
        kind = state.config.kind
        self._added = Shards(path, self.vectors, list(state.added()), kind)
        self._shards = remote or Shards(path, self.vectors, state.shards, kind)
        self.deleted = states.read_deleted(path, state)
        self._alive: Mask | None = None
        if len(self.deleted):
            self._alive = np.ones(state.rows, bool)
            self._alive[self.deleted] = False
        self._everything = self._selection(self._alive)
        self._filters: dict[str, _Selection] = {}

    @property
    def config(self) -> IndexConfig:
        """How the index was built and is searched."""
        return self.state.config

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.vectors.width

    @property
    def model(self) -> str:
        """Hash of the model that made the vectors."""
        return self.state.model

    @property
    def count(self) -> int:
        """Documents that can be found."""
        return self.state.rows - len(self.deleted)

    def search(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        where: str | None = None,
        model: str | None = None,
        config: IndexConfig | None = None,
    ) -> Hits:
        """The best k documents of every query.

        Args:
            queries: (n, d), or one (d,).
            k: how many; where there are fewer documents, rows of -1 fill up.
            where: a filter on what documents say of themselves; see `where`.
            model: hash of the model that made the queries, which must be the index's; None: the
                caller knows that it is.
            config: its probes, ef and rerank are used instead of the index's.

        Raises:
            DataError: the queries are of another width or model or not finite, k is below 1, or the
                filter is wrong.
        """
        queries, config = self._checked(queries, k, model), config or self.config
        allowed, most = self._allowed(where, k)
        if not most:
            return Hits.none(len(queries), k)
        if allowed is not None and is_few(allowed):  # which lists or edges would miss
            return self._exact(queries, most, allowed, k)
        hits = best_documents(
            self.vectors.owners,
            lambda some, wanted: self._found(some, wanted, allowed, config),
            queries,
            most,
        )
        short = hits.counts() < most
        if short.any():  # the lists or edges that were followed had too few
            exact = self._exact(queries[short], most, allowed, most)
            hits.scores[short], hits.rows[short] = exact.scores, exact.rows
        return best(hits.scores, hits.rows, k)

    def search_exactly(
        self, queries: NDArray[Any], k: int, *, where: str | None = None, model: str | None = None
    ) -> Hits:
        """What `search` finds if it looks at every vector, whatever the kind of index."""
        queries = self._checked(queries, k, model)
        allowed, most = self._allowed(where, k)
        if not most:
            return Hits.none(len(queries), k)
        return self._exact(queries, most, allowed, k)

    def ids(self, rows: Rows) -> list[str]:
        """Ids of the documents in some rows; DataError for a row that is not there, as -1."""
        return self.vectors.ids(rows)

    def documents(self, rows: Rows) -> list[Document]:
        """The documents in some rows; raises DataError as `ids` does."""
        return self.vectors.documents(rows)

    def row_of(self, name: str) -> int | None:
        """The row of the document with this id, if it can be found."""
        _, rows = self.alive([name])
        return int(rows[0]) if len(rows) else None

    def alive(self, ids: list[str]) -> tuple[Rows, Rows]:
        """Places in `ids` and rows of those that can be found."""
        places, rows = self.vectors.find(ids)
        kept = np.ones(len(rows), bool) if self._alive is None else self._alive[rows]
        return places[kept], rows[kept]

    @contextmanager
    def serve(self, *, num_cpus: float = 1.0) -> Iterator[Reader]:
        """The same state, each shard searched in a Ray actor of its own, on whichever machine.

        All machines must see the index's folder under the same name.

        Args:
            num_cpus: of each actor, and threads of its search.

        Raises:
            ClusterError, ActorError: the actors cannot be started.
        """
        shards, kind = self.state.shards, self.config.kind
        folder = self.path.absolute()
        vectors = Vectors(folder, self.state.parts, self.state.model, self.state.normalised)
        with (
            runtime.connection(
                [Demand("shard", len(shards), {"CPU": num_cpus})], settings=["shards", "num_cpus"]
            ),
            RemoteShards(folder, vectors, shards, kind, num_cpus=num_cpus) as remote,
        ):
            yield Reader(self.path, self.state, remote)

    def _found(self, queries: Floats, k: int, allowed: Mask | None, config: IndexConfig) -> Hits:
        """The best k points as the kind of index finds them, perhaps fewer."""
        wanted = min(config.candidates(k), self.state.points)
        parts = [
            self._shards.search(queries, wanted, config, allowed),
            self._added.search(queries, wanted, config, allowed),
        ]
        hits = merged(parts, wanted)
        if config.rescores:
            longest = self.vectors.longest
            return rescored(hits, self.vectors.at, queries, k, longest=longest)
        return best(hits.scores, hits.rows, k)

    def _exact(self, queries: Floats, most: int, allowed: Mask | None, k: int) -> Hits:
        """The best `most` documents, whatever the kind, in k columns."""
        hits = search_documents(self.vectors, queries, most, allowed)
        return best(hits.scores, hits.rows, k)

    def _allowed(self, where: str | None, k: int) -> tuple[Mask | None, int]:
        """By point, whether it may be found (None: all may), and how many of k documents can be."""
        found = self._everything if where is None else self._filtered(where)
        return found.points, min(k, found.count)

    def _filtered(self, where: str) -> _Selection:
        found = self._filters.get(where)
        if found is None:
            rows = selected(where, self.vectors.column, self.state.rows)
            if self._alive is not None:
                rows &= self._alive
            if len(self._filters) >= FILTERS_KEPT:
                self._filters.clear()
            found = self._filters[where] = self._selection(rows)
        return found

    def _selection(self, rows: Mask | None) -> _Selection:
        if rows is None:
            return _Selection(self.state.rows, None)
        owners = self.vectors.owners
        points = rows if owners is None else rows[owners]
        return _Selection(int(np.count_nonzero(rows)), points)

    def _checked(self, queries: NDArray[Any], k: int, model: str | None) -> Floats:
        if k < 1:
            raise DataError(f"{self.path}: {k} hits were asked for; ask for 1 or more.")
        if model is not None and model != self.model:
            raise DataError(
                f"{self.path}: its vectors were made by the model {self.model!r}, and the queries "
                f"by {model!r}. Use one model for both, or embed the documents again."
            )
        queries = np.ascontiguousarray(np.atleast_2d(queries), np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise DataError(
                f"{self.path}: queries have the shape {queries.shape}, and vectors here have "
                f"{self.width} numbers. Use the model that embedded the documents."
            )
        broken = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        if len(broken):
            raise DataError(
                f"{self.path}: {len(broken)} queries are not finite, the first is number "
                f"{broken[0]}. Mend the model that made them."
            )
        return queries
