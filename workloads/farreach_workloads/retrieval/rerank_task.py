"""Training of a re-ranker as a task: questions with one right and some wrong texts each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from farreach import afterwards, seeding
from farreach import config as configs
from farreach.actors.chaos import ChaosConfig
from farreach.checkpoint import CheckpointStore
from farreach.config import Config
from farreach.data.fetched import here
from farreach.data.wordpieces import WordPieces
from farreach.errors import CheckpointError, ConfigError
from farreach.learn.keeping import as_tensors
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach.learn.shards import whole_state
from farreach.learn.task import Batch, Pixels
from farreach.rundir import LATEST, RunDirectory
from farreach_workloads.retrieval.candidates import Candidates, CandidatesConfig
from farreach_workloads.retrieval.config import RetrievalOptimizerConfig
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.cross_encoder import (
    CrossEncoder,
    is_cross_encoder,
    open_cross_encoder,
    pair_of,
    stacked,
)
from farreach_workloads.retrieval.encoder import EncoderConfig, TextEncoder
from farreach_workloads.retrieval.hub import reset_dropout
from farreach_workloads.retrieval.kept import kept_encoder, with_kept_words
from farreach_workloads.retrieval.labelled import LabelledData, is_beir
from farreach_workloads.retrieval.models import whole_run
from farreach_workloads.retrieval.supervision import (
    LabelledConfig,
    begun,
    parted,
    prepared,
    source_of,
)
from farreach_workloads.retrieval.task import make_optimizer


class RerankDataConfig(LabelledConfig):
    """Questions to learn from; by default each brings as many hard negatives as it has."""

    negatives: int = Field(7, ge=1)
    """For each question, at most."""
    hard_ratio: float = Field(1.0, ge=0, le=1)
    """Probability of each to be a hard one, if there are any."""
    longest: int = Field(256, ge=8)
    """Tokens of a question with a document, at most."""


class ProbeConfig(CandidatesConfig):
    """What is re-ranked while training."""

    split: str = "dev"
    queries: int | None = Field(50, ge=1)
    """Questions, at most, spread evenly; None: all."""
    depth: int = Field(20, ge=1)
    """Hits of each question that are put into order."""


class RerankLoopConfig(LoopConfig):
    """How long to train, and how often to look; an epoch shows every question once."""

    epochs: float = Field(3.0, gt=0)
    batch: int = Field(32, ge=1)
    """Questions per update, of all workers together."""
    lr: float = Field(2e-5, gt=0)
    warmup_lr: float = Field(0.0, ge=0)
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "whole_cosine", "linear", "warmup_linear", "steps"] = (
        "warmup_linear"
    )


class RerankConfig(Config):
    """A run that trains a re-ranker."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"name", "training", "runtime", "probe", "chaos"}
    )
    """Sections that may change when a run is resumed."""

    name: str = "rerank"
    seed: int = Field(0, ge=0)
    start: str | None = None
    """Run of pretraining, fine-tuning or re-ranking, or a folder in the layout of Hugging Face: an
    encoder or a re-ranker. None: random weights, as `encoder` says."""
    encoder: EncoderConfig = EncoderConfig()
    """Its dropout counts for any; the rest if `start` is None."""
    data: RerankDataConfig = RerankDataConfig()
    optimizer: RetrievalOptimizerConfig = RetrievalOptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    training: RerankLoopConfig = RerankLoopConfig()
    runtime: WorkersConfig = WorkersConfig()
    chaos: ChaosConfig = ChaosConfig()

    _whole = field_validator("start")(whole_run)


class RerankData:
    """Lists of a right and some wrong documents; see `farreach.learn.task.Data`."""

    def __init__(self, data: LabelledData, words: WordPieces, longest: int) -> None:
        """Of labelled texts, in pairs of at most `longest` tokens."""
        self._data, self._words, self._longest = data, words, longest

    def __len__(self) -> int:
        """How many questions an epoch has."""
        return len(self._data)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Pairs, one list after the other, the right document first.

        Returns:
            `size`: pairs of each list, (n,); `ids` (pairs, l), `length` (pairs,), `first` (pairs,):
            see `CrossEncoder`; `excluded`: pairs whose document answers the question too, (pairs,)
            bool. The others int64.
        """
        store, sizes, pairs, excluded = self._data.store, [], [], []
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            drawn = self._data.draw(row, position)
            question = store.text(drawn.question)
            sizes.append(1 + len(drawn.negatives))
            pairs += [
                pair_of(question, store.text(number), self._words, self._longest)
                for number in (drawn.gold, *drawn.negatives.tolist())
            ]
            right = store.keys[store.positives.of(self._data.number(row))]
            excluded += [False, *np.isin(store.keys[drawn.negatives], right).tolist()]
        ids, length, first = stacked(pairs)
        return {
            "size": torch.tensor(sizes),
            "ids": ids,
            "length": length,
            "first": first,
            "excluded": torch.tensor(excluded),
        }


def list_loss(scores: Tensor, sizes: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the first of each list against all of it (arXiv:2101.08751).

    Args:
        scores: one list after the other, (pairs,).
        sizes: of the lists, (n,).
        excluded: pairs that do not count, (pairs,) bool.

    Returns:
        The mean over lists (), and the share of lists whose first has the highest score ().
    """
    lists = torch.repeat_interleave(torch.arange(len(sizes), device=scores.device), sizes)
    begins = sizes.cumsum(0) - sizes
    columns = torch.arange(len(scores), device=scores.device) - begins[lists]
    table = scores.new_full((len(sizes), int(sizes.max())), float("-inf"))
    table = table.index_put((lists, columns), scores.masked_fill(excluded, float("-inf")))
    labels = torch.zeros(len(sizes), dtype=torch.int64, device=scores.device)
    return F.cross_entropy(table, labels), (table.argmax(1) == 0).float().mean()


