"""What is searched while training: questions, and documents with the answers among them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farreach.data.digests import digest
from farreach.data.fetched import here
from farreach.data.wordpieces import WordPieces
from farreach.disk import atomic_write
from farreach.learn.health import effective_rank
from farreach.learn.place import Place
from farreach.rundir import RunDirectory
from farreach_workloads.retrieval import stores
from farreach_workloads.retrieval.config import ProbeConfig
from farreach_workloads.retrieval.embedding import Ids, embedded, tokenised
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.evaluation.beir import (
    QRELS_FOLDER,
    files_of,
    open_beir,
    published_split,
)
from farreach_workloads.retrieval.evaluation.measures import means, measured

# Documents whose vectors' effective rank is measured, and hits that are looked at.
RANKED, HITS = 2048, 100
# Characters of a document that stand for it.
TITLE = 80
# Another one where other documents are chosen than before.
FORMAT = 2


class Probe:
    """A small search whose quality is measured again and again.

    Attributes:
        split: of the judgements.
        documents: how many are searched.
        titles: what to call each of them.
        scores: of the last search, (questions, documents); None before it.
    """

    def __init__(
        self, folder: Path, config: ProbeConfig, words: WordPieces, longest: int, cache: Path
    ) -> None:
        """Read and tokenise, or take what is in the cache from before.

        Args:
            folder: in the layout of BEIR.
            config: how much of it.
            words: the encoder's vocabulary.
            longest: tokens of a text that the encoder takes.
            cache: folder that keeps what is read, so that workers don't read all of it again.

        Raises:
            DataError: the folder is no such set.
        """
        config = config.model_copy(update={"split": split_of(folder, config)})
        texts = _kept(folder, config, words, min(longest, config.longest), cache)
        self.split = config.split
        self.names, self.titles = texts.names, texts.titles
        self._rows, self._own = texts.rows, texts.own
        self._queries, self._documents = texts.queries, texts.documents
        self.documents = len(texts.documents)
        self.scores: Tensor | None = None

    def in_words(self, folder: Path) -> str:
        """What is searched, for those who see its measures."""
        return (
            f"searched while training: {folder} ({self.split}), {len(self.names):,} questions "
            f"about {self.documents:,} documents"
        )

    def vectors(self, encoder: TextEncoder, place: Place) -> tuple[Tensor, Tensor]:
        """Of questions and documents, each worker computing a share: (n, width) float32."""
        return (
            self._of(encoder, self._queries, place),
            self._of(encoder, self._documents, place),
        )

    def _of(self, encoder: TextEncoder, texts: list[Ids], place: Place) -> Tensor:
        result = torch.zeros(len(texts), encoder.width)
        own = slice(place.rank, None, place.world)
        if texts[own]:
            result[own] = torch.from_numpy(embedded(encoder, texts[own], device=place.device))
        return place.sum(result).cpu()

    def measured(self, queries: Tensor, documents: Tensor) -> dict[str, float]:
        """Quality of a search among all documents, and how vectors are spread."""
        self.scores = queries @ documents.t()
        # One more than are looked at, for a question may be a document itself.
        best = self.scores.topk(min(HITS + 1, self.documents), dim=1).indices.numpy()
        relevant = [self._rows[name] for name in self.names]
        own = np.array([self._own.get(name, -1) for name in self.names], np.int64)
        wanted = {"ndcg": [10], "recall": [10, HITS], "mrr": [10]}
        found = means(measured(best, relevant, wanted, own))
        return {
            **{f"evaluation/{name}": value for name, value in found.items()},
            "evaluation/effective_rank": effective_rank(documents[:RANKED]),
            "evaluation/documents": float(self.documents),
            "evaluation/questions": float(len(self.names)),
        }

    def pairs(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores of questions with right documents, and with all others, of the last search."""
        assert self.scores is not None
        right, own = (torch.zeros_like(self.scores, dtype=torch.bool) for _ in range(2))
        for query, name in enumerate(self.names):
            right[query, [row for row, grade in self._rows[name].items() if grade > 0]] = True
            if name in self._own:
                own[query, self._own[name]] = True
        return self.scores[right & ~own].numpy(), self.scores[~right & ~own].numpy()

    def only(self, count: int) -> None:
        """Ask so many of the questions alone, spread evenly."""
        rows = _spread(len(self.names), count)
        self.names = [self.names[row] for row in rows]
        self._queries = [self._queries[row] for row in rows]


