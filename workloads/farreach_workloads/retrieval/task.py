"""Unsupervised pretraining of a text encoder: pairs of spans in, a searched corpus out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from farreach import seeding
from farreach.data.fetched import here
from farreach.data.wordpieces import WordPieces
from farreach.errors import ConfigError, DataError
from farreach.figures import rendered
from farreach.learn.asam import Asam
from farreach.learn.place import Place
from farreach.learn.task import Batch, Pixels
from farreach_workloads.retrieval import figures, stores
from farreach_workloads.retrieval.config import RetrievalConfig
from farreach_workloads.retrieval.contrast import Moco, make_method
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.encoder import Bag, Bert, TextEncoder
from farreach_workloads.retrieval.hub import make_encoder
from farreach_workloads.retrieval.kept import WORDS
from farreach_workloads.retrieval.keys_ahead import KeysAhead
from farreach_workloads.retrieval.packed import attention_filled
from farreach_workloads.retrieval.probe import Others, Probe
from farreach_workloads.retrieval.sampler import PairData, rarity

if TYPE_CHECKING:
    from farreach.learn.outlet import Outlet

# Of collapse: standard deviation of vectors in units of their length, and effective directions.
FEW_DIRECTIONS = 1.5


class PretrainTask:
    """Pretrains an encoder; see `farreach.learn.task.Task`."""

    score = "evaluation/ndcg@10"

    def __init__(
        self,
        config: RetrievalConfig,
        *,
        begins: bool = True,
        kept: tuple[TextEncoder, WordPieces] | None = None,
    ) -> None:
        """Make the networks.

        Args:
            config: of the run.
            begins: whether training may begin with it; otherwise a checkpoint's weights follow, and
                the tokens need not be there.
            kept: in place of what the run begins with, where a checkpoint's weights follow.

        Raises:
            ConfigError: settings do not go together.
            DataError: the tokens cannot be built, or a folder to begin with is none.
        """
        self.config = config
        if kept is not None:
            encoder, self.words = kept
        else:
            self.words = stores.words_of(config)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.child_seed(config.seed, "weights"))
                encoder = encoder_for(config, self.words)
        is_new = not (config.encoder.path or config.encoder.embeddings)
        if begins and isinstance(encoder, Bag) and is_new:
            opened = stores.opened(config, self.words)
            encoder.weigh(torch.from_numpy(rarity(opened, config.spans.chunk)))
        self.method = make_method(
            encoder, config.contrast, seeding.child_seed(config.seed, "queue")
        )
        self.model: nn.Module = self.method.model
        self.companions = self.method.companions
        cache = Path(config.data.cache)
        self.probe = Probe(probe_folder(config), config.probe, self.words, encoder.longest, cache)
        self.others = Others(config.probe, self.words, encoder.longest, cache)
        self._metrics: dict[str, float] = {}
        self._ahead: Mapping[str, Any] | None = None

    @cached_property
    def data(self) -> PairData:
        """Pairs of spans; raises DataError if the tokens cannot be built."""
        return stores.pairs(self.config, self.words)

    @property
    def encoder(self) -> TextEncoder:
        """The one that learns, by which queries and documents are encoded."""
        return self.method.model.encoder

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over all weights, as the paper's; or ASAM on top of it."""
        return make_optimizer(self.model, self.config)

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's; how many tokens a pair has, and how little padding attention computes."""
        loss, metrics = self.method.loss(model, batch, step)
        tokens = (batch["query_length"].sum() + batch["key_length"].sum()) / len(batch["query"])
        metrics["data/tokens_per_sample"] = tokens.float()
        if isinstance(self.encoder, Bert):
            filled = attention_filled(batch["query_length"])
            metrics["data/attention_filled"] = torch.tensor(filled, device=loss.device)
        return loss, metrics

    def begin(self, step: int, total: int, place: Place, outlet: Outlet) -> None:
        """Have keys encoded ahead of time, if they are to be; see `Helped`."""
        contrast = self.config.contrast
        if isinstance(self.method, Moco) and contrast.kind == "moco" and contrast.ahead:
            state, self._ahead = self._ahead, None
            follower = self.method.follower
            self.method.ahead = KeysAhead(self.config, follower, place, outlet, step, total, state)

    def end(self) -> None:
        """Whoever has encoded keys may go."""
        if isinstance(self.method, Moco) and self.method.ahead is not None:
            self.method.ahead.stop()

    def before_update(self, step: int) -> None:
        """Nothing precedes it."""

    def after_update(self, step: int) -> None:
        """As the method says."""
        self.method.after_update(step)

    def evaluate(self, place: Place) -> dict[str, float]:
        """How well questions find their documents, and how vectors are spread."""
        with place.in_one_piece(self.model):
            encoder = self.encoder.eval()
            vectors = self.probe.vectors(encoder, place)
            others = self.others.measured(encoder, place)
        self._metrics = self.probe.measured(*vectors) | others
        return self._metrics

    def only(self, count: int) -> None:
        """Evaluate on `count` of the questions alone."""
        self.probe.only(count)
        self.others.only(count)

    def pictures(self) -> dict[str, Pixels]:
        """Scores of right and of other documents."""
        return {"evaluation/scores": rendered(figures.similarities(self.probe))}

    def remarks(self) -> Sequence[str]:
        """Signs of collapse, and waiting for keys; and what helps against either."""
        remarks = []
        rank = self._metrics.get("evaluation/effective_rank", float("inf"))
        if rank < FEW_DIRECTIONS:
            remarks.append(
                f"collapse: vectors use {rank:.1f} directions of {self.encoder.width} "
                "(evaluation/effective_rank). Lower training.lr, lengthen training.warmup_epochs, "
                "or raise contrast.temperature."
            )
        ahead = self.method.ahead if isinstance(self.method, Moco) else None
        waits = None if ahead is None else ahead.remark()
        return [*remarks, waits] if waits else remarks

    def state(self) -> dict[str, Any]:
        """The method's, and what tells the vocabulary from others."""
        return self.method.state() | {"words": self.words.fingerprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the method's state over; raises DataError if the vocabulary is another."""
        if state.get("words", self.words.fingerprint) != self.words.fingerprint:
            raise DataError(
                "data: its vocabulary is another than that of the checkpoint, since the text has "
                "changed. Train anew, or set data.words to what the run has kept in its folder "
                f"kept/{WORDS}."
            )
        self.method.restore(state)
        self._ahead = state.get("ahead")


def probe_folder(config: RetrievalConfig) -> Path:
    """What is searched while training: as configured, the text itself, or the shipped extract."""
    if config.probe.path is not None:
        return here(config.probe.path)
    path = config.data.path
    if isinstance(path, str) and (here(path) / "queries.jsonl").is_file():
        return here(path)
    return extract.folder(Path(config.data.cache))


def encoder_for(config: RetrievalConfig, words: WordPieces) -> TextEncoder:
    """The encoder that a run begins with.

    Raises:
        ConfigError, DataError: as `make_encoder`; or a span is longer than the encoder reads.
    """
    encoder = make_encoder(config.encoder, words)
    if isinstance(encoder, Bert):
        if config.spans.positions > encoder.positions:
            raise ConfigError(
                f"encoder.path: {config.encoder.path} has positions for {encoder.positions} "
                f"tokens, fewer than a span of {config.spans.positions - 2} needs with [CLS] and "
                "[SEP]. Lower spans.chunk or spans.ratio, or name an encoder with more."
            )
        trained = 0 if config.encoder.path is None else encoder.longest
        encoder.train_up_to(max(trained, config.spans.longest))
    return encoder


def make_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Over all weights that learn; the loop sets the rate."""
    settings = config.optimizer
    weights = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
        weights,
        lr=1.0,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return adamw if settings.kind == "adamw" else Asam(adamw, settings.radius, settings.floor)


def spread(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most so many numbers below `count`, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
