"""What the embedding of a source depends on, kept in its folder: model, text and settings.

A folder that was begun is gone on with only if all of these are as they were.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from farreach.config import Config
from farreach.data import text
from farreach.disk import atomic_write
from farreach.errors import DataError
from farreach_workloads.retrieval import models, stores
from farreach_workloads.retrieval.embedding import BUDGET
from farreach_workloads.retrieval.models import Model, TextsConfig

JOB, MODEL = "embedding.json", "model"
# Settings that decide what documents are found for a query.
OF_RANKING = {*TextsConfig.model_fields, "no_title", "passage", "whole"}
_PASSING = {"workers", "cpus", "gpus", "budget", "max_failures"}

Job = dict[str, Any]


class WorkConfig(Config):
    """Where and in what portions documents are embedded."""

    workers: int = Field(0, ge=0)
    """Actors side by side; 0: this process does it, without Ray."""
    cpus: int = Field(1, ge=1)
    """Of each actor, and its threads."""
    gpus: float = Field(0.0, ge=0)
    """Of each actor; above 0 it computes there. With 0.5 and two workers one reads while the other
    computes."""
    bfloat16: bool = False
    """Compute in bfloat16."""
    int8: bool = False
    """Compute with weights of 8 bits, on CPUs; queries are encoded with the exact ones."""
    budget: int = Field(BUDGET, ge=1)
    """Tokens that are computed at a time."""
    piece_mb: int = Field(16, ge=1)
    """Megabytes of text of a part."""
    max_failures: int = Field(3, ge=0)
    """Deaths of actors that are forgiven on each part."""

    @model_validator(mode="after")
    def _is_sound(self) -> WorkConfig:
        if self.int8 and (self.gpus or self.bfloat16):
            raise ValueError("int8: is for CPUs alone. Set gpus=0 and bfloat16=false")
        return self


class EmbedConfig(TextsConfig, WorkConfig):
    """How documents are embedded."""

    no_title: bool = False
    """Leave titles out."""
    passage: int = Field(0, ge=0)
    """Word pieces of a passage. A longer document has a vector for each of its passages, every one
    half a passage after the one before, and is found by the best of them; 0: for the whole text
    alone."""
    whole: float = Field(0.5, ge=0, lt=1)
    """Share of the whole text in a passage's vector."""
    stored: Literal["float16", "float32"] = "float16"
    """Numbers of the vectors on the disk."""


def job_of(model: Model, source: Path, config: EmbedConfig) -> Job:
    """The facts on which the vectors of a source depend; JSON.

    Raises:
        DataError: there is no such source, or it is empty.
    """
    files = {piece.path: piece.name for piece in text.pieces(source, config.piece_mb << 20)}
    prints = [[name, stores.fingerprint(path)] for path, name in files.items()]
    return {
        "model": models.fingerprint(*model),
        "text": hashlib.sha256(json.dumps(prints).encode()).hexdigest(),
        "settings": config.model_dump(exclude=_PASSING),
    }


def texts_config(folder: Path) -> TextsConfig:
    """How the documents of an embedded folder were prepared, for queries.

    Raises:
        DataError: its embedding.json is missing or damaged.
    """
    settings = read_job(folder)["settings"]
    return TextsConfig(**{name: settings[name] for name in TextsConfig.model_fields})


def settings_of(job: Job) -> EmbedConfig:
    """The settings of a job; one that was begun before there was a setting has its default."""
    known = EmbedConfig.model_fields.keys() & job["settings"].keys()
    return EmbedConfig(**{name: job["settings"][name] for name in known})


def read_job(folder: Path) -> Job:
    """What embedding.json says; raises DataError where it is missing or damaged."""
    file = folder / JOB
    try:
        job: Job = json.loads(file.read_text())
        if (
            not {*TextsConfig.model_fields} <= job["settings"].keys()
            or not {"model", "text"} <= job.keys()
        ):
            raise ValueError("settings are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: cannot be read: {error}. Give a folder that `farreach embed` made."
        ) from error
    return job


def begin(out: Path, job: Job, source: Path) -> None:
    """Say in a folder what is made in it; raises DataError if that is something else."""
    if not (out / JOB).is_file():
        others = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if others:
            raise DataError(f"{out}: holds something else, such as {min(others)}. Name another.")
        atomic_write(out / JOB, json.dumps({"source": str(source), **job}, indent=2) + "\n")
        return
    before = read_job(out)
    mend = "Name another folder, or delete this one to begin again."
    if before["model"] != job["model"]:
        raise DataError(
            f"{out}: was begun with another model ({before['model'][:12]}, and this one is "
            f"{job['model'][:12]}). {mend}"
        )
    if before["text"] != job["text"]:
        raise DataError(
            f"{out}: was begun with another text, {before.get('source')}, or its files have "
            f"changed. {mend}"
        )
    then, now = settings_of(before), settings_of(job)
    for name in job["settings"]:
        was, value = getattr(then, name), getattr(now, name)
        if was != value:
            raise DataError(
                f"{out}: was begun with {name}={was}, and now it is {value}. Set it as before. "
                f"Or: {mend[0].lower()}{mend[1:]}"
            )
