"""How well an encoder finds documents: by vectors, by words and by both, on a set of BEIR's layout.

Embedded documents and indexes are kept, named by the model, the text and the settings, so that an
evaluation that was interrupted goes on, and another of the same documents begins at the search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from farreach.checkpoint import Checkpoint
from farreach.console import say, warn
from farreach.data.fetched import here
from farreach.disk import atomic_write
from farreach.errors import ConfigError, DataError
from farreach.index.fusion import Kind
from farreach.index.gains import Floats
from farreach.index.hits import Hits
from farreach.index.kinds import IndexConfig
from farreach.index.store import Index
from farreach.index.vectors import MANIFEST
from farreach.provenance import installed_versions
from farreach.rundir import RunDirectory
from farreach_workloads.retrieval import indexes, models, words
from farreach_workloads.retrieval.corpora.downloaded import MR_TYDI_TITLE
from farreach_workloads.retrieval.corpora.layout import is_titled
from farreach_workloads.retrieval.embed import embed
from farreach_workloads.retrieval.encoder import whole_path
from farreach_workloads.retrieval.evaluation import trec
from farreach_workloads.retrieval.evaluation.asked import Asked, curve
from farreach_workloads.retrieval.evaluation.beir import (
    QRELS_FOLDER,
    BeirSet,
    macro_average,
    open_beir,
    parts_of,
)
from farreach_workloads.retrieval.evaluation.measures import Wanted, means, measured_run, wanted
from farreach_workloads.retrieval.evaluation.published import BEIR, MR_TYDI, Table, beside
from farreach_workloads.retrieval.evaluation.significance import Comparison, compared
from farreach_workloads.retrieval.jobs import EmbedConfig, job_of
from farreach_workloads.retrieval.models import Model
from farreach_workloads.retrieval.searcher import Mode, Searcher, Sides
from farreach_workloads.retrieval.task import probe_folder

Metrics = dict[str, float]

COMPARED: Final = "ndcg@10"
DEPTH = 100


class EngineConfig(EmbedConfig, IndexConfig):
    """Of an evaluation: how documents are embedded and indexed, and what is searched by."""

    modes: tuple[Mode, ...] = ("dense", "lexical", "hybrid")
    """By vectors, by words, and by both."""
    fusion: Kind = "z"
    """Of hybrid: by standardised scores, or by ranks (rrf)."""
    weight: float | None = Field(None, ge=0, le=1)
    """Of the words in hybrid; None: chosen on another split if there is one, else 0.5."""


class SearchConfig(EngineConfig):
    """Of a search on a set with judgements."""

    path: str | None = None
    """Folder in the layout of BEIR, or one of such folders. None: what is searched in training."""
    split: str | None = None
    """Of the judgements. None: that on which results are published, mostly test."""
    tune_split: str = "dev"
    """On which the weight is chosen, if it is there and is another."""
    measures: tuple[str, ...] = (COMPARED, "recall@100", "mrr@10")
    """Any of ndcg, map, recall, capped_recall, precision, mrr, hit and hole, at any rank."""
    against: str | None = None
    """Run of TREC's form, such as the dense.run of another model's evaluation on the same set, with
    which each mode is compared: difference in nDCG@10, its interval and a paired test."""

    _whole = field_validator("against")(whole_path)

    @field_validator("measures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            wanted(names)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return names


@dataclass(frozen=True)
class Result:
    """What was measured on one set.

    Attributes:
        metrics: `mode/measure` → mean.
        values: by mode and measure, of each query.
        against: by mode, the comparison with another run.
    """

    metrics: Metrics
    values: dict[Mode, dict[str, Floats]]
    against: dict[Mode, Comparison]


def search(
    config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: SearchConfig
) -> Metrics:
    """How well documents are found on a set of BEIR's layout: by vectors, by words and by both."""
    if settings.path is None:
        settings = settings.model_copy(update={"path": str(probe_folder(config))})
    model = models.model_of(run, checkpoint.path)
    out = run.path / "evaluations"
    return search_set(model, settings, run.path / "vectors", out, f"-{checkpoint.step}")


