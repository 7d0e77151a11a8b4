"""Re-ranking: a cross-encoder puts what a search has found into another order.

Source: Contriever, arXiv:2112.09118 (section 4.3), puts the first 100 hits into order so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from farreach.checkpoint import Checkpoint
from farreach.console import say
from farreach.data.wordpieces import WordPieces
from farreach.disk import atomic_write
from farreach.errors import ConfigError, DataError
from farreach.figures import new_figure, save
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.place import Place
from farreach.learn.restored import evaluated, restored
from farreach.learn.trainer import fit
from farreach.provenance import installed_versions
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation, Format
from farreach_workloads.retrieval import models
from farreach_workloads.retrieval.candidates import Candidates, CandidatesConfig
from farreach_workloads.retrieval.cross_encoder import (
    CrossEncoder,
    pair_of,
    save_cross_encoder,
    scores_of,
)
from farreach_workloads.retrieval.embedding import BUDGET
from farreach_workloads.retrieval.evaluation import trec
from farreach_workloads.retrieval.kept import keep, kept_encoder, with_kept_words
from farreach_workloads.retrieval.probe import note_data
from farreach_workloads.retrieval.rerank_task import (
    RerankConfig,
    RerankTask,
    begin,
    candidates_folder,
    open_reranker,
    reranker_of,
)
from farreach_workloads.retrieval.supervision import parted, prepared, source_of, texts_of

Config = RerankConfig
demand = asked_of_ray


class Reranker:
    """Scores documents for questions.

    ```
    reranker = Reranker.open(Path("ms-marco-MiniLM-L-6-v2"))
    order = (-reranker.scores("text editor", texts)).argsort()
    ```
    """

    def __init__(
        self,
        model: CrossEncoder,
        words: WordPieces,
        *,
        longest: int | None = None,
        device: torch.device | str = "cpu",
        budget: int = BUDGET,
    ) -> None:
        """With a model, which moves to the device.

        Args:
            model: what reads the pairs.
            words: its vocabulary.
            longest: tokens of a pair at most; None: as many as the model has positions for.
            device: where it is computed.
            budget: tokens that are computed at a time.
        """
        self._model, self._words = model.to(device).eval(), words
        self._device, self._budget = device, budget
        self._longest = min(longest or model.bert.longest, model.bert.longest)

    @classmethod
    def open(cls, path: Path, *, device: torch.device | str = "cpu") -> Reranker:
        """Of a run, or of a folder in the layout of Hugging Face; raises as `open_reranker`."""
        model, words = open_reranker(path)
        return cls(model, words, device=device)

    def scores(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """How well each document answers a query, more is better, (documents,)."""
        asked, *read = self._words.encode([query, *documents])
        pairs = [pair_of(asked, one, self._words, self._longest) for one in read]
        return scores_of(self._model, pairs, device=self._device, budget=self._budget)


def rerank(
    config: RerankConfig, run: RunDirectory, checkpoint: Checkpoint, settings: CandidatesConfig
) -> dict[str, float]:
    """Put the first hits of BM25 or of an encoder into order: quality before and after.

    What was found before and after, as runs of TREC, and what it was measured on are kept in the
    run's `evaluations/rerank-SET-SPLIT-STEP`.
    """
    model, words = reranker_of(run.path, checkpoint.path)
    longest = min(config.data.longest, model.bert.longest)
    cache, folder = Path(config.data.cache), candidates_folder(config, settings)
    candidates = Candidates(folder, settings, words, longest, cache)
    device = torch.device(models.device_here(config.runtime.gpus))
    scores = candidates.scores(model.to(device), Place(device=device))
    metrics = candidates.measured(scores)
    given = candidates.given
    out = run.path / "evaluations" / f"rerank-{given.path.name}-{given.split}-{checkpoint.step}"
    out.mkdir(parents=True, exist_ok=True)
    for name, found in zip(("first", "reranked"), candidates.runs(scores), strict=True):
        trec.write_run(out / f"{name}.run", found, f"farreach-{name}")
    about = {
        "set": str(given.path),
        "split": given.split,
        "files": given.hashes,
        "model": models.weights_hash(model, [words.fingerprint]),
        "settings": settings.model_dump(),
        "metrics": metrics,
        "versions": installed_versions(),
    }
    atomic_write(out / "about.json", json.dumps(about, indent=2) + "\n")
    say(f"runs of TREC: {out}")
    return metrics


EVALUATIONS = {"rerank": Evaluation(rerank, CandidatesConfig)}


def check(config: RerankConfig) -> list[str]:
    """Read all labelled texts, and open the model; what the user should know."""
    model, words = begin(config)
    store = prepared(config.data, words)
    rows, _ = parted(store, config.data, config.seed)
    if len(rows) < config.training.batch:
        raise DataError(
            f"training.batch: {config.training.batch} questions at a time, of {len(rows)} in all. "
            "Lower it."
        )
    if len(store.corpus) + len(store.negatives.values) + len(store.hard.values) == 0:
        raise ConfigError(
            "data.path: its rows have no negatives, and there is no corpus to draw some from. Name "
            "data.corpus, or find some with `farreach evaluate RUN mine`."
        )
    count = sum(p.numel() for p in model.parameters()) / 1e6
    return [
        f"{len(rows):,} questions to learn from; a re-ranker of {count:.1f}M parameters",
        *([f"{store.skipped:,} rows that nothing answers are left out"] if store.skipped else []),
    ]


def make_task(config: RerankConfig) -> RerankTask:
    """What a worker trains."""
    return RerankTask(config)


def run(config: RerankConfig, run: RunDirectory, checkpoint: Checkpoint | None) -> dict[str, float]:
    """Search for what is re-ranked while training, and train to the end; see `Workload`."""
    if config.runtime.workers:
        RerankTask(config)  # leaves in the cache what the workers look for
    model, words = begin(config)
    keep(run, model.bert, words)
    _note_data(config, run)
    return fit(config, run, checkpoint, make_task)


def evaluate(
    config: RerankConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Re-rank what training re-ranks; `episodes`: for so many of the questions alone."""
    _note_data(config, run)
    return evaluated(_begun(config, run), checkpoint, episodes)


