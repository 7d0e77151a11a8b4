"""Hard negatives: texts that an encoder finds for a question although they do not answer it.

Of the first hits of each question those are left out that may well answer it: what reads as one of
its answers, what shares most of its words with one, and what scores nearly as high as the best of
them. Sources: Contriever, arXiv:2112.09118 (A.2), for the two phases; NV-Retriever,
arXiv:2407.15831, for the limit that goes by the score of the answer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from farreach.checkpoint import Checkpoint
from farreach.config import Config
from farreach.console import say
from farreach.data.text import Document
from farreach.data.wordpieces import WordPieces
from farreach.disk import sync
from farreach.errors import ConfigError
from farreach.index.hits import Hits
from farreach.index.lexical import Bm25
from farreach.index.points import search_documents
from farreach.index.vectors import Vectors
from farreach.progress import Progress
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation
from farreach_workloads.retrieval import models, stores
from farreach_workloads.retrieval.embed import embed
from farreach_workloads.retrieval.embedding import Ids, embedded
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.jobs import OF_RANKING, EmbedConfig, job_of
from farreach_workloads.retrieval.labelled import Row, rows_of
from farreach_workloads.retrieval.labelled_store import key_of as text_key
from farreach_workloads.retrieval.stores import key_of
from farreach_workloads.retrieval.supervision import LabelledConfig, Source, source_of

# Questions that are searched at a time, whose hits are in memory.
_ASKED = 4096
# Documents that are read at a time.
_READ = 4096


class MiningConfig(Config):
    """Which hits become hard negatives."""

    by: Literal["vectors", "words"] = "vectors"
    """What is hard: near to the question by the encoder's vectors, or by BM25. The guard goes by
    the encoder's scores in either case."""
    depth: int = Field(200, ge=1)
    """First hits that are looked at."""
    passed_over: int = Field(0, ge=0)
    """The very first ones of these, which are left out."""
    guard: float | None = Field(0.95, gt=0, le=1)
    """Leave out what scores more than this share of the best answer's score. None: nothing."""
    overlap: float | None = Field(0.9, gt=0, le=1)
    """Leave out what has this share of its word pieces in common with an answer, of the one that
    has fewer. None: nothing."""
    keep: int | None = Field(None, ge=1)
    """So many of what is left for each question, the hardest ones. The file has their texts: a
    hundred descriptions for each of 37,000 questions take 1.7 GB. None: all."""
    embedding: EmbedConfig = EmbedConfig(longest=256)
    """How the corpus is embedded."""


def mined_file(
    encoder: TextEncoder, words: WordPieces, source: Source, config: MiningConfig, cache: Path
) -> Path:
    """Where what an encoder finds is kept: other weights, texts or settings give another file.

    Raises:
        ConfigError: there is nothing to search in.
    """
    prints = [stores.fingerprint(place) for place in (source.rows[0], _corpus_of(source))]
    settings = {name: getattr(config, name) for name in MiningConfig.model_fields}
    settings["embedding"] = config.embedding.model_dump(include=OF_RANKING)
    key = key_of(models.fingerprint(encoder, words), *prints, source.rows[1], settings)
    return cache / f"mined-{key}.jsonl"


def mine(
    encoder: TextEncoder,
    words: WordPieces,
    source: Source,
    config: MiningConfig,
    out: Path,
    cache: Path,
) -> dict[str, float]:
    """Write the rows of a source again, each with its hard negatives, the hardest first.

    The corpus is embedded once for every encoder; what is there already is used.

    Args:
        encoder: of questions and documents.
        words: its vocabulary.
        source: rows, and the corpus to search; rows without an answer are left out.
        config: what to keep.
        out: the file, `.jsonl`, which appears when it is whole.
        cache: folder that keeps the vectors of the corpus.

    Returns:
        `mining/…`: questions, hard negatives of each on average, what was left out, and how often
        the best hit is an answer.

    Raises:
        ConfigError: there is no corpus.
        DataError: a row or a document is malformed.
    """
    vectors = corpus_vectors(encoder, words, _corpus_of(source), config.embedding, cache)
    device = models.device_here(config.embedding.gpus)
    lexical = _lexical(vectors, cache) if config.by == "words" else None
    miner = _Miner(encoder.to(device).eval(), words, vectors, lexical, config, device)
    rows = [row for row in rows_of(*source.rows) if row.positives]
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with (
            open(handle, "w", encoding="utf-8") as file,
            Progress("mine", len(rows), "questions") as progress,
        ):
            for begin in range(0, len(rows), _ASKED):
                some = rows[begin : begin + _ASKED]
                for record in miner.records(some):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                progress.update(begin + len(some))
        sync(Path(temporary))
        os.replace(temporary, out)
        sync(out.parent)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    say(f"mined     {out}")
    return miner.summary()