def search_set(
    model: Model | Path, settings: SearchConfig, keep: Path, out: Path, suffix: str = ""
) -> Metrics:
    """Evaluate an encoder, of a run or not.

    Args:
        model: an encoder and its vocabulary, or a run or folder of Hugging Face's layout.
        settings: with a path.
        keep: folder for embedded documents and indexes.
        out: folder in which one is made for each set: runs of TREC, values of each query, facts.
        suffix: of the names of these folders.

    Returns:
        `mode/measure` → mean over queries; of several sets the mean over these.

    Raises:
        ConfigError: there is no path, or no mode.
        DataError: the set is malformed; and as `embed` does.
    """
    if settings.path is None:
        raise ConfigError("path: names no set. Give a folder in the layout of BEIR.")
    if not settings.modes:
        raise ConfigError("modes: there are none. Give dense, lexical, hybrid or several.")
    model = models.open_model(model) if isinstance(model, Path) else model
    top = here(settings.path)
    parts = parts_of(top)
    sets = [one for part in parts.values() for one in part]
    if settings.against is not None and len(sets) > 1:
        raise ConfigError(
            f"against: is the run of one set, and {top} holds {len(sets)}. Evaluate them one by "
            "one, or leave it out."
        )
    results: list[Result] = []
    averages: dict[str, Metrics] = {}
    published: dict[str, Metrics] = {}
    for name, part in parts.items():
        own = []
        for one in part:
            given = open_beir(one, settings.split)
            title = "-".join(dict.fromkeys([top.name, name, one.name]))
            folder = out / f"search-{title}-{given.split}{suffix}"
            own.append(_evaluated(model, given, settings, keep, folder))
        averages[name] = macro_average({str(row): one.metrics for row, one in enumerate(own)})
        published[name] = _comparable(name, averages[name], own)
        results += own
    metrics = macro_average(averages)
    if len(parts) > 1:
        say(f"averages are over {len(parts)} sets: {', '.join(parts)}")
        published[top.name] = metrics
    is_mr_tydi = all(is_titled(one, MR_TYDI_TITLE) for one in sets)
    _say_published(MR_TYDI if is_mr_tydi else BEIR, published)
    return metrics | _compared(results, settings.seed)


def engine(model: Model, source: Path, settings: EngineConfig, keep: Path) -> Searcher:
    """A search engine over a source, embedded and indexed as far as that was not done before.

    Raises:
        DataError, ActorError, ClusterError: see `embed` and `indexes.build`.
    """
    config = EmbedConfig(**settings.model_dump(include=set(EmbedConfig.model_fields)))
    kind = settings.model_dump(include=set(IndexConfig.model_fields))
    folder = keep / _key(job_of(model, source, config))
    embed(model, source, folder / "vectors", config)
    lexical = set(settings.modes) != {"dense"}
    place = folder / f"index-{_key(kind)}"
    if not _is_built(place, lexical):
        indexes.build(
            folder / "vectors",
            place,
            indexes.BuildConfig(**kind, lexical=lexical, workers=settings.workers),
        )
    return Searcher.open(place, device=models.device_here(settings.gpus))


def _evaluated(
    model: Model, given: BeirSet, settings: SearchConfig, keep: Path, out: Path
) -> Result:
    other = None if settings.against is None else trec.read_run(here(settings.against))
    searcher = engine(model, given.path, settings, keep)
    asked = Asked.of(given, searcher.index)
    measures = _measures_of(given, settings)
    depth = max(DEPTH, *(k for cuts in measures.values() for k in cuts))
    sides = asked.ask(searcher, depth, widest(settings.modes))
    if "hybrid" in settings.modes:
        _weigh(searcher, given, settings, depth)
    out.mkdir(parents=True, exist_ok=True)
    asked_for = {COMPARED, *settings.measures}
    values: dict[Mode, dict[str, Floats]] = {}
    for mode in settings.modes:
        hits = searcher.joined(of_mode(sides, mode), depth)
        run = trec.run_of(asked.names, hits, searcher.index.ids)
        trec.write_run(out / f"{mode}.run", run, f"farreach-{mode}")
        # Of equal scores first the one that trec_eval takes for it, which reads the same file.
        values[mode] = measured_run(trec.ranked(run), given.relevant, measures)
    trec.write_qrels(out / "judgements.qrels", given.relevant)
    metrics = {
        f"{mode}/{name}": value
        for mode, own in values.items()
        for name, value in means(own).items()
        if name in asked_for
    }
    metrics |= {"search/queries": float(len(asked.names)), "search/documents": float(given.count)}
    if "hybrid" in settings.modes:
        metrics["hybrid/weight"] = searcher.fusion.weight
    against = _against(other, given, values, settings) if other is not None else {}
    for mode, found in against.items():
        metrics |= _flat(f"{mode}_against_other", found)
    result = Result(metrics, values, against)
    _write(out, given, asked, searcher, settings, result)
    return result


def _weigh(searcher: Searcher, given: BeirSet, settings: SearchConfig, depth: int) -> None:
    """Set the weight of words: as given, or the best on another split with as many candidates."""
    weight, tuned_by = settings.weight, None
    other = given.path / QRELS_FOLDER / f"{settings.tune_split}.tsv"
    if weight is None and settings.tune_split != given.split and other.is_file():
        asked = Asked.of(open_beir(given.path, settings.tune_split), searcher.index)
        found = curve(asked, asked.ask(searcher, depth, "hybrid"), settings.fusion)
        weight = max(found, key=lambda one: found[one])
        tuned_by = f"{settings.tune_split}, {len(asked.names)} queries"
    elif weight is None:
        weight = indexes.FusionConfig().weight
        warn(f"warning: {given.path}: no split to choose the weight of words on; it is {weight:g}")
    searcher.fusion = indexes.FusionConfig(weight=weight, kind=settings.fusion, tuned_by=tuned_by)


