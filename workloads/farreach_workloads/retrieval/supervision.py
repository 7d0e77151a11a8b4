"""What supervised training begins with: an encoder, and labelled texts that are tokenised once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from farreach import seeding
from farreach.data import text
from farreach.data.fetched import here, local
from farreach.data.text import Document
from farreach.data.wordpieces import WordPieces
from farreach.errors import ConfigError
from farreach.learn.order import Rows
from farreach_workloads.retrieval import stores
from farreach_workloads.retrieval.config import RetrievalConfig, TextConfig
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig, TextEncoder, whole_path
from farreach_workloads.retrieval.evaluation.beir import QRELS_FOLDER
from farreach_workloads.retrieval.hub import make_encoder, reset_dropout
from farreach_workloads.retrieval.labelled import LAYOUTS, NegativesConfig, is_beir, rows_of
from farreach_workloads.retrieval.labelled_store import LabelledStore, build
from farreach_workloads.retrieval.models import open_model
from farreach_workloads.retrieval.stores import key_of
from farreach_workloads.retrieval.task import spread


class LabelledConfig(NegativesConfig):
    """Questions to learn from, and the word pieces that all is cut into."""

    path: str | None = None
    """Rows (`.jsonl`, `.jsonl.gz`, `.json`), or a folder in the layout of BEIR. None: the shipped
    extract of Debian's package descriptions."""
    split: str = "train"
    """Of a folder."""
    questions: int | None = Field(None, ge=1)
    """How many to learn from, spread evenly over all; None: all."""
    dev: str | None = None
    """What is held out: another split of the folder, or another file or folder. None: `held_out` of
    the rows."""
    held_out: float = Field(0.1, ge=0, lt=1)
    corpus: str | None = None
    """Texts that negatives are drawn from and looked for in, as `data.path` of pretraining; rows
    with negatives of their own draw from those. None: the documents of the folder, if it is one."""
    longest: int = Field(256, ge=3)
    """Tokens of a text, at most."""
    normalised: bool = False
    """Bring hyphens, quotation marks and the like into one form first, as Contriever's code always
    does here."""
    words: str | None = None
    """Vocabulary, where the run begins with no encoder that has one; None: trained on the corpus,
    as the next three say."""
    vocabulary: int = Field(30_522, ge=10)
    kind: Literal["wordpiece", "unigram"] = "wordpiece"
    lower: bool = True
    cache: str = "runs/cache"
    """Where what is made is kept; every worker must see it."""

    _whole = field_validator("path", "corpus", "words")(whole_path)
    _on_this_machine = field_validator("cache")(local)

    @field_validator("dev")
    @classmethod
    def _whole_dev(cls, dev: str | None) -> str | None:
        """A file or folder has a slash or an ending, which names of splits have not."""
        is_path = dev is not None and ("/" in dev or dev.endswith(LAYOUTS))
        return whole_path(dev) if is_path else dev


@dataclass(frozen=True)
class Source:
    """Where labelled texts come from.

    Attributes:
        rows: a file or a folder, and its split.
        dev: likewise; None if rows are held out.
        corpus: None if there is none.
    """

    rows: tuple[Path, str]
    dev: tuple[Path, str] | None
    corpus: Path | None


def texts_of(source: Source) -> dict[str, Path]:
    """The files and folders of a source, each with a name."""
    found = {"rows": source.rows[0], "dev": source.dev and source.dev[0], "corpus": source.corpus}
    return {name: path for name, path in found.items() if path}


def source_of(config: LabelledConfig) -> Source:
    """Where a config says they come from; raises ConfigError for what is not there.

    The extract is unpacked into the cache when it is first asked for.
    """
    path = extract.folder(Path(config.cache)) if config.path is None else here(config.path)
    dev = None
    if config.dev is not None:
        is_split = (path / QRELS_FOLDER / f"{config.dev}.tsv").is_file()
        dev = (path if is_split else here(config.dev), config.dev if is_split else config.split)
    corpus = None if config.corpus is None else here(config.corpus)
    if corpus is None and is_beir(path):
        corpus = path
    for name, place in (("path", path), ("dev", dev and dev[0]), ("corpus", corpus)):
        if place is not None and not place.exists():
            raise ConfigError(f"data.{name}: {place} is not there. Correct the path.")
    return Source((path, config.split), dev, corpus)


def prepared(config: LabelledConfig, words: WordPieces, hard: Path | None = None) -> LabelledStore:
    """The labelled texts, tokenised if they are not yet.

    Args:
        config: where they are.
        words: to cut them with.
        hard: a file of rows that takes the place of those to learn from.

    Raises:
        ConfigError: nothing is there.
        DataError: a row is malformed.
    """
    source = source_of(config)
    rows = source.rows if hard is None else (hard, "")
    places = [rows[0], source.dev and source.dev[0], source.corpus]
    prints = [place and stores.fingerprint(place) for place in places]
    splits = [rows[1], source.dev and source.dev[1]]
    key = key_of(*prints, *splits, words.fingerprint, config.normalised)
    corpus: Iterable[Document] = () if source.corpus is None else text.documents(source.corpus)
    return build(
        rows_of(*rows),
        () if source.dev is None else rows_of(*source.dev),
        corpus,
        Path(config.cache) / f"labelled-{key}",
        words,
        normalise=config.normalised,
    )


def parted(store: LabelledStore, config: LabelledConfig, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows that are held out, each (any,)."""
    rows, held_out = np.arange(store.count), np.arange(store.count, store.count + store.held_out)
    if not store.held_out:
        mixed = seeding.generator(seed, "held out").permutation(store.count)
        held_out, rows = np.split(
            mixed, [min(round(store.count * config.held_out), len(mixed) - 1)]
        )
        held_out, rows = np.sort(held_out), np.sort(rows)
    if config.questions is not None:
        rows = rows[spread(len(rows), config.questions)]
    return rows, held_out


def begun(
    start: str | None, given: EncoderConfig, data: LabelledConfig, seed: int
) -> tuple[TextEncoder, WordPieces]:
    """The encoder that training begins with, and its vocabulary.

    Args:
        start: a run, or a folder in the layout of Hugging Face; None: what `given` says.
        given: sizes of a new one; and the dropout of any.
        data: the vocabulary of a new one.
        seed: weights of a new one follow from it.

    Raises:
        ConfigError, DataError, CheckpointError: it cannot be made or opened.
    """
    if start is not None:
        encoder, words = open_model(start)
    else:
        corpus = source_of(data).corpus
        texts = TextConfig(
            path=None if corpus is None else str(corpus),
            words=data.words,
            vocabulary=data.vocabulary,
            kind=data.kind,
            lower=data.lower,
            normalised=data.normalised,
            cache=data.cache,
        )
        words = stores.words_of(RetrievalConfig.model_construct(data=texts, encoder=given))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.child_seed(seed, "weights"))
            encoder = make_encoder(given, words)
    reset_dropout(encoder, given.dropout)
    if isinstance(encoder, Bert):
        is_new = start is None and given.path is None
        encoder.train_up_to(max(data.longest, 0 if is_new else encoder.longest))
    return encoder.train(), words