class RerankTask:
    """Trains a re-ranker; see `farreach.learn.task.Task`."""

    score = "evaluation/ndcg@10"
    companions: Sequence[nn.Module] = ()

    def __init__(
        self, config: RerankConfig, kept: tuple[TextEncoder, WordPieces] | None = None
    ) -> None:
        """Open the labelled texts and make the model; raises as `begin` and `Candidates` do.

        Args:
            config: of the run.
            kept: in place of what the run begins with, where a checkpoint's weights follow.
        """
        self.config = config
        model, self.words = begin(config) if kept is None else (CrossEncoder(kept[0]), kept[1])
        self.model: nn.Module = model
        self.reranker = model
        store = prepared(config.data, self.words)
        rows, _ = parted(store, config.data, config.seed)
        longest = min(config.data.longest, model.bert.longest)
        texts = LabelledData(store, rows, config.data, self.words, longest, config.seed)
        self.data = RerankData(texts, self.words, longest)
        folder = candidates_folder(config, config.probe)
        cache = Path(config.data.cache)
        self.candidates = Candidates(folder, config.probe, self.words, longest, cache)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over all weights, or ASAM on top of it."""
        return make_optimizer(self.model, self.config)

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the lists; each counts the same whatever its length."""
        scores = model(batch["ids"], batch["length"], batch["first"])
        with torch.autocast(scores.device.type, enabled=False):
            loss, accuracy = list_loss(scores, batch["size"], batch["excluded"])
        return loss, {
            "learner/accuracy": accuracy,
            "data/negatives": batch["size"].float().mean() - 1,
            "data/tokens_per_sample": batch["length"].sum().float() / len(batch["size"]),
        }

    def before_update(self, step: int) -> None:
        """Nothing precedes it."""

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """How well the hits of a first stage are put into order."""
        with place.in_one_piece(self.model):
            scores = self.candidates.scores(self.reranker.eval(), place)
        return self.candidates.measured(scores)

    def only(self, count: int) -> None:
        """Evaluate on `count` of the questions alone."""
        self.candidates.only(count)

    def pictures(self) -> dict[str, Pixels]:
        """None."""
        return {}

    def remarks(self) -> Sequence[str]:
        """None."""
        return []

    def state(self) -> dict[str, Any]:
        """None beside the weights."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """None."""


def begin(config: RerankConfig) -> tuple[CrossEncoder, WordPieces]:
    """The model that training begins with, and its vocabulary.

    Raises:
        ConfigError, DataError, CheckpointError: it cannot be made or opened.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.child_seed(config.seed, "head"))
        if config.start is not None and is_reranker(config.start):
            model, words = open_reranker(config.start)
        else:
            encoder, words = begun(config.start, config.encoder, config.data, config.seed)
            model = CrossEncoder(encoder)
    reset_dropout(model.bert, config.encoder.dropout)
    return model.train(), words


def _is_run(path: Path | str) -> bool:
    return str(path) == LATEST or RunDirectory.is_there(path)


def is_reranker(path: Path | str) -> bool:
    """Whether a run or a folder holds a re-ranker."""
    if not _is_run(path):
        return is_cross_encoder(here(path))
    return isinstance(configs.load(RunDirectory.open(path).config_path).config, RerankConfig)


def open_reranker(path: Path | str) -> tuple[CrossEncoder, WordPieces]:
    """The re-ranker of a run (its best checkpoint) or of a folder, in evaluation mode.

    Raises:
        DataError: no such folder, or what is in it is damaged or of another kind.
        ConfigError: a run of something else.
        CheckpointError: the run has no intact checkpoint.
    """
    if not _is_run(path):
        return open_cross_encoder(here(path))
    if not is_reranker(path):
        raise ConfigError(f"{path}: is a run of something else. Name one of re-ranking.")
    run = RunDirectory.open(path)
    checkpoint = afterwards.find_checkpoint(run, "best")
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint yet. Go on with `farreach resume {path}`.")
    return reranker_of(run.path, checkpoint.path)


def reranker_of(run: Path, checkpoint: Path) -> tuple[CrossEncoder, WordPieces]:
    """The re-ranker of a checkpoint of a run, in evaluation mode, and its vocabulary."""
    directory = RunDirectory.open(run)
    config = configs.load(directory.config_path).config
    assert isinstance(config, RerankConfig)
    kept = kept_encoder(directory)
    if kept is None:
        model, words = begin(with_kept_words(config, directory))
    else:
        model, words = CrossEncoder(kept[0]), kept[1]
    model.load_state_dict(as_tensors(whole_state(CheckpointStore.load(checkpoint))["model"]))
    return model.eval(), words


def candidates_folder(config: RerankConfig, wanted: CandidatesConfig) -> Path:
    """Where what is re-ranked comes from: see `CandidatesConfig.path`."""
    if wanted.path is not None:
        return here(wanted.path)
    path = source_of(config.data).rows[0]
    return path if is_beir(path) else extract.folder(Path(config.data.cache))
