"""What a run keeps of its encoder, so that a checkpoint is all that is needed beside it.

What the run began with, a folder of weights or another run, may be moved or deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from farreach.data.wordpieces import WordPieces
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach.rundir import RunDirectory
from farreach_workloads.retrieval import hub
from farreach_workloads.retrieval.encoder import TextEncoder
from farreach_workloads.retrieval.stores import save_words

# Any of this workload's, whose `data` names a vocabulary.
AnyConfig = TypeVar("AnyConfig", bound=Any)
# In a run's `kept`: the vocabulary, and what the encoder is like.
WORDS, ENCODER = "words", "encoder.json"


def _place(run: RunDirectory, name: str) -> Path:
    """Where a run keeps a thing; earlier versions kept it in the run's own folder."""
    before = run.path / name
    return before if before.exists() else run.kept / name


def keep(run: RunDirectory, encoder: TextEncoder, words: WordPieces) -> None:
    """Keep what an encoder is like, and its vocabulary, in a run's directory.

    Raises:
        DataError: another vocabulary is there: the text has changed since the run began.
    """
    folder = _place(run, WORDS)
    run.kept.mkdir(exist_ok=True)
    if not folder.is_dir():
        save_words(words, folder)
    elif WordPieces.open(folder).fingerprint != words.fingerprint:
        raise DataError(
            f"{folder}: is another vocabulary than that of the text now, which has changed since "
            f"the run began. Train anew, or set data.words to {folder}."
        )
    if not (_place(run, ENCODER)).is_file():
        atomic_write(_place(run, ENCODER), json.dumps(hub.description(encoder), indent=2) + "\n")


def kept_encoder(run: RunDirectory) -> tuple[TextEncoder, WordPieces] | None:
    """The encoder of a run with any weights, and its vocabulary.

    None if the run has kept none, as those of earlier versions have not.
    """
    if not (_place(run, ENCODER)).is_file():
        return None
    words = WordPieces.open(_place(run, WORDS))
    return hub.blank_encoder(_place(run, ENCODER), words), words


def with_kept_words(config: AnyConfig, run: RunDirectory) -> AnyConfig:
    """A configuration with the vocabulary that its run has kept, if it has."""
    folder = _place(run, WORDS)
    if not folder.is_dir():
        return config
    data = config.data.model_copy(update={"words": str(folder.absolute())})
    return config.model_copy(update={"data": data})