def _begun(config: RerankConfig, run: RunDirectory) -> RerankTask:
    """The task of a run, for a checkpoint's weights."""
    return RerankTask(with_kept_words(config, run), kept_encoder(run))


def _note_data(config: RerankConfig, run: RunDirectory) -> None:
    texts = texts_of(source_of(config.data))
    note_data(run, texts, candidates_folder(config, config.probe), config.probe.split)


def plot(config: RerankConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Where right documents are, before and after."""
    task = restored(_begun(config, run), checkpoint)
    before, after = task.candidates.ranks(task.candidates.scores(task.reranker, Place()))
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.5, 4)
    axes = figure.add_subplot()
    axes.axline((1, 1), slope=1, color="0.8")
    axes.scatter(before, after, s=12, alpha=0.5)
    most = max([*before, *after, 5])  # one scale for both, so that the line is the diagonal
    axes.set_xlim(0, most + 1)
    axes.set_ylim(0, most + 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank in the first stage")
    axes.set_ylabel("rank after it")
    axes.set_title("right documents, by question")
    return [save(figure, run.figures / "ranks.png")]


def export(
    config: RerankConfig, run: RunDirectory, checkpoint: Checkpoint, out: Path, fmt: Format
) -> Path:
    """Write the re-ranker and its vocabulary in the layout of Hugging Face."""
    if fmt != "hub":
        raise ConfigError(f"--format {fmt}: a re-ranker is exported as hub.")
    model, words = reranker_of(run.path, checkpoint.path)
    save_cross_encoder(model, words, out)
    return out
