"""What queries decide: the weight of words, how far to look, and which kind of index suits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from farreach.config import Config
from farreach.data.text import documents
from farreach.errors import ConfigError
from farreach.index.compare import Point, compare
from farreach.index.fusion import Kind
from farreach.index.store import Index
from farreach_workloads.retrieval import models
from farreach_workloads.retrieval.embedding import embedded
from farreach_workloads.retrieval.evaluation.asked import Asked, curve
from farreach_workloads.retrieval.evaluation.beir import QUERIES_FILE, open_beir
from farreach_workloads.retrieval.indexes import FusionConfig, keep_fusion
from farreach_workloads.retrieval.jobs import MODEL, texts_config
from farreach_workloads.retrieval.searcher import Searcher

# Queries by which kinds of index are compared.
COMPARED = 1000


class TuneConfig(Config):
    """Of the queries to tune by."""

    split: str = "dev"
    """Of the judgements; not the one that results are reported on."""
    fusion: Kind = "z"
    """Scores that are standardised, or ranks (rrf)."""
    recall: float = Field(0.95, gt=0, le=1)
    """Of kinds that are not exact: share of the truly best ten that a search is to find."""


@dataclass(frozen=True)
class Tuned:
    """What was chosen.

    Attributes:
        weight: of the words.
        curve: mean nDCG@10 by weight.
        recall: share of the truly best ten that is found; None of an exact kind.
    """

    weight: float
    curve: dict[float, float]
    recall: float | None


def compared(vectors: Path, queries: Path) -> Iterator[Point]:
    """Each kind of index of embedded documents, searched for a folder's queries.

    Args:
        vectors: a folder that `embed` has written.
        queries: a folder in the layout of BEIR; judgements do not count.

    Raises:
        DataError: one of the folders is not that.
    """
    encoder, vocabulary = models.open_model(vectors / MODEL)
    texts = [query.text for query in documents(queries / QUERIES_FILE)]
    ids = models.ids_of(texts[:COMPARED], vocabulary, texts_config(vectors), encoder.longest)
    yield from compare(vectors, embedded(encoder, ids))


def tune(folder: Path, queries: Path, config: TuneConfig) -> Tuned:
    """Choose the weight of words by nDCG@10, and keep it in an index's folder.

    Args:
        folder: of the index.
        queries: a folder in the layout of BEIR.
        config: which of its queries, and how.

    Raises:
        ConfigError: the index has no words.
        DataError: the queries are missing or malformed, or of other documents.
    """
    searcher = Searcher.open(folder)
    if searcher.lexical is None:
        raise ConfigError(
            f"{folder}: has no words to weigh, or they are out of date. Make it compact, or build "
            "it with lexical=true."
        )
    asked = Asked.of(open_beir(queries, config.split), searcher.index)
    recall = None
    if searcher.index.config.kind != "flat":
        index = Index.open(folder)
        recall = index.tune(searcher.encode(asked.texts), recall=config.recall)
        searcher.index = index
    found = curve(asked, asked.ask(searcher, FusionConfig().depth, "hybrid"), config.fusion)
    weight = max(found, key=lambda one: found[one])
    tuned_by = f"{queries}, {config.split}, {len(asked.names)} queries"
    keep_fusion(folder, FusionConfig(weight=weight, kind=config.fusion, tuned_by=tuned_by))
    return Tuned(weight, found, recall)