def _corpus_of(source: Source) -> Path:
    if source.corpus is None:
        raise ConfigError("data.corpus: hard negatives need texts to be found in. Name some.")
    return source.corpus


def corpus_vectors(
    encoder: TextEncoder, words: WordPieces, corpus: Path, config: EmbedConfig, cache: Path
) -> Vectors:
    """A corpus embedded, in a folder of the cache where it is found again; raises as `embed`."""
    key = key_of(job_of((encoder, words), corpus, config))
    return embed((encoder, words), corpus, cache / f"vectors-{key}", config)


def _lexical(vectors: Vectors, cache: Path) -> Bm25:
    """The words of embedded documents, by the same rows, in a folder beside their vectors."""
    out = cache / f"bm25-{vectors.path.name}"
    if not out.is_dir():
        say(f"words     counting those of {vectors.count:,} documents → {out}")
        blocks = (
            vectors.documents(np.arange(begin, min(begin + _READ, vectors.count)))
            for begin in range(0, vectors.count, _READ)
        )
        Bm25.build(chain.from_iterable(blocks), out)
    return Bm25.open(out)


class _Miner:
    """Searches for questions, and counts what becomes of the hits."""

    def __init__(
        self,
        encoder: TextEncoder,
        words: WordPieces,
        vectors: Vectors,
        lexical: Bm25 | None,
        config: MiningConfig,
        device: str,
    ) -> None:
        self._encoder, self._words, self._vectors = encoder, words, vectors
        self._lexical = lexical
        self._config, self._device = config, device
        self._counts: Counter[str] = Counter()

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

    def summary(self) -> dict[str, float]:
        """See `mine`."""
        counts, questions = self._counts, max(1, self._counts["questions"])
        return {
            "mining/questions": float(counts["questions"]),
            "mining/negatives": counts["negatives"] / questions,
            "mining/questions_without": float(counts["without"]),
            "mining/left_out_as_answers": counts["golds"] / questions,
            "mining/left_out_as_near_an_answer": counts["near"] / questions,
            "mining/left_out_by_score": counts["high"] / questions,
            "mining/answered_at_once": counts["first"] / questions,
        }


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


class MineConfig(MiningConfig):
    """Of `farreach evaluate RUN mine`."""

    path: str | None = None
    """Rows, or a folder in the layout of BEIR. None: those of the run, or the shipped extract."""
    split: str = "train"
    corpus: str | None = None
    """Where to look. None: in the folder."""
    out: str | None = None
    """The file to write, `.jsonl`; None: in the run."""


def evaluation(
    encoder_of: Callable[[Path, Path], tuple[TextEncoder, WordPieces]],
) -> Evaluation:
    """Mining with the encoder of a run as one of its evaluations; its file is for `data.path`."""

    def mine_with(
        config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: MineConfig
    ) -> dict[str, float]:
        """Hard negatives of labelled questions, for fine-tuning."""
        data = config.data if isinstance(config.data, LabelledConfig) else LabelledConfig()
        data = data.model_copy(update={"cache": config.data.cache})
        if settings.path is not None:
            data = data.model_copy(update={"path": settings.path, "split": settings.split})
        if settings.corpus is not None or settings.path is not None:
            data = data.model_copy(update={"corpus": settings.corpus})
        encoder, words = encoder_of(run.path, checkpoint.path)
        out = run.path / f"mined-{checkpoint.step}.jsonl"
        out = out if settings.out is None else Path(settings.out)
        source = source_of(data.model_copy(update={"dev": None}))
        return mine(encoder, words, source, settings, out, Path(data.cache))

    return Evaluation(mine_with, MineConfig)