@dataclass(frozen=True)
class _Texts:
    """What is asked and searched.

    Attributes:
        names: of questions.
        rows: question → row of a document → grade.
        own: question → row of the document that it is itself, of those that are one.
        titles: of documents.
        queries: word pieces of questions.
        documents: word pieces of documents.
    """

    names: list[str]
    rows: dict[str, dict[int, int]]
    own: dict[str, int]
    titles: list[str]
    queries: list[Ids]
    documents: list[Ids]

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        rows = [list(self.rows[name].items()) for name in self.names]
        lines = json.dumps([self.names, rows, self.own, self.titles])
        arrays: dict[str, Any] = {"lines": np.frombuffer(lines.encode(), np.uint8)}
        for name, texts in (("queries", self.queries), ("documents", self.documents)):
            arrays[name] = np.concatenate(texts)
            arrays[f"{name}_ends"] = np.cumsum([len(ids) for ids in texts])
        content = io.BytesIO()
        np.savez(content, **arrays)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, content.getvalue())

    @classmethod
    def load(cls, file: Path) -> _Texts:
        """What was written; raises OSError, ValueError, KeyError or BadZipFile if it is not."""
        with file.open("rb") as opened, np.load(opened) as arrays:
            names, rows, own, titles = json.loads(arrays["lines"].tobytes())
            queries, documents = (
                np.split(arrays[name], arrays[f"{name}_ends"][:-1])
                for name in ("queries", "documents")
            )
        by_name = {name: dict(map(tuple, row)) for name, row in zip(names, rows, strict=True)}
        return cls(names, by_name, own, titles, queries, documents)


def split_of(folder: Path, config: ProbeConfig) -> str:
    """The split that is asked for, or where a set lacks it that on which results are published."""
    published = published_split(folder)
    there = [
        split
        for split in (config.split, published)
        if (folder / QRELS_FOLDER / f"{split}.tsv").is_file()
    ]
    return there[0] if there else config.split


class Others:
    """Further sets that are searched while training; see `ProbeConfig.others`."""

    def __init__(self, config: ProbeConfig, words: WordPieces, longest: int, cache: Path) -> None:
        """As `Probe` does, for each of them."""
        self._probes: dict[str, Probe] = {}
        for name, path in config.others.items():
            self._probes[name] = Probe(here(path), config, words, longest, cache)

    def measured(self, encoder: TextEncoder, place: Place) -> dict[str, float]:
        """Quality of a search in each, as `name/measure`; all workers call it together."""
        found: dict[str, float] = {}
        for name, probe in self._probes.items():
            for key, value in probe.measured(*probe.vectors(encoder, place)).items():
                found[f"{name}/{key.rpartition('/')[2]}"] = value
        return found

    def only(self, count: int) -> None:
        """Ask so many of the questions of each."""
        for probe in self._probes.values():
            probe.only(count)


def note_data(
    run: RunDirectory,
    texts: Mapping[str, Path],
    searched: Path,
    split: str,
    others: Mapping[str, str] | None = None,
) -> None:
    """Note down as an event what a run learns from and is measured on, since sets change.

    Args:
        run: gets the event.
        texts: files or folders by name.
        searched: folder in the layout of BEIR.
        split: of its judgements.
        others: further folders that are searched, by name.
    """
    files = [file for file in files_of(searched, split) if file.is_file()]
    run.event(
        "data",
        texts={name: stores.fingerprint(path) for name, path in texts.items()},
        searched=str(searched),
        files={file.relative_to(searched).as_posix(): digest(file) for file in files},
        others={name: stores.fingerprint(here(path)) for name, path in (others or {}).items()},
    )


def _kept(
    folder: Path, config: ProbeConfig, words: WordPieces, longest: int, cache: Path
) -> _Texts:
    """What was read from these files before, or reads it."""
    files = files_of(folder, config.split)
    if not all(file.is_file() for file in files):
        return _read(folder, config, words, longest)  # which says what is missing
    prints = [stores.fingerprint(file) for file in files]
    settings = config.documents, config.queries, longest
    key = stores.key_of(FORMAT, *prints, words.fingerprint, *settings)
    file = cache / f"probe-{key}.npz"
    with suppress(OSError, ValueError, KeyError, BadZipFile):
        return _Texts.load(file)
    texts = _read(folder, config, words, longest)
    with suppress(OSError):  # a cache that cannot be written to
        texts.save(file)
    return texts


def _read(folder: Path, config: ProbeConfig, words: WordPieces, longest: int) -> _Texts:
    """One pass over the documents, of which only those that are searched are kept."""
    found = open_beir(folder, config.split)
    chosen = _spread(len(found.queries), config.queries)
    names = [list(found.queries)[row] for row in chosen]
    relevant = {name: found.relevant[name] for name in names}
    answers = {d for grades in relevant.values() for d, grade in grades.items() if grade > 0}
    room = max(0, config.documents - len(answers))
    wanted = set(_spread(found.count - len(answers), room))
    right, others = dict[str, str](), dict[str, str]()
    number = 0
    for document in found.documents():
        if document.id in answers:
            right[document.id] = document.whole
            continue
        if number in wanted:
            others[document.id] = document.whole
        number += 1
    texts = dict(sorted(right.items())) | others
    row_of = {name: row for row, name in enumerate(texts)}
    rows = {
        name: {row_of[d]: grade for d, grade in relevant[name].items() if d in row_of}
        for name in names
    }
    return _Texts(
        names,
        rows,
        own={name: row_of[name] for name in names if name in row_of},
        titles=[whole[:TITLE].replace("\n", " ").replace("\t", " ") for whole in texts.values()],
        queries=tokenised([found.queries[name] for name in names], words, longest),
        documents=tokenised(list(texts.values()), words, longest),
    )


def _spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, spread evenly."""
    if not count or not most:
        return []
    found: list[int] = np.linspace(0, count - 1, min(count, most)).astype(np.int64).tolist()
    return found
