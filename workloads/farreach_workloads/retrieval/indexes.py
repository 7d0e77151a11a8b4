"""Indexes that can be searched by text: vectors, their encoder, words, and how both are weighed.

```
index/
  manifest.json, part-…, shard-…    vectors and documents; see farreach.index.state
  model/, embedding.json            the encoder for queries, and how texts are prepared
  words.json, words-…               what BM25 needs, unless left out
  fusion.json                       how much words count beside vectors, once tuned
```
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field

from farreach import config as configs
from farreach.config import Config
from farreach.data import text
from farreach.disk import atomic_write
from farreach.errors import ConfigError, DataError
from farreach.index.files import link_or_copy
from farreach.index.fusion import Kind
from farreach.index.kinds import IndexConfig
from farreach.index.store import WASTE, Index
from farreach.index.vectors import Vectors
from farreach_workloads.retrieval import stores, words
from farreach_workloads.retrieval.embed import embed
from farreach_workloads.retrieval.jobs import (
    JOB,
    MODEL,
    EmbedConfig,
    WorkConfig,
    read_job,
    settings_of,
)

FUSION = "fusion.json"
_BLOCK = 8192


class BuildConfig(IndexConfig):
    """Of an index that is built."""

    lexical: bool = True
    """Whether words are indexed too."""
    k1: float = Field(0.9, ge=0)
    """Of BM25: how soon further occurrences of a word in a document count for little."""
    b: float = Field(0.4, ge=0, le=1)
    """Of BM25: how much long documents are marked down."""
    workers: int = Field(0, ge=0)
    """Ray tasks side by side, each builds a shard; 0: this process does it."""


class AddConfig(WorkConfig):
    """Of documents that are added to an index."""

    replace: bool = False
    """Documents whose ids are there take their place; else that is an error."""


class CompactConfig(Config):
    """Of an index that is built anew."""

    workers: int = Field(0, ge=0)
    """Ray tasks side by side, each builds a shard; 0: this process does it."""


class FusionConfig(Config):
    """How two rankings become one; what fusion.json holds."""

    weight: float = Field(0.5, ge=0, le=1)
    """Of the words; the rest is that of the vectors."""
    kind: Kind = "z"
    """By standardised scores, or by ranks (rrf)."""
    depth: int = Field(100, ge=1)
    """Documents of each side, or as many as are asked for if that is more."""
    tuned_by: str | None = None
    """The queries that the weight was chosen by; None: it was not."""


def build(vectors: Path, out: Path, config: BuildConfig) -> Index:
    """Make an index of what `embed` has made; after an interruption the same call goes on.

    Raises:
        DataError: the vectors are missing or unfinished, they do not fit the settings, or `out` has
            an index of another model.
    """
    held = Vectors.open(vectors)
    _adopt_model(vectors, out)
    plain = IndexConfig(**config.model_dump(include=set(IndexConfig.model_fields)))
    index = Index.build(vectors, out, plain, config.workers)
    assert index.model == held.model
    if config.lexical:
        words.build(index, config.k1, config.b)
    else:
        words.forget(index)
    return index


def add(folder: Path, source: Path, settings: Sequence[str] = ()) -> int:
    """Embed documents with an index's model and add them; they are searched at once.

    After an interruption it goes on where it was when it is called again.

    Args:
        folder: of the index.
        source: see `farreach.data.text`.
        settings: of `AddConfig`, as `key=value`.

    Returns:
        How many there are.

    Raises:
        DataError: the source is malformed, or an id is there already and is not to be replaced.
    """
    config = configs.from_words(settings, AddConfig)
    index = Index.open(folder)
    before = settings_of(read_job(folder)).model_dump()
    work = config.model_dump(exclude={"replace"})
    if not source.exists():
        raise DataError(f"{source}: there is nothing. Correct the path.")
    working = folder / f"added-{stores.fingerprint(source)[:12]}"
    if not (config.replace or working.exists()):  # before anything is computed that would be lost
        names = (document.id for document in text.documents(source))
        while some := list(itertools.islice(names, _BLOCK)):
            index.refuse_known(some)
    vectors = embed(folder / MODEL, source, working, EmbedConfig(**(before | work)))
    if not index.holds(working):  # else it was interrupted when they had just been added
        index.add(working, replacing=config.replace)
    words.refresh(index)
    for left in folder.glob("added-*"):
        shutil.rmtree(left, ignore_errors=True)
    return vectors.count


def delete(folder: Path, ids: Sequence[str]) -> None:
    """Have documents no longer found; raises DataError if one is unknown, and deletes none then."""
    Index.open(folder).delete(ids)


def merge(folders: Sequence[Path], out: Path) -> Index:
    """One index of several of one model, in their order; after an interruption it is done again.

    Raises:
        DataError: they do not fit together, or a document is in several.
    """
    first = folders[0]
    for folder in folders:
        Index.open(folder)
        _refuse_other_texts(first, folder)
    _adopt_model(first, out)
    index = Index.merge(folders, out)
    counted = [words.settings(Index.open(folder)) for folder in folders]
    if counted[0] is not None and None not in counted:
        words.build(index, *counted[0])
    else:
        words.forget(index)
    if (first / FUSION).is_file():
        atomic_write(out / FUSION, (first / FUSION).read_text())
    return index


def compact(folder: Path, settings: Sequence[str] = ()) -> None:
    """Build an index anew from all documents that can be found.

    Args:
        folder: of the index.
        settings: of `CompactConfig`, as `key=value`.

    Raises:
        ConfigError: there is no such setting.
        DataError: none is left, or another process is at it.
    """
    config = configs.from_words(settings, CompactConfig)
    index = Index.open(folder)
    index.compact(config.workers)
    words.refresh(index)


def fusion_of(folder: Path) -> FusionConfig:
    """How words and vectors of an index are weighed; raises DataError if its file is damaged."""
    file = folder / FUSION
    if not file.is_file():
        return FusionConfig()
    try:
        return FusionConfig.model_validate(json.loads(file.read_text()))
    except ValueError as error:
        raise DataError(f"{file}: is damaged: {error}. Delete it, or tune the index.") from error


def keep_fusion(folder: Path, fusion: FusionConfig) -> None:
    """Have an index weighed like this from now on."""
    atomic_write(folder / FUSION, json.dumps(fusion.model_dump(), indent=2) + "\n")


def facts(folder: Path) -> Iterable[tuple[str, str]]:
    """What an index holds, each with a name."""
    index, job = Index.open(folder), read_job(folder)
    config = index.config
    lists = f", {config.probes} of its lists are looked at" if config.kind.startswith("ivf") else ""
    yield "index", str(folder)
    yield "documents", f"{index.count:,}"
    unit = ", of length 1" * index.state.normalised
    yield "vectors", f"{index.state.points:,} of {index.width:,} numbers each{unit}"
    yield "kind", f"{config.kind}, {max(1, len(index.state.shards))} shards{lists}"
    yield "model", f"{index.model[:12]} in {folder / MODEL}"
    settings = settings_of(job)
    shown = ["longest", "lower", "normalise", "no_title", "passage"]
    shown += ["whole"] if settings.passage else []
    yield "texts", ", ".join(f"{name}={getattr(settings, name)}" for name in shown)
    yield "metadata", ", ".join(index.vectors.columns[3:]) or "none"
    lexical, fusion = words.opened(index), fusion_of(folder)
    counted = "none" if lexical is None else f"of {lexical.documents:,} documents"
    if lexical is None and words.settings(index) is not None:
        counted = "out of date: compact the index"
    yield "words", counted
    tuned = f"tuned by {fusion.tuned_by}" if fusion.tuned_by else "not tuned"
    yield "weight", f"{fusion.weight:g} of words beside vectors ({fusion.kind}), {tuned}"
    waste = ": compact it" if index.waste > WASTE else ""
    yield "to tidy", f"{index.waste:.0%} of it is deleted or not indexed{waste}"


def _adopt_model(source: Path, out: Path) -> None:
    """Put the encoder of embedded documents, or of an index, into an index's folder."""
    if not (source / MODEL).is_dir():
        raise DataError(f"{source}: has no folder {MODEL}. Give what `farreach embed` made.")
    read_job(source)
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out}: is one of the folders to read. Name another to make.")
    if (out / JOB).is_file():
        _refuse_other_texts(source, out)
    for file in sorted((source / MODEL).rglob("*")):
        if file.is_file():
            target = out / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, target)
    atomic_write(out / JOB, (source / JOB).read_text())


def _refuse_other_texts(first: Path, second: Path) -> None:
    """Refuse a folder whose documents were made by another model, or from otherwise made texts."""
    one, other = read_job(first), read_job(second)
    if one["model"] != other["model"]:
        raise DataError(
            f"{second}: is of another model than {first} ({other['model'][:12]} and "
            f"{one['model'][:12]}). Embed the documents of both with one, or name another folder."
        )
    for name in EmbedConfig.model_fields:
        ours, theirs = (getattr(settings_of(job), name) for job in (one, other))
        if name not in WorkConfig.model_fields and ours != theirs and name != "stored":
            raise DataError(
                f"{second}: was embedded with {name}={theirs}, and {first} with {name}={ours}. "
                "Embed the documents of both alike."
            )
