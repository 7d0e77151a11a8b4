"""Unsupervised dense retrieval: Contriever (arXiv:2112.09118), from raw text to an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from farreach import config as configs
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.cluster.demand import Demand
from farreach.data import text
from farreach.data.wordpieces import WordPieces
from farreach.errors import ConfigError, DataError
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.keeping import as_tensors
from farreach.learn.restored import evaluated, restored
from farreach.learn.shards import whole_state
from farreach.learn.trainer import fit
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation, Format
from farreach_workloads.retrieval import figures, keys_ahead, mining, stores
from farreach_workloads.retrieval.config import RetrievalConfig
from farreach_workloads.retrieval.contrast import Pair
from farreach_workloads.retrieval.encoder import Bag, Bert, TextEncoder
from farreach_workloads.retrieval.evaluation import evaluate as evaluate_
from farreach_workloads.retrieval.evaluation import open_questions
from farreach_workloads.retrieval.hub import save_encoder
from farreach_workloads.retrieval.kept import keep, kept_encoder, with_kept_words
from farreach_workloads.retrieval.presets import differences
from farreach_workloads.retrieval.probe import Others, Probe, note_data, split_of
from farreach_workloads.retrieval.task import PretrainTask, encoder_for, probe_folder

Config = RetrievalConfig


def demand(config: RetrievalConfig) -> list[Demand]:
    """Workers, and who encodes keys for them."""
    return [*asked_of_ray(config), *keys_ahead.demand(config)]


def encoder_of(run: Path, checkpoint: Path) -> tuple[TextEncoder, WordPieces]:
    """The encoder of a checkpoint of a run and its vocabulary, for workers that embed."""
    directory = RunDirectory.open(run)
    config = configs.load(directory.config_path).config
    assert isinstance(config, RetrievalConfig)
    kept = kept_encoder(directory)
    if kept is None:
        words = stores.words_of(with_kept_words(config, directory))
        kept = encoder_for(config, words), words
    encoder, words = kept
    state = whole_state(CheckpointStore.load(checkpoint))["model"]
    Pair(encoder).load_state_dict(as_tensors(state))
    return encoder.eval(), words


EVALUATIONS = {
    "search": Evaluation(evaluate_.search, evaluate_.SearchConfig),
    "answers": Evaluation(open_questions.answers, open_questions.AnswersConfig),
    "mine": mining.evaluation(encoder_of),
}


def check(config: RetrievalConfig) -> list[str]:
    """Look at the text, the vocabulary and the probe; what the user should know."""
    notes = list(differences(config))
    for name, source in stores.sources(config).items():
        if not any(True for _ in text.documents(source)):
            raise DataError(f"data.path: {source} ({name}) holds no text.")
    if not (probe_folder(config) / "queries.jsonl").is_file():
        raise ConfigError(
            f"probe.path: {probe_folder(config)} has no queries.jsonl. Name a folder in the layout "
            "of BEIR, or leave it out to search the shipped extract."
        )
    words = stores.words_of(config)
    encoder = encoder_for(config, words)
    cache = Path(config.data.cache)
    probe = Probe(probe_folder(config), config.probe, words, encoder.longest, cache)
    notes.append(probe.in_words(probe_folder(config)))
    Others(config.probe, words, encoder.longest, cache)
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    outside = count - encoder.words.weight.numel() / 1e6
    notes.append(
        f"an encoder of {count:.1f}M parameters, {outside:.1f}M outside of its {words.size:,} word "
        "pieces"
    )
    if isinstance(encoder, Bert) and encoder.longest < encoder.positions:
        notes.append(
            f"positions {encoder.longest + 1} to {encoder.positions} are never trained, as no text "
            f"is longer than {encoder.longest} tokens: whoever embeds longer ones cuts them there"
        )
    if isinstance(encoder, Bag):
        notes.append("a bag of word pieces knows nothing of their order")
    return notes


def make_task(config: RetrievalConfig) -> PretrainTask:
    """What a worker trains."""
    return PretrainTask(config)


def run(
    config: RetrievalConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Tokenise what is not yet, and train to the end; see `Workload`."""
    stores.prepare(config)
    words = stores.words_of(config)
    keep(run, encoder_for(config, words), words)
    note_data(run, stores.sources(config), *_searched(config))
    return fit(config, run, checkpoint, make_task, keys_ahead.demand(config))


def evaluate(
    config: RetrievalConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Search what training searches; `episodes`: with so many of the questions alone."""
    note_data(run, {}, *_searched(config))
    return evaluated(_begun(config, run), checkpoint, episodes)


def _begun(config: RetrievalConfig, run: RunDirectory) -> PretrainTask:
    """The task of a run, for a checkpoint's weights."""
    config = with_kept_words(config, run)
    return PretrainTask(config, begins=False, kept=kept_encoder(run))


def _searched(config: RetrievalConfig) -> tuple[Path, str, Mapping[str, str]]:
    """What training searches, of which split, and what else."""
    folder, probe = probe_folder(config), config.probe
    return folder, split_of(folder, probe), probe.others


def plot(config: RetrievalConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """How scores lie; and documents' vectors for the projector."""
    task = restored(_begun(config, run), checkpoint)
    return figures.draw(task.probe, task.encoder, run)


def export(
    config: RetrievalConfig, run: RunDirectory, checkpoint: Checkpoint, out: Path, fmt: Format
) -> Path:
    """Write the encoder and its vocabulary in the layout of Hugging Face."""
    if fmt != "hub":
        raise ConfigError(f"--format {fmt}: a text encoder is exported as hub.")
    save_encoder(*encoder_of(run.path, checkpoint.path), out)
    return out
