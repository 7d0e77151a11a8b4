"""Questions with texts that answer them and texts that do not: read, checked, and drawn from.

A row is as DPR (arXiv:2004.04906) and Contriever (arXiv:2112.09118) have it,

    {"question": …, "positive_ctxs": [{"title": …, "text": …}, …], "negative_ctxs": [as before],
     "hard_negative_ctxs": [as before]}

where titles and negatives may be missing; a file has a row a line, or all of them in one list. A
folder in the layout of BEIR gives the questions of a split with the documents that answer them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from farreach import seeding
from farreach.config import Config
from farreach.data.text import Document
from farreach.data.wordpieces import WordPieces
from farreach.errors import DataError
from farreach.learn.order import Rows
from farreach.learn.task import Batch
from farreach_workloads.retrieval.embedding import Ids, framed
from farreach_workloads.retrieval.evaluation.beir import QUERIES_FILE, open_beir
from farreach_workloads.retrieval.half_characters import half_in
from farreach_workloads.retrieval.labelled_store import LabelledStore

LAYOUTS = (".jsonl", ".jsonl.gz", ".json")
_MEND = "Correct it."
_LISTS = ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs")
_ID_KEYS = ("id", "_id", "passage_id")


@dataclass(frozen=True)
class Row:
    """A question and what is known of some texts.

    Attributes:
        question: not blank.
        positives: texts that answer it; perhaps none.
        negatives: texts that do not.
        hard: texts that do not though they look as if.
    """

    question: str
    positives: tuple[Document, ...]
    negatives: tuple[Document, ...] = ()
    hard: tuple[Document, ...] = ()


class NegativesConfig(Config):
    """Which wrong texts a question brings along, beside those of the other questions."""

    negatives: int = Field(1, ge=0)
    """For each question, at most: as many as its row has."""
    hard_ratio: float = Field(0.1, ge=0, le=1)
    """Probability of each to be a hard one, if there are any."""
    hard_from: int = Field(0, ge=0)
    """Hard ones that are passed over in each row's list, which has the hardest first."""
    pool: Literal["corpus", "answers"] = "corpus"
    """Where rows without negatives of their own have theirs from: any text of the corpus; or what
    answers another question. Where a corpus is small, texts that are drawn again and again and
    never answer come to be disliked, and what held-out questions ask for is among them."""


def is_beir(path: Path) -> bool:
    """Whether it is a folder in the layout of BEIR."""
    return (path / QUERIES_FILE).is_file()


def rows_of(path: Path, split: str) -> Iterator[Row]:
    """All rows of a file, or of a split of a folder.

    Args:
        path: see the module.
        split: counts for a folder alone.

    Raises:
        DataError: it is missing or of no known layout, or a line (of a list: the row that begins
            there) is malformed.
    """
    if path.is_dir():
        yield from _beir_rows(path, split)
        return
    if not path.name.endswith(LAYOUTS):
        raise DataError(
            f"{path}: is of no known layout. Give a file that is named {', '.join(LAYOUTS)}, or a "
            "folder in the layout of BEIR."
        )
    try:
        found = _listed(path) if path.name.endswith(".json") else _lines(path)
        for line, record in found:
            yield _row(f"{path}, line {line}", record)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Give a file that can.") from error


def _beir_rows(path: Path, split: str) -> Iterator[Row]:
    if not is_beir(path):
        raise DataError(f"{path}: has no {QUERIES_FILE}. Give a folder in the layout of BEIR.")
    found = open_beir(path, split)
    named = {name for grades in found.relevant.values() for name in grades}
    documents = {one.id: one for one in found.documents() if one.id in named}
    for name, question in found.queries.items():
        grades = found.relevant[name]
        best = sorted((one for one in grades if grades[one] > 0), key=lambda one: -grades[one])
        yield Row(question, tuple(documents[one] for one in best if one in documents))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError as error:  # no UTF-8 either
                raise DataError(f"{path}, line {number}: is no JSON ({error}). {_MEND}") from error


