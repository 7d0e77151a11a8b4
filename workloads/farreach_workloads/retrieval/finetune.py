"""Supervised fine-tuning of a text encoder, with hard negatives: Contriever (arXiv:2112.09118).

With `second` there are two phases: a run of its own learns from random negatives, what its encoder
finds for each question becomes its hard negatives, and this run learns from those.
"""

from __future__ import annotations

from pathlib import Path

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import Checkpoint, CheckpointStore
from farreach.console import say
from farreach.data.wordpieces import WordPieces
from farreach.disk import atomic_write
from farreach.errors import ConfigError, DataError
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.keeping import as_tensors
from farreach.learn.restored import evaluated, restored
from farreach.learn.shards import whole_state
from farreach.learn.trainer import fit
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation, Format
from farreach_workloads.retrieval import figures, mining, stores
from farreach_workloads.retrieval.contrast import Pair
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.evaluation import evaluate as evaluate_
from farreach_workloads.retrieval.evaluation import open_questions
from farreach_workloads.retrieval.finetune_config import FinetuneConfig, differences
from farreach_workloads.retrieval.finetune_task import (
    FinetuneTask,
    hard_file,
    probe_folder,
    starting,
)
from farreach_workloads.retrieval.hub import save_encoder
from farreach_workloads.retrieval.kept import keep, kept_encoder, with_kept_words
from farreach_workloads.retrieval.labelled import is_beir
from farreach_workloads.retrieval.models import fingerprint, open_model
from farreach_workloads.retrieval.probe import Others, Probe, note_data, split_of
from farreach_workloads.retrieval.stores import key_of
from farreach_workloads.retrieval.supervision import (
    begun,
    parted,
    prepared,
    source_of,
    texts_of,
)

Config = FinetuneConfig
demand = asked_of_ray


def encoder_of(run: Path, checkpoint: Path) -> tuple[TextEncoder, WordPieces]:
    """The encoder of a checkpoint of a run and its vocabulary, for whoever embeds."""
    directory = RunDirectory.open(run)
    config = configs.load(directory.config_path).config
    assert isinstance(config, FinetuneConfig)
    kept = kept_encoder(directory)
    if kept is None:
        config = with_kept_words(config, directory)
        kept = begun(starting(config), config.encoder, config.data, config.seed)
    encoder, words = kept
    state = whole_state(CheckpointStore.load(checkpoint))["model"]
    Pair(encoder).load_state_dict(as_tensors(state))
    return encoder.eval(), words


EVALUATIONS = {
    "mine": mining.evaluation(encoder_of),
    "search": Evaluation(evaluate_.search, evaluate_.SearchConfig),
    "answers": Evaluation(open_questions.answers, open_questions.AnswersConfig),
}


def check(config: FinetuneConfig) -> list[str]:
    """Read all labelled texts, and open the encoder; what the user should know."""
    if config.second is not None and config.second.first is not None:
        open_model(config.second.first)
    if not is_beir(probe_folder(config)):
        raise ConfigError(
            f"probe.path: {probe_folder(config)} has no queries.jsonl. Name a folder in the layout "
            "of BEIR, or leave it out."
        )
    encoder, words = begun(config.start, config.encoder, config.data, config.seed)
    cache = Path(config.data.cache)
    probe = Probe(probe_folder(config), config.probe, words, encoder.longest, cache)
    Others(config.probe, words, encoder.longest, cache)
    store = prepared(config.data, words)
    rows, held_out = parted(store, config.data, config.seed)
    if len(rows) < config.training.batch:
        raise DataError(
            f"training.batch: {config.training.batch} questions at a time, of {len(rows)} in all. "
            "Lower it."
        )
    updates = max(1, round(config.training.epochs * len(rows) / config.training.batch))
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    notes = [
        f"{len(rows):,} questions to learn from in {updates:,} updates, {len(held_out):,} held "
        f"out; an encoder of {count:.1f}M parameters"
    ]
    notes.append(probe.in_words(probe_folder(config)))
    if store.skipped:
        notes.append(f"{store.skipped:,} rows that nothing answers are left out")
    has_negatives = len(store.corpus) + len(store.negatives.values) + len(store.hard.values) > 0
    if config.data.negatives and not has_negatives:
        notes.append("no row has negatives: those of the other questions are all there are")
    return [*notes, *differences(config, updates)]


def make_task(config: FinetuneConfig) -> FinetuneTask:
    """What a worker trains."""
    return FinetuneTask(config)


def run(
    config: FinetuneConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Find hard negatives if they are wanted, and train to the end; see `Workload`."""
    found: dict[str, float] = {}
    if config.second is not None:
        if config.second.first is None:
            first = {"first": str(_first_phase(config))}
            second = config.second.model_copy(update=first)
            config = config.model_copy(update={"second": second})
            run.replace_config(configs.dump(config, __name__))
        found = _mined(config)
    encoder, words = begun(starting(config), config.encoder, config.data, config.seed)
    prepared(config.data, words, hard_file(config))
    keep(run, encoder, words)
    _note_data(config, run)
    return found | fit(config, run, checkpoint, make_task)


def _first_phase(config: FinetuneConfig) -> Path:
    """The run of the first phase, trained if it is not yet from this encoder and these texts."""
    same = config.model_dump(exclude={"name", "second", "runtime", "probe", "chaos"})
    begins = fingerprint(*begun(config.start, config.encoder, config.data, config.seed))
    texts = [stores.fingerprint(path) for path in texts_of(source_of(config.data)).values()]
    folder = Path(config.data.cache).absolute() / f"first-{key_of(same, begins, *texts)}"
    if folder.exists():
        if not RunDirectory.open(folder).result_path.exists():
            launch.resume(folder)
        return folder
    first = config.model_copy(update={"name": f"{config.name}_first", "second": None})
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, configs.dump(first, __name__))
    say(f"phase 1   {folder}")
    launch.train(str(file), run_dir=folder)
    return folder


def _mined(config: FinetuneConfig) -> dict[str, float]:
    """Have hard negatives in the cache; what finding them has told."""
    assert config.second is not None
    assert config.second.first is not None
    cache, source = Path(config.data.cache), source_of(config.data)
    encoder, words = open_model(config.second.first)
    file = mining.mined_file(encoder, words, source, config.second, cache)
    if file.is_file():
        return {}
    return mining.mine(encoder, words, source, config.second, file, cache)


def evaluate(
    config: FinetuneConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Ask what training asks; `episodes`: so many of the questions alone."""
    _note_data(config, run)
    return evaluated(_begun(config, run), checkpoint, episodes)


def _begun(config: FinetuneConfig, run: RunDirectory) -> FinetuneTask:
    """The task of a run, for a checkpoint's weights."""
    return FinetuneTask(with_kept_words(config, run), kept_encoder(run))


def _note_data(config: FinetuneConfig, run: RunDirectory) -> None:
    texts = texts_of(source_of(config.data))
    folder, probe = probe_folder(config), config.probe
    note_data(run, texts, folder, split_of(folder, probe), probe.others)


def plot(config: FinetuneConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """How scores lie; and documents' vectors for the projector."""
    task = restored(_begun(config, run), checkpoint)
    return figures.draw(task.probe, task.encoder, run)


def export(
    config: FinetuneConfig, run: RunDirectory, checkpoint: Checkpoint, out: Path, fmt: Format
) -> Path:
    """Write the encoder and its vocabulary in the layout of Hugging Face."""
    if fmt != "hub":
        raise ConfigError(f"--format {fmt}: a text encoder is exported as hub.")
    save_encoder(*encoder_of(run.path, checkpoint.path), out)
    return out
