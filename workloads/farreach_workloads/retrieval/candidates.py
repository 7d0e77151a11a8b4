"""What a first stage finds for some questions, and how well that is put into another order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from farreach.config import Config
from farreach.data.wordpieces import WordPieces
from farreach.index.hits import NO_ROW, Hits, best
from farreach.index.lexical import Bm25
from farreach.index.points import search_documents
from farreach.learn.place import Place
from farreach_workloads.retrieval import models, stores
from farreach_workloads.retrieval.cross_encoder import CrossEncoder, Pair, pair_of, scores_of
from farreach_workloads.retrieval.embedding import embedded
from farreach_workloads.retrieval.encoder import whole_path
from farreach_workloads.retrieval.evaluation.beir import CORPUS_FILE, BeirSet, open_beir
from farreach_workloads.retrieval.evaluation.measures import means, measured
from farreach_workloads.retrieval.evaluation.trec import Run, run_of
from farreach_workloads.retrieval.jobs import EmbedConfig
from farreach_workloads.retrieval.mining import corpus_vectors
from farreach_workloads.retrieval.stores import key_of
from farreach_workloads.retrieval.task import spread


class CandidatesConfig(Config):
    """Whose hits are put into another order."""

    path: str | None = None
    """Folder in the layout of BEIR. None: that of the questions, or the shipped extract."""
    split: str = "test"
    queries: int | None = Field(None, ge=1)
    """Questions, at most, spread evenly; None: all."""
    first: str | None = None
    """Run or folder of Hugging Face's layout, whose encoder searches first. None: BM25."""
    depth: int = Field(100, ge=1)
    """Hits of each question that are put into order."""

    _whole = field_validator("path")(whole_path)
    _whole_run = field_validator("first")(models.whole_run)