def _listed(path: Path) -> Iterator[tuple[int, Any]]:
    """The items of a list and the lines that they begin in."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 ({error}). {_MEND}") from error
    decode = json.JSONDecoder().raw_decode
    place = _after_space(content, 0)
    if content[place : place + 1] != "[":
        raise DataError(f"{path}: is to be a list of rows. Name it .jsonl if it has one a line.")
    place, line, counted = _after_space(content, place + 1), 1, 0
    while content[place : place + 1] != "]":
        line, counted = line + content.count("\n", counted, place), place
        try:
            record, place = decode(content, place)
        except ValueError as error:
            raise DataError(f"{path}, line {line}: is no JSON ({error}). {_MEND}") from error
        yield line, record
        place = _after_space(content, place)
        if content[place : place + 1] == ",":
            place = _after_space(content, place + 1)
        elif content[place : place + 1] != "]":
            raise DataError(f"{path}, line {line}: no comma follows this row. {_MEND}")


def _after_space(content: str, place: int) -> int:
    while content[place : place + 1].isspace():
        place += 1
    return place


def _row(where: str, record: Any) -> Row:
    if not isinstance(record, dict):
        raise DataError(f"{where}: is no object but {record!r:.50}. {_MEND}")
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: 'question' is to be a text, not {question!r:.50}. {_MEND}")
    if half := half_in(question):
        raise DataError(f"{where}: 'question' has half a character, {half}. {_MEND}")
    if "positive_ctxs" not in record:
        raise DataError(f"{where}: has no 'positive_ctxs'. {_MEND}")
    return Row(question, *(_contexts(where, name, record.get(name)) for name in _LISTS))


def _contexts(where: str, name: str, value: Any) -> tuple[Document, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: {name!r} is to be a list, not {value!r:.50}. {_MEND}")
    found = []
    for number, one in enumerate(value, 1):
        fields: list[Any] = [None]
        if isinstance(one, dict):
            fields = [one.get("title") or "", one.get("text")]
        if not all(isinstance(field, str) for field in fields) or not "".join(fields).strip():
            raise DataError(
                f"{where}: number {number} of {name!r} is to be an object with a 'text', not "
                f"{one!r:.50}. {_MEND}"
            )
        if half := half_in(*fields):
            raise DataError(f"{where}: {name!r} has half a character, {half}. {_MEND}")
        key = next((key for key in _ID_KEYS if one.get(key) is not None), "")
        found.append(Document(str(one.get(key, "")), *fields))
    return tuple(found)


class Drawn(NamedTuple):
    """Numbers of texts in the store: a question, what answers it, and (k,) that do not."""

    question: int
    gold: int
    negatives: Rows


class LabelledData:
    """Questions with a right text and some wrong ones each; see `farreach.learn.task.Data`."""

    def __init__(
        self,
        store: LabelledStore,
        rows: Rows,
        config: NegativesConfig,
        words: WordPieces,
        longest: int,
        seed: int,
    ) -> None:
        """Of some rows of a store.

        Args:
            store: what they are rows of.
            rows: their numbers, (n,).
            config: which negatives.
            words: the vocabulary that the store was made with.
            longest: tokens of a text, [CLS] and [SEP] included; what is beyond is cut off.
            seed: which texts are drawn follows from it.
        """
        self.store, self._rows, self._config = store, rows, config
        self._words, self._longest, self._seed = words, longest, seed
        self._pool = store.corpus
        if config.pool == "answers":
            answers = [store.positives.of(self.number(row)) for row in range(len(rows))]
            self._pool = np.unique(np.concatenate([np.empty(0, np.int64), *answers]))

    def __len__(self) -> int:
        """How many questions an epoch has."""
        return len(self._rows)

    def number(self, row: int) -> int:
        """Of a row in the store."""
        return int(self._rows[row])

    def draw(self, row: int, position: int) -> Drawn:
        """What a question comes with at a position of the run (Contriever's finetuning_data.py).

        One of the texts that answer it; of each negative it is decided by lot whether it is a hard
        one; those that the row has too few of are replaced by others, or missing. Rows without
        negatives take texts of the pool, if there are any.
        """
        store, config = self.store, self._config
        rng = seeding.generator(self._seed, "labelled", position)
        number = self.number(row)
        positives = store.positives.of(number)
        easy, hard = store.negatives.of(number), store.hard.of(number)[config.hard_from :]
        gold = int(positives[rng.integers(len(positives))])
        hard_ones = min(int(rng.binomial(config.negatives, config.hard_ratio)), len(hard))
        others = config.negatives - hard_ones
        if len(easy):
            drawn = rng.choice(easy, min(others, len(easy)), replace=False)
        else:
            drawn = self._of_pool(rng, others, positives)
        chosen = rng.choice(hard, hard_ones, replace=False)
        return Drawn(int(store.questions[number]), gold, np.concatenate([drawn, chosen]))

    def _of_pool(self, rng: np.random.Generator, count: int, positives: Rows) -> Rows:
        """So many texts that do not read as one of the right ones; fewer if there are no more."""
        pool, keys = self._pool, self.store.keys
        some = rng.choice(len(pool), min(len(pool), count + len(positives)), replace=False)
        texts = np.asarray(pool[some])
        return texts[~np.isin(keys[texts], keys[positives])][:count]

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Questions and keys: a right text of each question, then the negatives of each.

        Returns:
            `query` (n, l) and `key` (n + negatives, l'): ids with [CLS] and [SEP], padded on the
            right; `query_length` (n,) and `key_length` (n + negatives,); `key_text`: equal where
            two keys read alike, (n + negatives,); `answers`: that of all texts which answer each
            question, (n, most), again and again where there are fewer. All int64.
        """
        pairs = zip(rows.tolist(), positions.tolist(), strict=True)
        drawn = [self.draw(row, position) for row, position in pairs]
        golds = np.array([one.gold for one in drawn], np.int64)
        keys = np.concatenate([golds, *(one.negatives for one in drawn)])
        query, query_length = self.padded(np.array([one.question for one in drawn], np.int64))
        key, key_length = self.padded(keys)
        return {
            "query": query,
            "query_length": query_length,
            "key": key,
            "key_length": key_length,
            "key_text": torch.from_numpy(np.asarray(self.store.keys[keys])),
            "answers": torch.from_numpy(self.answers(rows)),
        }

    def text(self, number: int) -> Ids:
        """The tokens of a text of the store, framed and cut."""
        return framed(self.store.text(number), self._words, self._longest)

    def padded(self, numbers: Rows) -> tuple[Tensor, Tensor]:
        """Tokens (n, longest) and lengths (n,) of texts of the store, int64."""
        return padded([self.text(number) for number in numbers.tolist()])

    def answers(self, rows: Rows) -> NDArray[np.int64]:
        """Keys of all texts that answer each question, (n, most); a shorter list begins again."""
        found = [self.store.keys[self.store.positives.of(self.number(int(row)))] for row in rows]
        most = max((len(one) for one in found), default=0)
        return np.stack([np.resize(one, most) for one in found])


def padded(texts: list[Ids]) -> tuple[Tensor, Tensor]:
    """Texts as one tensor (n, longest), zeros on the right, and their lengths (n,); int64."""
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
    return ids, lengths
