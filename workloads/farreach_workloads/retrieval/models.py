"""Encoders of runs and of folders in the layout of Hugging Face, and what tells one from another.

Documents and queries must be encoded alike: an index keeps the fingerprint of the model that made
its vectors, and how texts were prepared.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from farreach import afterwards
from farreach import config as configs
from farreach.config import Config
from farreach.data.fetched import here
from farreach.data.wordpieces import WordPieces, normalised
from farreach.errors import CheckpointError, ConfigError, DataError
from farreach.rundir import LATEST, RunDirectory, lasting
from farreach_workloads.retrieval import hub
from farreach_workloads.retrieval.embedding import Ids, framed
from farreach_workloads.retrieval.encoder import Bert, TextEncoder, whole_path

# In evaluation mode.
Model = tuple[TextEncoder, WordPieces]


class TextsConfig(Config):
    """How a text becomes word pieces; the same for documents and queries."""

    longest: int | None = Field(None, ge=3)
    """Tokens of a text, [CLS] and [SEP] among them, at most; None: as many as the encoder has
    positions for."""
    lower: bool = False
    """Put texts in lower case first, where the vocabulary does not do so anyway."""
    normalise: bool = False
    """Bring hyphens, quotation marks and the like into one form first."""


def whole_run(path: str | None) -> str | None:
    """Where a run, or a folder with an encoder, lies, from the root on.

    So `latest` stays the run that it is when a configuration is read: soon it is another one, and
    that which is configured itself at first.
    """
    return whole_path(lasting(path))


def open_model(path: str | Path) -> Model:
    """An encoder in evaluation mode, of a run its best checkpoint, and its vocabulary.

    Args:
        path: a run directory, `latest`, or a folder with config.json and weights.

    Raises:
        DataError: nothing of the kind is there, or the folder is damaged.
        ConfigError: it is a run that trains no text encoder.
        CheckpointError: the run has no intact checkpoint.
    """
    if str(path) != LATEST and not RunDirectory.is_there(path):
        folder = here(path)
        if not (folder / hub.CONFIG).is_file():
            raise DataError(
                f"{path}: is neither a run nor a folder with {hub.CONFIG} and weights. Name the "
                "directory of a run, or what `farreach export RUN --format hub` made."
            )
        return hub.open_encoder(folder)
    run = RunDirectory.open(path)
    checkpoint = afterwards.find_checkpoint(run, "best")
    if checkpoint is None:
        raise CheckpointError(
            f"{run.path} has no checkpoint yet. Continue it with `farreach resume {run.path}`."
        )
    return model_of(run, checkpoint.path)


def model_of(run: RunDirectory, checkpoint: Path) -> Model:
    """The encoder of a checkpoint of a run; raises ConfigError if the run trains none."""
    workload = configs.load(run.config_path).workload
    maker = getattr(importlib.import_module(workload), "encoder_of", None)
    if maker is None:
        raise ConfigError(f"{run.path}: its workload {workload} trains no text encoder.")
    found: Model = maker(run.path, checkpoint)
    return found


def fingerprint(encoder: TextEncoder, words: WordPieces) -> str:
    """Another one if any weight, the vocabulary, or how texts are cut or pooled differs; hex."""
    kind = [words.fingerprint, type(encoder).__name__, encoder.pooling, encoder.normalised]
    if isinstance(encoder, Bert) and encoder.longest < encoder.positions:
        kind.append(encoder.longest)
    return weights_hash(encoder, kind)


def weights_hash(model: nn.Module, kind: Sequence[Any]) -> str:
    """Another one if any weight differs, or anything else that is named; hex."""
    whole = hashlib.sha256(json.dumps(kind).encode())
    for name, value in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(value.detach().cpu().float().numpy())
        whole.update(f"{name} {array.shape} ".encode())
        whole.update(array.data)
    return whole.hexdigest()


def pieces_of(texts: Sequence[str], words: WordPieces, config: TextsConfig) -> list[Ids]:
    """Word pieces of texts as a setting wants them prepared, whole and not framed."""
    if config.normalise:
        texts = [normalised(text) for text in texts]
    if config.lower:
        texts = [text.lower() for text in texts]
    return words.encode(texts)


def ids_of(
    texts: Sequence[str], words: WordPieces, config: TextsConfig, positions: int
) -> list[Ids]:
    """Framed word pieces of texts as a setting wants them prepared.

    Args:
        texts: n texts.
        words: the vocabulary.
        config: how.
        positions: of the encoder.
    """
    longest = longest_of(config, positions)
    return [framed(ids, words, longest) for ids in pieces_of(texts, words, config)]


def device_here(gpus: float) -> str:
    """Where this process computes beside others with so many GPUs each: on one of its own, if any.

    The machine that leads a cluster often has none.
    """
    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"


def longest_of(config: TextsConfig, positions: int) -> int:
    """Tokens of a text with its frame, at most, for an encoder of so many positions."""
    return min(positions, config.longest or positions)
