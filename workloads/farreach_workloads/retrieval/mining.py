"""Hard negatives: texts that an encoder finds for a question although they do not answer it.

Of the first hits of each question those are left out that may well answer it: what reads as one of
its answers, what shares most of its words with one, and what scores nearly as high as the best of
them. Sources: Contriever, arXiv:2112.09118 (A.2), for the two phases; NV-Retriever,
arXiv:2407.15831, for the limit that goes by the score of the answer.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from farreach import runtime
from farreach.actors.pool import pulled
from farreach.checkpoint import Checkpoint
from farreach.cluster.demand import Demand
from farreach.config import Config
from farreach.console import say
from farreach.data.wordpieces import WordPieces
from farreach.errors import ConfigError
from farreach.index.files import written_aside
from farreach.index.lexical import Bm25
from farreach.index.vectors import Vectors
from farreach.progress import Progress
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation
from farreach_workloads.retrieval import models, stores
from farreach_workloads.retrieval.embed import embed
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.jobs import OF_RANKING, EmbedConfig, job_of
from farreach_workloads.retrieval.labelled import Row, rows_of
from farreach_workloads.retrieval.miner import Miner, Search, counts_of, is_done, part_file
from farreach_workloads.retrieval.stores import key_of
from farreach_workloads.retrieval.supervision import LabelledConfig, Source, source_of

# Questions that are searched at a time, whose hits are in memory.
ASKED = 1024
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

    The corpus is embedded once for every encoder; what is there already is used. Questions are
    searched for in blocks, by `embedding.workers` actors if there are any; what an interrupted call
    has found is kept in the cache.

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
        ActorError, ClusterError: as `embed` does.
    """
    file = mined_file(encoder, words, source, config, cache)
    vectors = corpus_vectors(encoder, words, _corpus_of(source), config.embedding, cache)
    lexical = _lexical(vectors, cache) if config.by == "words" else None
    rows = [row for row in rows_of(*source.rows) if row.positives]
    blocks = [rows[begin : begin + ASKED] for begin in range(0, len(rows), ASKED)]
    parts = cache / f"{file.stem}-parts"
    parts.mkdir(parents=True, exist_ok=True)
    _mine_missing(blocks, parts, Search(vectors.path, lexical, config, parts))
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = Counter[str]()
    with written_aside(out) as aside, aside.open("wb") as whole:
        for number in range(len(blocks)):
            counts.update(counts_of(parts, number))
            with part_file(parts, number).open("rb") as part:
                shutil.copyfileobj(part, whole)
    shutil.rmtree(parts, ignore_errors=True)
    say(f"mined     {out}")
    return _summary(counts)


def _mine_missing(blocks: Sequence[Sequence[Row]], parts: Path, search: Search) -> None:
    """Have the blocks that have no part yet searched for, by actors if there are to be any."""
    settings = search.config.embedding
    todo = [number for number in range(len(blocks)) if not is_done(parts, number)]
    if not todo:
        return
    done = sum(map(len, blocks)) - sum(len(blocks[number]) for number in todo)
    with contextlib.ExitStack() as stack:
        if settings.workers:
            workers = min(settings.workers, len(todo))
            needed = [Demand("worker", workers, {"CPU": settings.cpus, "GPU": settings.gpus})]
            names = [f"embedding.{name}" for name in ("workers", "cpus", "gpus")]
            stack.enter_context(runtime.connection(needed, settings=names))
        progress = stack.enter_context(Progress("mine", sum(map(len, blocks)), "questions"))
        messages = pulled(
            Miner,
            (search,),
            [(number, blocks[number]) for number in todo],
            workers=settings.workers,
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_failures=settings.max_failures,
        )
        for index, told in stack.enter_context(contextlib.closing(messages)):
            if told is None:
                done += len(blocks[todo[index]])
                progress.update(done)


def _summary(counts: Counter[str]) -> dict[str, float]:
    questions = max(1, counts["questions"])
    return {
        "mining/questions": float(counts["questions"]),
        "mining/negatives": counts["negatives"] / questions,
        "mining/questions_without": float(counts["without"]),
        "mining/left_out_as_answers": counts["golds"] / questions,
        "mining/left_out_as_near_an_answer": counts["near"] / questions,
        "mining/left_out_by_score": counts["high"] / questions,
        "mining/answered_at_once": counts["first"] / questions,
    }


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


def _lexical(vectors: Vectors, cache: Path) -> Path:
    """The words of embedded documents, by the same rows, in a folder beside their vectors."""
    out = cache / f"bm25-{vectors.path.name}"
    if not out.is_dir():
        say(f"words     counting those of {vectors.count:,} documents → {out}")
        blocks = (
            vectors.documents(np.arange(begin, min(begin + _READ, vectors.count)))
            for begin in range(0, vectors.count, _READ)
        )
        Bm25.build(chain.from_iterable(blocks), out)
    return out


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
