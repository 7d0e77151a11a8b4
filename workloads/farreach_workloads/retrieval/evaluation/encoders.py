"""Evaluation of encoders that no run has made, such as published ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farreach import config as configs
from farreach.errors import ConfigError
from farreach.provenance import installed_versions
from farreach.rundir import flat_result
from farreach_workloads.retrieval import models
from farreach_workloads.retrieval.evaluation.evaluate import SearchConfig, search_set
from farreach_workloads.retrieval.evaluation.open_questions import AnswersConfig, answer_rates


def evaluate_encoder(folder: Path, what: str | None, words: Sequence[str]) -> dict[str, Any]:
    """Evaluate an encoder without a run, such as a published one; the same object as `result.json`.

    Vectors, runs of TREC and the rest are kept in `runs/evaluations/<folder>-<hash of the model>`.

    Args:
        folder: in the layout of Hugging Face.
        what: `search`, or `answers`.
        words: settings of `SearchConfig` or `AnswersConfig`, as `key=value`.

    Raises:
        ConfigError: another evaluation; and as `search_set` does.
    """
    if what not in ("search", "answers"):
        raise ConfigError(
            f"{folder}: is an encoder and no run; search and answers can be measured of it. Write "
            f"`farreach evaluate {folder} search path=SET`."
        )
    model = models.open_model(folder)
    kept = Path("runs") / "evaluations"
    kept /= f"{folder.resolve().name}-{models.fingerprint(*model)[:12]}"
    begun_s = time.monotonic()
    settings: SearchConfig | AnswersConfig
    if what == "search":
        settings = configs.from_words(words, SearchConfig)
        metrics = search_set(model, settings, kept / "vectors", kept)
    else:
        settings = configs.from_words(words, AnswersConfig)
        metrics = answer_rates(model, settings, kept / "vectors", kept)
    return flat_result(
        metrics,
        seed=settings.seed,
        wall_time_s=time.monotonic() - begun_s,
        versions=installed_versions(),
    )
