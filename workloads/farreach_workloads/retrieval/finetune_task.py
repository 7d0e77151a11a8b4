"""Supervised fine-tuning as a task: questions with labelled texts in, a searched corpus out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from farreach.data.fetched import here
from farreach.data.wordpieces import WordPieces
from farreach.errors import DataError
from farreach.figures import rendered
from farreach.learn.collectives import collected, gathered_unequal, rank
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.task import Batch, Pixels
from farreach_workloads.retrieval import figures
from farreach_workloads.retrieval.contrast import Pair, batch_loss, spreads
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.embedding import Ids, embedded
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.finetune_config import FinetuneConfig
from farreach_workloads.retrieval.labelled import LabelledData, is_beir
from farreach_workloads.retrieval.mining import mined_file
from farreach_workloads.retrieval.models import open_model
from farreach_workloads.retrieval.packed import exact
from farreach_workloads.retrieval.probe import Others, Probe
from farreach_workloads.retrieval.supervision import begun, parted, prepared, source_of
from farreach_workloads.retrieval.task import make_optimizer, spread

# Questions of the held-out ones whose scores are in memory together.
_SCORED = 1024


class FinetuneTask:
    """Fine-tunes an encoder; see `farreach.learn.task.Task`."""

    companions: Sequence[nn.Module] = ()

    def __init__(
        self, config: FinetuneConfig, kept: tuple[TextEncoder, WordPieces] | None = None
    ) -> None:
        """Open the labelled texts and make the encoder.

        Args:
            config: of the run.
            kept: in place of what the run begins with, where a checkpoint's weights follow.

        Raises:
            ConfigError: settings do not go together, or nothing is where they say.
            DataError: what is there cannot be read.
        """
        self.config = config
        if kept is None:
            kept = begun(starting(config), config.encoder, config.data, config.seed)
        encoder, self.words = kept
        store = prepared(config.data, self.words, hard_file(config))
        rows, held_out = parted(store, config.data, config.seed)
        longest = min(config.data.longest, encoder.longest)
        self.data = LabelledData(store, rows, config.data, self.words, longest, config.seed)
        self.dev = Dev(LabelledData(store, held_out, config.data, self.words, longest, 0))
        self.model: nn.Module = Pair(encoder)
        self.encoder: TextEncoder = encoder
        cache = Path(config.data.cache)
        self.probe = Probe(probe_folder(config), config.probe, self.words, encoder.longest, cache)
        self.others = Others(config.probe, self.words, encoder.longest, cache)

    @property
    def score(self) -> str:
        """Of the probe where it is about these texts, else of the held-out questions."""
        asked = (
            self.config.probe.path is not None
            or probe_folder(self.config) == (source_of(self.config.data).rows[0])
        )
        return "evaluation/ndcg@10" if asked else "dev/mrr"

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over all weights, or ASAM on top of it."""
        return make_optimizer(self.model, self.config)

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of each question's text against all texts of all workers."""
        texts = [(batch["query"], batch["query_length"]), (batch["key"], batch["key_length"])]
        queries, keys = model(texts, self.config.loss.chunk)
        with torch.autocast(queries.device.type, enabled=False):
            loss, metrics = labelled_loss(
                queries,
                keys,
                batch["key_text"],
                batch["answers"],
                self.config.loss.temperature,
            )
        tokens = batch["query_length"].sum() + batch["key_length"].sum()
        negatives = (len(keys) - len(queries)) / len(queries)
        return loss, {
            **metrics,
            **spreads(queries, keys),
            "data/negatives": torch.tensor(negatives, device=loss.device),
            "data/tokens_per_sample": tokens.float() / len(queries),
        }

    def before_update(self, step: int) -> None:
        """Nothing precedes it."""

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """How well held-out questions find their texts, among one another's and in the probe."""
        with place.in_one_piece(self.model):
            encoder = self.encoder.eval()
            found = self.dev.measured(encoder, place)
            vectors = self.probe.vectors(encoder, place)
            others = self.others.measured(encoder, place)
        return found | self.probe.measured(*vectors) | others

    def only(self, count: int) -> None:
        """Evaluate on `count` of the questions alone."""
        self.dev.only(count)
        self.probe.only(count)
        self.others.only(count)

    def pictures(self) -> dict[str, Pixels]:
        """Scores of right and of other documents."""
        return {"evaluation/scores": rendered(figures.similarities(self.probe))}

    def remarks(self) -> Sequence[str]:
        """None."""
        return []

    def state(self) -> dict[str, Any]:
        """None beside the weights."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """None."""


def labelled_loss(
    queries: Tensor, keys: Tensor, texts: Tensor, answers: Tensor, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of each question with all workers' texts (method of Contriever, A.2).

    The texts of all workers come as [right ones of all | wrong ones of all], of any number on each.
    What answers a question, or reads as such, is no negative of it, whoever has brought it along.

    Args:
        queries: (n, width).
        keys: a right text of each question, then this worker's wrong ones, (n + any, width).
        texts: equal where texts read alike, (n + any,) int64.
        answers: that of what answers each question, (n, any) int64.
        temperature: by which scores are divided.

    Returns:
        The mean loss (); and, (): the share of questions whose text has the highest score, and how
        many texts of the batch are no negatives of a question though others' texts.
    """
    everyone, counts = gathered_unequal(exact(keys))
    golds = collected(torch.tensor([len(queries)], device=keys.device)).tolist()
    order = _in_blocks(counts, golds).to(keys.device)
    everyone, alike = everyone[order], collected(texts)[order]
    own = sum(golds[: rank()]) + torch.arange(len(queries), device=keys.device)
    excluded = torch.zeros(len(queries), len(alike), dtype=torch.bool, device=keys.device)
    for column in answers.unbind(1):
        excluded |= column[:, None] == alike
    excluded[torch.arange(len(own), device=keys.device), own] = False
    loss, accuracy = batch_loss(exact(queries), everyone, own, temperature, excluded=excluded)
    return loss, {
        "learner/accuracy": accuracy,
        "data/left_out": excluded.sum(1).float().mean(),
    }


