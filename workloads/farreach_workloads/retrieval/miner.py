"""One block of questions searched for hard negatives: what is found and what is left out of it.

```
mined-…-parts/
  part-00000.jsonl   rows with their hard negatives, of 1,024 questions
  part-00000.json    what was counted; written last
```
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from farreach.data.text import Document
from farreach.disk import atomic_write
from farreach.index.hits import Hits
from farreach.index.lexical import Bm25
from farreach.index.points import search_documents
from farreach.index.vectors import Vectors
from farreach_workloads.retrieval import models
from farreach_workloads.retrieval.embedding import Ids, embedded
from farreach_workloads.retrieval.jobs import MODEL
from farreach_workloads.retrieval.labelled import Row
from farreach_workloads.retrieval.labelled_store import key_of as text_key

if TYPE_CHECKING:
    from farreach_workloads.retrieval.mining import MiningConfig

ROWS, COUNTS = ".jsonl", ".json"


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes:
        vectors: folder of the embedded corpus.
        lexical: folder of its words, where they say what is hard.
        config: which hits become hard negatives.
        parts: folder for what is found.
    """

    vectors: Path
    lexical: Path | None
    config: MiningConfig
    parts: Path


def part_file(parts: Path, number: int, suffix: str = ROWS) -> Path:
    """The rows of a block, or its counts."""
    return parts / f"part-{number:05d}{suffix}"


def is_done(parts: Path, number: int) -> bool:
    """Whether a block has been searched for."""
    return part_file(parts, number, COUNTS).is_file()


def counts_of(parts: Path, number: int) -> dict[str, int]:
    """What was counted in a block."""
    counts: dict[str, int] = json.loads(part_file(parts, number, COUNTS).read_text())
    return counts


class Miner:
    """Searches for blocks of questions, in an actor or in the driver."""

    def __init__(self, search: Search) -> None:
        """Open what is searched, and the encoder that embedded it."""
        config = search.config
        embedding, workers = config.embedding, config.embedding.workers
        self._parts, self._config = search.parts, config
        self._vectors = Vectors.open(search.vectors)
        self._lexical = None if search.lexical is None else Bm25.open(search.lexical)
        encoder, self._words = models.open_model(search.vectors / MODEL)
        self._device = models.device_here(embedding.gpus)
        self._encoder = encoder.to(self._device).eval()
        self._counts: Counter[str] = Counter()
        if workers:
            torch.set_num_threads(embedding.cpus)

    def __call__(self, number: int, rows: Sequence[Row]) -> Iterator[int]:
        """Write the part of a block: a line for each question, and what was counted; no message."""
        self._counts = Counter()
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.records(rows)]
        atomic_write(part_file(self._parts, number), "".join(lines))
        counts = json.dumps(dict(self._counts))
        atomic_write(part_file(self._parts, number, COUNTS), counts)
        yield from ()

    def records(self, rows: Sequence[Row]) -> Iterator[dict[str, object]]:
        """Rows as they are written."""
        golds = [[one.whole for one in row.positives] for row in rows]
        queries = self._encoded([row.question for row in rows])
        answers = np.split(
            self._encoded([one for texts in golds for one in texts]),
            np.cumsum([len(texts) for texts in golds])[:-1],
        )
        hits, guarded = self._searched([row.question for row in rows], queries)
        numbers = np.unique(hits.rows[hits.rows >= 0])
        found = dict(zip(numbers.tolist(), self._vectors.documents(numbers), strict=True))
        pieces = self._pieces(found)
        keys = {number: text_key(document.whole) for number, document in found.items()}
        for at, row in enumerate(rows):
            best = float((answers[at] @ queries[at]).max())
            scores, own = hits.of(at)
            left = self._left(guarded.of(at)[0], own, best, golds[at], pieces, keys)
            yield {
                "question": row.question,
                "positive_ctxs": [_context(one) for one in row.positives],
                "negative_ctxs": [_context(one) for one in row.negatives],
                "hard_negative_ctxs": [
                    {**_context(found[number]), "score": round(score, 6)}
                    for number, score in zip(own[left].tolist(), scores[left].tolist(), strict=True)
                ],
            }

    def _searched(
        self, questions: Sequence[str], queries: NDArray[np.float32]
    ) -> tuple[Hits, Hits]:
        """The first hits, and the same with the encoder's scores."""
        if self._lexical is None:
            hits = search_documents(self._vectors, queries, self._config.depth)
            return hits, hits
        hits = self._lexical.search(questions, self._config.depth)
        scores, begins = hits.scores.copy(), self._vectors.begins
        for number, query in enumerate(queries):
            rows = hits.of(number)[1]
            counts = begins[rows + 1] - begins[rows]  # of a document's points the best one counts
            firsts = np.cumsum(counts) - counts
            points = np.arange(counts.sum()) + np.repeat(begins[rows] - firsts, counts)
            if len(rows):
                found = self._vectors.at(points) @ query
                scores[number, : len(rows)] = np.maximum.reduceat(found, firsts)
        return hits, Hits(scores, hits.rows)

    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        config = self._config.embedding
        ids = models.ids_of(texts, self._words, config, self._encoder.longest)
        return embedded(self._encoder, ids, device=self._device, budget=config.budget)

    def _pieces(self, found: dict[int, Document]) -> dict[int, Ids]:
        """The different word pieces of documents."""
        if self._config.overlap is None:
            return {}
        ids = self._words.encode([document.whole for document in found.values()])
        return {number: np.unique(one) for number, one in zip(found, ids, strict=True)}

    def _left(
        self,
        scores: NDArray[np.float32],
        own: NDArray[np.int64],
        answer: float,
        golds: Sequence[str],
        pieces: dict[int, Ids],
        keys: dict[int, int],
    ) -> NDArray[np.bool_]:
        """Which hits of a question do not answer it, as far as can be told, (hits,)."""
        config, none = self._config, np.zeros(len(own), np.bool_)
        right = {text_key(one) for one in golds}
        is_gold = np.array([keys[number] in right for number in own.tolist()], np.bool_)
        is_near, is_high = none.copy(), none
        if config.overlap is not None:
            others = [pieces[number] for number in own.tolist()]
            for gold in self._words.encode(golds):
                is_near |= in_common(np.unique(gold), others, self._words.size) >= config.overlap
        if config.guard is not None:
            is_high = scores > answer - (1 - config.guard) * abs(answer)
        is_early = np.arange(len(own)) < config.passed_over
        left = ~(is_early | is_gold | is_near | is_high)
        if config.keep is not None:
            left &= np.cumsum(left) <= config.keep
        self._counts += Counter(
            questions=1,
            first=int(is_gold[:1].sum()),
            negatives=int(left.sum()),
            without=int(not left.any()),
            golds=int(is_gold.sum()),
            near=int((is_near & ~is_gold).sum()),
            high=int((is_high & ~is_near & ~is_gold).sum()),
        )
        return left


def in_common(gold: Ids, others: Sequence[Ids], size: int) -> NDArray[np.float64]:
    """Share of the word pieces that a text has in common with others, of the one with fewer: (n,).

    Args:
        gold: the different pieces of the text, (any,).
        others: those of n others.
        size: of the vocabulary.
    """
    table = np.zeros(size, np.bool_)
    table[gold] = True
    common = np.array([np.count_nonzero(table[one]) for one in others], np.float64)
    least = np.array([max(1, min(len(one), len(gold))) for one in others], np.float64)
    return common / least


def _context(document: Document) -> dict[str, object]:
    return {"id": document.id, "title": document.title, "text": document.text}