def _write(
    out: Path,
    given: BeirSet,
    asked: Asked,
    searcher: Searcher,
    settings: SearchConfig,
    result: Result,
) -> None:
    """Values of each query, and what they were measured on."""
    lines = []
    for number, (name, text) in enumerate(zip(asked.names, asked.texts, strict=True)):
        own = {
            mode: {measure: _plain(value[number]) for measure, value in values.items()}
            for mode, values in result.values.items()
        }
        lines.append(json.dumps({"_id": name, "text": text, **own}, ensure_ascii=False) + "\n")
    atomic_write(out / "queries.jsonl", "".join(lines))
    comparison = _comparison([result], settings.seed)
    about = {
        "set": str(given.path),
        "split": given.split,
        "files": given.hashes,
        "unknown_queries": given.unknown_queries,
        "unknown_documents": given.unknown_documents,
        "model": searcher.index.model,
        "settings": settings.model_dump(),
        "fusion": searcher.fusion.model_dump(),
        "metrics": result.metrics,
        "hybrid_against_lexical": None if comparison is None else asdict(comparison),
        "against": {mode: asdict(one) for mode, one in result.against.items()},
        "versions": installed_versions(),
    }
    atomic_write(out / "about.json", json.dumps(about, indent=2) + "\n")
    say(f"per query, and runs of TREC: {out}")


def _compared(results: Sequence[Result], seed: int) -> Metrics:
    found = _comparison(results, seed)
    return {} if found is None else _flat("hybrid_against_lexical", found)


def _flat(name: str, found: Comparison) -> Metrics:
    return {
        f"{name}/difference": found.difference,
        f"{name}/low": found.low,
        f"{name}/high": found.high,
        f"{name}/p": found.p,
    }


def _against(
    other: trec.Run,
    given: BeirSet,
    values: Mapping[Mode, Mapping[str, Floats]],
    settings: SearchConfig,
) -> dict[Mode, Comparison]:
    """Each mode compared with another run on the same queries; those it lacks found nothing."""
    if not given.relevant.keys() & other.keys():
        raise DataError(
            f"{settings.against}: has none of the {len(given.relevant)} queries of {given.path} "
            f"({given.split}). Give a run of the same set and split."
        )
    theirs = measured_run(trec.ranked(other), given.relevant, {"ndcg": [10]})[COMPARED]
    counted = ~np.isnan(theirs)
    return {
        mode: compared(own[COMPARED][counted], theirs[counted], settings.seed)
        for mode, own in values.items()
    }


def _measures_of(given: BeirSet, settings: SearchConfig) -> Wanted:
    """What is measured of a set: what is asked for, and what is published instead of that."""
    published = [BEIR.as_measured(given.path.name, name) for name in settings.measures]
    return wanted([*settings.measures, *published])


def _comparable(name: str, metrics: Metrics, results: Sequence[Result]) -> Metrics:
    """What was measured of a set, by the names under which the like is published of it."""
    found = dict(metrics)
    for key in metrics:
        mode, _, measure = key.partition("/")
        other = BEIR.as_measured(name, measure)
        if other != measure:
            own = [means(one.values[mode])[other] for one in results if mode in one.values]
            found[key] = sum(own) / len(own)
    return found


def _say_published(table: Table, results: Mapping[str, Metrics]) -> None:
    """Set beside what is published on common sets what vectors alone have found, if they did."""
    for measure, published in table.values.items():
        measured = {
            name: one[f"dense/{measure}"]
            for name, one in results.items()
            if name in published and f"dense/{measure}" in one
        }
        if measured:
            say(beside(measured, measure, table))


def _comparison(results: Sequence[Result], seed: int) -> Comparison | None:
    """Of nDCG@10 of both over that of words, over all queries; None if it lacks one of them."""
    if not {"hybrid", "lexical"} <= results[0].values.keys():
        return None
    both, alone = (
        np.concatenate([result.values[mode][COMPARED] for result in results])
        for mode in ("hybrid", "lexical")
    )
    counted = ~np.isnan(both)
    return compared(both[counted], alone[counted], seed)


def widest(modes: Sequence[Mode]) -> Mode:
    """The mode that asks every side which one of these asks."""
    return modes[0] if len(set(modes)) == 1 else "hybrid"


def of_mode(sides: Sides, mode: Mode) -> Sides:
    """The sides that a mode asks, of all that were asked."""
    dense: Hits | None = None if mode == "lexical" else sides.dense
    return Sides(dense, None if mode == "dense" else sides.lexical)


def _is_built(place: Path, lexical: bool) -> bool:
    if not (place / MANIFEST).is_file():
        return False
    index = Index.open(place)
    return not lexical or words.opened(index) is not None


def _key(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