def _in_blocks(counts: Sequence[int], golds: Sequence[int]) -> Tensor:
    """Where the right texts of all workers are, then the wrong ones, (all,)."""
    is_gold = np.concatenate(
        [np.arange(count) < right for count, right in zip(counts, golds, strict=True)]
    )
    return torch.from_numpy(np.argsort(~is_gold, kind="stable"))


class Dev:
    """Held-out questions, each to be told its text among those of all, and a wrong one of each."""

    def __init__(self, data: LabelledData) -> None:
        """Of some rows."""
        self._data, self._rows = data, np.arange(len(data))

    def only(self, count: int) -> None:
        """Ask so many of the questions alone, spread evenly."""
        self._rows = self._rows[spread(len(self._rows), count)]

    def measured(self, encoder: TextEncoder, place: Place) -> dict[str, float]:
        """Accuracy and mean reciprocal rank, each worker encoding a share of the texts.

        Of equal scores the question's own text counts as the last: a collapse is no success.
        """
        store, rows = self._data.store, [self._data.number(int(row)) for row in self._rows]
        if not rows:
            return {}
        golds = [int(store.positives.of(row)[0]) for row in rows]
        wrong = [(*store.negatives.of(row), *store.hard.of(row))[:1] for row in rows]
        keys = np.array([*golds, *(int(number) for one in wrong for number in one)])
        questions = np.asarray(store.questions[rows])
        queries = self._vectors(encoder, questions, place)
        others = self._vectors(encoder, keys, place)
        alike = torch.from_numpy(np.asarray(store.keys[keys]))
        answers = torch.from_numpy(self._data.answers(self._rows))
        ranks = []
        for begin in range(0, len(rows), _SCORED):
            some = slice(begin, begin + _SCORED)
            scores = queries[some] @ others.t()
            own = torch.arange(begin, begin + len(scores))[:, None]
            score = scores.gather(1, own)
            for column in answers[some].unbind(1):
                scores.masked_fill_(column[:, None] == alike, float("-inf"))
            ranks.append(1 + (scores >= score).sum(1))
        found = torch.cat(ranks).double()
        return {
            "dev/accuracy": float((found == 1).double().mean()),
            "dev/mrr": float((1 / found).mean()),
            "dev/questions": float(len(rows)),
        }

    def _vectors(self, encoder: TextEncoder, numbers: Rows, place: Place) -> Tensor:
        own = slice(place.rank, None, place.world)
        texts: list[Ids] = [self._data.text(int(number)) for number in numbers[own]]
        result = torch.zeros(len(numbers), encoder.width)
        if texts:
            result[own] = torch.from_numpy(embedded(encoder, texts, device=place.device))
        return place.sum(result).cpu()


def probe_folder(config: FinetuneConfig) -> Path:
    """What is searched: as configured, the folder with the questions, or the shipped extract."""
    if config.probe.path is not None:
        return here(config.probe.path)
    path = source_of(config.data).rows[0]
    return path if is_beir(path) else extract.folder(Path(config.data.cache))


def hard_file(config: FinetuneConfig) -> Path | None:
    """Rows with the hard negatives that the first phase has found; None: there is one phase."""
    if config.second is None:
        return None
    assert config.second.first is not None, "the driver trains it and says where"
    encoder, words = open_model(config.second.first)
    cache = Path(config.data.cache)
    file = mined_file(encoder, words, source_of(config.data), config.second, cache)
    if not file.is_file():
        raise DataError(
            f"{file}: is not there, with the negatives of {config.second.first}. Go on with the "
            "run; workers need data.cache as a whole path, on storage that all of them share."
        )
    return file


def starting(config: FinetuneConfig) -> str | None:
    """Whose encoder is to learn: that of the first phase, or what `start` says."""
    if config.second is not None and config.second.begins_with == "first":
        return config.second.first
    return config.start
