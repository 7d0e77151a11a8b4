"""Settings of an index that judged queries decide: the weight of words, and how far to look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from farreach.config import Config
from farreach.errors import ConfigError
from farreach.index.fusion import Kind
from farreach_workloads.retrieval.evaluation.asked import Asked, curve
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.indexes import FusionConfig, keep_fusion
from farreach_workloads.retrieval.searcher import Searcher


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
        recall = searcher.index.tune(searcher.encode(asked.texts), recall=config.recall)
    found = curve(asked, asked.ask(searcher, FusionConfig().depth, "hybrid"), config.fusion)
    weight = max(found, key=lambda one: found[one])
    tuned_by = f"{queries}, {config.split}, {len(asked.names)} queries"
    keep_fusion(folder, FusionConfig(weight=weight, kind=config.fusion, tuned_by=tuned_by))
    return Tuned(weight, found, recall)