class Candidates:
    """The first hits of some questions, to be put into another order.

    Attributes:
        given: the questions, documents and judgements.
        hits: of the first stage, of equal scores the greater id first, as trec_eval has it.
        questions: ids of the questions.
    """

    def __init__(
        self, folder: Path, config: CandidatesConfig, words: WordPieces, longest: int, cache: Path
    ) -> None:
        """Search, and tokenise what was found.

        Args:
            folder: in the layout of BEIR.
            config: how.
            words: of the re-ranker.
            longest: tokens of a pair.
            cache: folder that keeps the index or the vectors.

        Raises:
            ConfigError, CheckpointError: see `models.open_model`.
            DataError: the folder is no such set.
        """
        self.given = found = open_beir(folder, config.split)
        chosen = spread(len(found.queries), config.queries or len(found.queries)).tolist()
        self.questions = names = [list(found.queries)[row] for row in chosen]
        questions = [found.queries[name] for name in names]
        hits = _first_hits(found, config, questions, cache)
        wanted = set(hits.rows.ravel().tolist())
        row_of, texts, self._ids = {}, {}, dict[int, str]()
        for row, document in enumerate(found.documents()):
            row_of[document.id] = row
            if row in wanted:
                texts[row] = document.whole
                self._ids[row] = document.id
        pieces = dict(zip(texts, words.encode(list(texts.values())), strict=True))
        own = np.array([row_of.get(name, NO_ROW) for name in names], np.int64)
        self.hits = _without(hits, own, config.depth)
        falling = sorted(self._ids, key=lambda row: self._ids[row], reverse=True)
        self._places = {row: place for place, row in enumerate(falling)}
        scores, rows = self.hits.scores, self.hits.rows
        order = self._order(scores)
        self.hits = Hits(
            np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        )
        self._relevant = [
            {row_of[one]: grade for one, grade in found.relevant[name].items() if one != name}
            for name in names
        ]
        self._pairs = [
            [pair_of(question, pieces[row], words, longest) for row in self.hits.of(number)[1]]
            for number, question in enumerate(words.encode(questions))
        ]
        self._depth = config.depth

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self._pairs)

    def only(self, count: int) -> None:
        """Keep so many of the questions alone, spread evenly."""
        rows = spread(len(self), count)
        self.hits = Hits(self.hits.scores[rows], self.hits.rows[rows])
        self.questions = [self.questions[row] for row in rows]
        self._relevant = [self._relevant[row] for row in rows]
        self._pairs = [self._pairs[row] for row in rows]

    def scores(self, model: CrossEncoder, place: Place) -> NDArray[np.float32]:
        """Of all hits, (questions, hits), each worker computing a share; -∞ where there is none."""
        result = torch.zeros(self.hits.rows.shape)
        numbers = list(range(len(self)))[place.rank :: place.world]
        pairs: list[Pair] = [pair for number in numbers for pair in self._pairs[number]]
        found = scores_of(model, pairs, device=place.device)
        begin = 0
        for number in numbers:
            count = len(self._pairs[number])
            result[number, :count] = torch.from_numpy(found[begin : begin + count])
            begin += count
        scores = place.sum(result).cpu().numpy()
        return np.where(self.hits.rows < 0, np.float32(-np.inf), scores)

    def measured(self, scores: NDArray[np.float32]) -> dict[str, float]:
        """Quality before (`first/…`) and after, with recall of all that was found beside it."""
        after = np.take_along_axis(self.hits.rows, self._order(scores), 1)
        wanted = {"ndcg": [10], "mrr": [10], "recall": [self._depth]}
        result = {"evaluation/questions": float(len(self))}
        for group, rows in (("first", self.hits.rows), ("evaluation", after)):
            values = means(measured(rows, self._relevant, wanted))
            result |= {f"{group}/{name}": value for name, value in values.items()}
        return result

    def runs(self, scores: NDArray[np.float32]) -> tuple[Run, Run]:
        """What was found before and after, as runs of TREC."""
        before, after = (
            run_of(
                self.questions,
                best(values, self.hits.rows, self.hits.rows.shape[1]),
                lambda rows: [self._ids[row] for row in rows.tolist()],
            )
            for values in (self.hits.scores, scores)
        )
        return before, after

    def ranks(self, scores: NDArray[np.float32]) -> tuple[list[int], list[int]]:
        """Of the right documents that were found: their ranks before and after, from 1 on."""
        places = np.argsort(self._order(scores), axis=1)
        found = [
            (before + 1, int(places[number, before]) + 1)
            for number, rows in enumerate(self.hits.rows.tolist())
            for before, row in enumerate(rows)
            if self._relevant[number].get(row, 0) > 0
        ]
        return [before for before, _ in found], [after for _, after in found]

    def _order(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Columns of the hits as trec_eval reads a run: by falling score, then by falling id."""
        ties = [[self._places.get(row, 0) for row in rows] for rows in self.hits.rows.tolist()]
        return np.lexsort((np.array(ties).reshape(scores.shape), -scores))


def _first_hits(
    found: BeirSet, config: CandidatesConfig, questions: Sequence[str], cache: Path
) -> Hits:
    """One more than are wanted, for a question may be a document itself."""
    corpus, k = found.path / CORPUS_FILE, config.depth + 1
    if config.first is None:
        index = cache / f"bm25-{key_of(stores.fingerprint(corpus))}"
        if not index.exists():
            index.parent.mkdir(parents=True, exist_ok=True)
            Bm25.build(found.documents(), index)
        return Bm25.open(index).search(questions, k)
    encoder, words = models.open_model(config.first)
    how = EmbedConfig()
    vectors = corpus_vectors(encoder, words, corpus, how, cache)
    asked = embedded(encoder, models.ids_of(questions, words, how, encoder.longest))
    return search_documents(vectors, asked, k)


def _without(hits: Hits, own: NDArray[np.int64], depth: int) -> Hits:
    """The first hits that are not the question itself."""
    is_own = (hits.rows == own[:, None]) & (hits.rows != NO_ROW)
    order = np.argsort(is_own, axis=1, kind="stable")[:, :depth]
    rows = np.take_along_axis(np.where(is_own, NO_ROW, hits.rows), order, 1)
    scores = np.take_along_axis(hits.scores, order, 1)
    return Hits(np.where(rows == NO_ROW, np.float32(-np.inf), scores), rows)
