"""Search for texts: queries are encoded with an index's own model, words count beside vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from farreach.data.wordpieces import WordPieces
from farreach.errors import ConfigError, DataError
from farreach.index.fusion import fused
from farreach.index.hits import NO_ROW, Hits, best
from farreach.index.lexical import Bm25
from farreach.index.reader import Reader
from farreach.index.store import Index
from farreach.index.where import selected
from farreach_workloads.retrieval import models, snippets, words
from farreach_workloads.retrieval.embedding import embedded
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.half_characters import half_in
from farreach_workloads.retrieval.indexes import FusionConfig, fusion_of
from farreach_workloads.retrieval.jobs import MODEL, texts_config

Mode = Literal["hybrid", "dense", "lexical"]
Column = Literal["dense", "lexical", "hybrid", "reranked"]
# Documents that are put into another order, at least.
RERANKED = 50
# Of hits by words, so many times as many are looked at until enough may be found.
_MORE = 4
# Metadata by which documents without a title are called.
_NAMES = ("name", "package")


@dataclass(frozen=True)
class Found:
    """A document that was found.

    Attributes:
        rank: from 1 on.
        id: of the document.
        title: of it, "" if it has none.
        snippet: the part of its text with most words of the query.
        score: by which it is ranked.
        dense: inner product of the vectors; None if it was not among the best by that.
        lexical: BM25; None likewise.
        matched: words of the query that it has, lower-cased.
        meta: what else is known of it.
    """

    rank: int
    id: str
    title: str
    snippet: str
    score: float
    dense: float | None
    lexical: float | None
    matched: tuple[str, ...]
    meta: Mapping[str, str]

    @property
    def name(self) -> str:
        """What to call it: its title, what its metadata call it, or its id."""
        return self.title or next((self.meta[key] for key in _NAMES if self.meta.get(key)), self.id)

    def as_row(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)

    def marked(self, text: str, begin: str, end: str) -> str:
        """The title or the snippet with something around the matched words."""
        return snippets.marked(text, self.matched, begin, end)


class Judge(Protocol):
    """Reads a query and documents together, such as a `rerank.Reranker`."""

    def scores(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """How well each document answers the query, more is better, (documents,)."""


@dataclass(frozen=True)
class Sides:
    """What vectors and words find for the same queries; None: that side was not asked."""

    dense: Hits | None
    lexical: Hits | None


class Searcher:
    """Searches an index for texts.

    ```
    searcher = Searcher.open(Path("index"))
    for found in searcher.search(["how to mount a disk"], 10, where="section = 'admin'")[0]:
        print(found.rank, found.title, found.snippet)
    ```

    Attributes:
        index: of vectors and documents.
        lexical: of words; None if there is none, or it is out of date.
        fusion: how the two are weighed; may be set.
        judge: what puts the first hits of a search into another order; None: nothing; may be set.
    """

    def __init__(
        self,
        index: Reader,
        lexical: Bm25 | None,
        encoder: TextEncoder,
        vocabulary: WordPieces,
        texts: models.TextsConfig,
        fusion: FusionConfig,
    ) -> None:
        """Users call `open`."""
        self.index, self.lexical, self.fusion = index, lexical, fusion
        self._encoder, self._words, self._texts = encoder, vocabulary, texts
        self.judge: Judge | None = None

    @classmethod
    def open(cls, folder: Path, *, device: str = "cpu") -> Searcher:
        """The index in a folder, and the encoder beside it.

        Args:
            folder: see `retrieval.indexes`.
            device: where queries are encoded.

        Raises:
            DataError: there is no index, it is damaged, or the encoder is not the one that made its
                vectors.
        """
        index = Index.open(folder)
        encoder, vocabulary = models.open_model(folder / MODEL)
        if encoder.width != index.width:
            raise DataError(
                f"{folder / MODEL}: makes vectors of {encoder.width} numbers, and the index has "
                f"{index.width}. Put the model there that embedded the documents."
            )
        found = models.fingerprint(encoder, vocabulary)
        if found != index.model:
            raise DataError(
                f"{folder / MODEL}: is not the model of the index's vectors ({found[:12]}, and not "
                f"{index.model[:12]}). Put that one there, or embed the documents with this one."
            )
        lexical, texts, fusion = words.opened(index), texts_config(folder), fusion_of(folder)
        return cls(index, lexical, encoder.to(device), vocabulary, texts, fusion)

    def renewed(self) -> Searcher:
        """Of the index as it is now, with the encoder of this one as long as that is its model.

        Raises:
            DataError: see `open`.
        """
        folder, device = self.index.path, self._encoder.words.weight.device
        index = Index.open(folder)
        if index.model == self.index.model:
            facts = words.opened(index), self._encoder, self._words
            other = Searcher(index, *facts, texts_config(folder), fusion_of(folder))
        else:
            other = Searcher.open(folder, device=str(device))
        other.judge = self.judge
        return other

    @contextmanager
    def spread(self, *, num_cpus: float = 1.0) -> Iterator[Searcher]:
        """The same with each shard in a Ray actor of its own, on whichever machine.

        All machines must see the index's folder under the same name.

        Args:
            num_cpus: of each actor.

        Raises:
            ClusterError, ActorError: the actors cannot be started.
        """
        with self.index.serve(num_cpus=num_cpus) as reader:
            other = Searcher(
                reader, self.lexical, self._encoder, self._words, self._texts, self.fusion
            )
            other.judge = self.judge
            yield other

    @property
    def documents(self) -> int:
        """How many can be found."""
        return self.index.count

    def encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of queries, (n, d).

        Raises:
            DataError: one is blank, or has half a character.
        """
        for number, query in enumerate(queries):
            if not query.strip():
                raise DataError(f"query {number}: is empty. Write what is looked for.")
            if half := half_in(query):
                raise DataError(f"query {number}: has half a character, {half}. Write it whole.")
        ids = models.ids_of(queries, self._words, self._texts, self._encoder.longest)
        device = self._encoder.words.weight.device
        return embedded(self._encoder, ids, device=device)

    def mode_for(self, mode: Mode | None) -> Mode:
        """The one that None stands for; raises ConfigError if it needs words and there are none."""
        if mode is None:
            return "dense" if self.lexical is None else "hybrid"
        if mode != "dense" and self.lexical is None:
            raise ConfigError(
                f"{self.index.path}: has no words to search by, or they are out of date. Make it "
                "compact, build it with lexical=true, or search with the mode dense."
            )
        return mode

    def sides(
        self, queries: Sequence[str], depth: int, mode: Mode, where: str | None = None
    ) -> Sides:
        """The best of each side that a mode asks.

        Args:
            queries: n texts.
            depth: documents of each side.
            mode: which sides.
            where: see `farreach.index.where`.

        Raises:
            ConfigError, DataError: see `search`.
        """
        mode = self.mode_for(mode)
        vectors = self.encode(queries)
        dense = lexical = None
        if mode != "lexical":
            dense = self.index.search(vectors, depth, where=where)
        if mode != "dense":
            lexical = self._by_words(queries, depth, where)
        return Sides(dense, lexical)

    def joined(self, sides: Sides, k: int) -> Hits:
        """The best k of two sides, or of the one that was asked."""
        if sides.dense is None or sides.lexical is None:
            one = sides.lexical if sides.dense is None else sides.dense
            assert one is not None
            return best(one.scores, one.rows, k)
        return fused(sides.dense, sides.lexical, k, self.fusion.weight, self.fusion.kind)

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        mode: Mode | None = None,
        where: str | None = None,
    ) -> list[list[Found]]:
        """The best k documents for each query, fewer if a filter or the words leave no more.

        If there is a judge, it reads the first `RERANKED` (or k) of them, and its scores count.

        Args:
            queries: n texts.
            k: how many.
            mode: by vectors, by words or by both; None: by both if words are indexed.
            where: a filter on metadata; see `farreach.index.where`.

        Raises:
            ConfigError: k is below 1 or above the number of documents, or there are no words.
            DataError: a query is blank, or the filter is wrong.
        """
        self._check(k)
        mode = self.mode_for(mode)
        first = self._first(k)
        depth = max(first, self.fusion.depth) if mode == "hybrid" else first
        sides = self.sides(queries, depth, mode, where)
        hits = self._judged(queries, self.joined(sides, first), k)
        return [self._found(query, number, hits, sides) for number, query in enumerate(queries)]

    def compared(self, query: str, k: int, where: str | None = None) -> dict[Column, list[Found]]:
        """What each mode finds that the index has, and a judge's order of the best of them.

        Each side is asked once.

        Args:
            query: a text.
            k: how many documents of each mode.
            where: see `search`.

        Raises:
            ConfigError, DataError: see `search`.
        """
        self._check(k)
        mode, first = self.mode_for(None), self._first(k)
        sides = self.sides([query], max(first, self.fusion.depth), mode, where)
        asked: dict[Column, Sides] = {"dense": Sides(sides.dense, None)}
        if sides.lexical is not None:
            asked |= {"lexical": Sides(None, sides.lexical), "hybrid": sides}
        result = {
            column: self._found(query, 0, self.joined(own, k), own) for column, own in asked.items()
        }
        if self.judge is not None:
            hits = self._judged([query], self.joined(sides, first), k)
            result["reranked"] = self._found(query, 0, hits, sides)
        return result

    def _first(self, k: int) -> int:
        """How many documents are found before a judge leaves k of them."""
        return k if self.judge is None else min(max(k, RERANKED), self.documents)

    def _check(self, k: int) -> None:
        if not 1 <= k <= self.documents:
            raise ConfigError(
                f"k={k}: the index holds {self.documents:,} documents. Ask for 1 to so many."
            )

    def _found(self, query: str, number: int, hits: Hits, sides: Sides) -> list[Found]:
        scores, rows = hits.of(number)
        dense, lexical = (_scores(side, number) for side in (sides.dense, sides.lexical))
        result = []
        documents = self.index.documents(rows)
        for rank, (row, score, document) in enumerate(
            zip(rows.tolist(), scores.tolist(), documents, strict=True), 1
        ):
            matched = snippets.matched(query, document.whole)
            result.append(
                Found(
                    rank,
                    document.id,
                    document.title,
                    snippets.snippet(document.text, matched),
                    score,
                    dense.get(row),
                    lexical.get(row),
                    matched,
                    document.meta,
                )
            )
        return result

    def _judged(self, queries: Sequence[str], hits: Hits, k: int) -> Hits:
        """The best k of these by the judge's scores, of equal ones in the order of before."""
        if self.judge is None:
            return hits
        result = Hits.none(len(queries), k)
        for number, query in enumerate(queries):
            rows = hits.of(number)[1]
            texts = [document.whole for document in self.index.documents(rows)]
            if texts:
                scores = self.judge.scores(query, texts)
                order = np.argsort(-scores, kind="stable")[:k]
                result.scores[number, : len(order)] = scores[order]
                result.rows[number, : len(order)] = rows[order]
        return result

    def _by_words(self, queries: Sequence[str], k: int, where: str | None) -> Hits:
        assert self.lexical is not None
        allowed = self._allowed(where)
        if allowed is None:
            return self.lexical.search(queries, k)
        depth = k
        while True:
            hits = self.lexical.search(queries, depth)
            kept = (hits.rows != NO_ROW) & allowed[hits.rows]
            lack = (kept.sum(1) < k) & (hits.counts() == depth)
            if depth >= self.lexical.documents or not lack.any():
                return best(hits.scores, np.where(kept, hits.rows, NO_ROW), k)
            depth = min(depth * _MORE, self.lexical.documents)

    def _allowed(self, where: str | None) -> NDArray[np.bool_] | None:
        """By row, whether it may be found; None: all may."""
        if where is None and not len(self.index.deleted):
            return None
        rows = self.index.state.rows
        allowed = np.ones(rows, bool)
        if where is not None:
            allowed = selected(where, self.index.vectors.column, rows)
        allowed[self.index.deleted] = False
        return allowed


def _scores(side: Hits | None, query: int) -> dict[int, float]:
    if side is None:
        return {}
    scores, rows = side.of(query)
    return dict(zip(rows.tolist(), scores.tolist(), strict=True))
