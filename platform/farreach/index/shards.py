"""Shards, ranges of points that are built and searched apart: here or in Ray actors."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import ray
from numpy.typing import NDArray

from farreach import runtime
from farreach.actors.services import DEATHS, LOSSES, ActorService, fetch
from farreach.actors.tasks import done_in_any_order
from farreach.actors.witness import Witnesses
from farreach.console import say
from farreach.errors import ActorError, DataError
from farreach.failures import explain, show
from farreach.index import kinds
from farreach.index.flat import search_flat
from farreach.index.hits import NO_ROW, Hits, merged
from farreach.index.kinds import Coarse, Floats, IndexConfig, Kind
from farreach.index.state import Shard
from farreach.index.vectors import Vectors
from farreach.progress import Progress

# Vectors from which on it is said that lists and codes are trained, which takes a while.
MANY = 30_000
BLOCK = 8192  # vectors read at once
RESTARTS = 2
_LARGEST_HALF = 65504.0
# Settings that matter to a search alone.
_OF_SEARCH = {"probes", "ef", "rerank"}

Mask = NDArray[np.bool_]


class Searches(Protocol):
    """Some shards, wherever they are."""

    def search(self, queries: Floats, k: int, config: IndexConfig, allowed: Mask | None) -> Hits:
        """The best k points of these shards for (n, d) queries, where `allowed` is True."""


class Shards:
    """Shards that this process searches itself."""

    def __init__(self, folder: Path, vectors: Vectors, shards: Sequence[Shard], kind: Kind) -> None:
        """Map the files of some shards of a kind of index.

        Raises:
            DataError: one cannot be read.
        """
        self._vectors = vectors
        self._pieces = [
            piece
            for shard in shards
            if shard.file is None
            for piece in vectors.pieces(shard.begin, shard.end)
        ]
        self._indexes = [
            (shard, kinds.load(folder / shard.file, kind))
            for shard in shards
            if shard.file is not None
        ]
        self._centres = {
            shard.trained: kinds.centres_of(index) for shard, index in reversed(self._indexes)
        }

    def search(self, queries: Floats, k: int, config: IndexConfig, allowed: Mask | None) -> Hits:
        """See `Searches`."""
        found = [Hits.none(len(queries), k)]
        if self._pieces:
            longest = self._vectors.longest
            found.append(search_flat(self._pieces, queries, k, longest=longest, allowed=allowed))
        lists: dict[str | None, Coarse | None] = {
            name: None if centres is None else kinds.coarse(queries, centres, config.probes)
            for name, centres in self._centres.items()
        }
        for shard, index in self._indexes:
            mask = None if allowed is None else allowed[shard.begin : shard.end]
            most, where = min(k, shard.end - shard.begin), lists[shard.trained]
            hits = kinds.search(index, queries, most, config, allowed=mask, lists=where)
            rows = np.where(hits.rows == NO_ROW, NO_ROW, hits.rows + shard.begin)
            found.append(Hits(hits.scores, rows))
        return merged(found, k)


class RemoteShards:
    """Shards, each in a Ray actor of its own, which maps its file on its machine."""

    def __init__(
        self,
        folder: Path,
        vectors: Vectors,
        shards: Sequence[Shard],
        kind: Kind,
        *,
        num_cpus: float,
    ) -> None:
        """Start the actors.

        Raises:
            ClusterError, ActorError: they cannot be started.
            DataError: a file cannot be read there.
        """
        self._arguments = [(folder, vectors, [shard], kind) for shard in shards]
        self._num_cpus = num_cpus
        self._witnesses = Witnesses()
        self._services = [self._start(number) for number in range(len(shards))]
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            for service in self._services:
                self._wait(service)
            stack.pop_all()

    def search(self, queries: Floats, k: int, config: IndexConfig, allowed: Mask | None) -> Hits:
        """See `Searches`; an actor that died is started again.

        Raises:
            ActorError: one died again and again.
        """
        arguments = [ray.put(queries), k, config, None if allowed is None else ray.put(allowed)]
        calls = [service.call("search", *arguments) for service in self._services]
        found = [Hits.none(len(queries), k)]
        found += [self._fetched(number, call, arguments) for number, call in enumerate(calls)]
        return merged(found, k)

    def stop(self) -> None:
        """End the actors."""
        for service in self._services:
            service.stop()
        self._witnesses.stop()

    def __enter__(self) -> RemoteShards:
        """The shards themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the actors."""
        self.stop()

    def _start(self, number: int) -> ActorService:
        return ActorService(
            f"search {number}",
            Shards,
            self._arguments[number],
            num_cpus=self._num_cpus,
            strategy="SPREAD",  # each shard fills a machine's memory
        )

    def _wait(self, service: ActorService) -> None:
        service.wait_until_ready()
        if service.place is not None:
            self._witnesses.watch(service.role, service.place)

    def _fetched(
        self, number: int, call: Any, arguments: Sequence[Any], restarts: int = RESTARTS
    ) -> Hits:
        try:
            return fetch(call)
        except (*DEATHS, *LOSSES) as error:
            role = self._services[number].role
            then = "another takes its place" if restarts else "gives up"
            report = explain(error, self._witnesses.facts(role), lost="a search", then=then)
            show(report)
            if not restarts:
                raise ActorError(
                    f"the actor of shard {number} died {RESTARTS + 1} times in one search: "
                    f"{report.detail}. Build more shards, or use machines with more memory."
                ) from error
        self._services[number] = self._start(number)
        self._wait(self._services[number])
        again = self._services[number].call("search", *arguments)
        return self._fetched(number, again, arguments, restarts - 1)


def build(folder: Path, vectors: Vectors, config: IndexConfig, workers: int) -> tuple[Shard, ...]:
    """Build the shards of all vectors of an index; what an interrupted run has built is kept.

    Args:
        folder: of the index.
        vectors: in the same folder.
        config: how.
        workers: Ray tasks side by side; 0: in this process.

    Raises:
        DataError: the settings do not fit the vectors, or the file system refuses a file.
        ActorError: workers died again and again.
    """
    edges = np.linspace(0, vectors.points, min(config.shards, vectors.points) + 1).astype(int)
    ranges = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    if config.kind == "flat":
        return tuple(Shard(begin, end, None, None) for begin, end in ranges)
    if config.kind == "ivf_flat" and vectors.longest > _LARGEST_HALF:
        raise DataError(
            f"{folder}: the longest vector has the norm {vectors.longest:.3g}, which half "
            "precision does not hold. Normalise the vectors, or take another kind than ivf_flat."
        )
    key = _key(vectors, config)
    trained = f"trained-{key}.faiss"
    shards = [
        Shard(begin, end, f"shard-{key}-{number:05d}-of-{len(ranges):05d}.faiss", trained)
        for number, (begin, end) in enumerate(ranges)
    ]
    todo = [shard for shard in shards if not (folder / str(shard.file)).exists()]
    inline = workers == 0
    if not (folder / trained).exists() and vectors.points >= MANY:
        say(f"index     training {config.kind} on a sample of {vectors.points:,} vectors")
    with contextlib.ExitStack() as stack:
        if not inline:
            stack.enter_context(runtime.connection(1.0, settings=["workers"]))
        if not (folder / trained).exists():
            arguments = [(folder / trained, vectors, config)]
            with contextlib.closing(done_in_any_order(train, arguments, inline=inline)) as done_one:
                list(done_one)
        progress = stack.enter_context(Progress("index", len(shards), "shards"))
        tasks = done_in_any_order(
            build_shard, [(folder, vectors, shard) for shard in todo], inline=inline
        )
        done = len(shards) - len(todo)
        for number, _ in enumerate(stack.enter_context(contextlib.closing(tasks)), 1):
            progress.update(done + number)
    return tuple(shards)


def train(file: Path, vectors: Vectors, config: IndexConfig) -> None:
    """Divide the space into lists and codes, by a sample of all vectors; raises as `build`."""
    kinds.save(kinds.trained(config, _sample(vectors, config), vectors.points), file)


def build_shard(folder: Path, vectors: Vectors, shard: Shard) -> None:
    """Build one shard from the trained index that lies beside it."""
    index = kinds.read(folder / str(shard.trained))
    blocks = vectors.blocks(BLOCK, shard.begin, shard.end)
    for _, block in blocks:
        index.add(block)
    kinds.save(index, folder / str(shard.file))


def _sample(vectors: Vectors, config: IndexConfig) -> Floats:
    """Vectors to train on, drawn uniformly from all parts; a few for what needs no training."""
    wanted = config.sample_for(vectors.points)
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(vectors.points, wanted, replace=False))
    result = np.empty((wanted, vectors.width), np.float32)
    for first, block in vectors.blocks(BLOCK):
        begin, end = np.searchsorted(chosen, [first, first + len(block)])
        result[begin:end] = block[chosen[begin:end] - first]
    return result


def _key(vectors: Vectors, config: IndexConfig) -> str:
    """A hash of all that decides what the shards hold."""
    parts = [(part.name, part.size) for part in vectors.parts]
    content = json.dumps([config.model_dump(exclude=_OF_SEARCH), parts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
