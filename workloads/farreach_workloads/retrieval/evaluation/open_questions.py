"""Open-domain question answering: do the passages that are found contain an answer?

Source: the protocol of DPR, arXiv:2004.04906, as Contriever, arXiv:2112.09118, uses it.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farreach.checkpoint import Checkpoint
from farreach.console import say, warn
from farreach.data.fetched import here
from farreach.disk import atomic_write
from farreach.errors import ConfigError, DataError
from farreach.index.hits import Hits
from farreach.provenance import installed_versions
from farreach.rundir import RunDirectory
from farreach_workloads.retrieval import indexes, models, stores
from farreach_workloads.retrieval.corpora.downloaded import MKQA_TITLE
from farreach_workloads.retrieval.corpora.layout import is_titled
from farreach_workloads.retrieval.evaluation.answers import Answered, answered, hit_rates
from farreach_workloads.retrieval.evaluation.asked import ask
from farreach_workloads.retrieval.evaluation.evaluate import EngineConfig, engine, of_mode, widest
from farreach_workloads.retrieval.evaluation.published import MKQA, OPEN_QUESTIONS, beside
from farreach_workloads.retrieval.half_characters import half_in
from farreach_workloads.retrieval.models import Model
from farreach_workloads.retrieval.searcher import Mode, Searcher

_ANSWERS = ("answers", "answer")
_TOGETHER = 256


class AnswersConfig(EngineConfig):
    """Of questions with answers."""

    path: str | None = None
    """Passages: a file or a folder; see `farreach.data.text`."""
    questions: str | None = None
    """A file of JSON lines, or one JSON list, with `question` and `answers` (or `answer`); or DPR's
    .csv."""
    cuts: tuple[int, ...] = (5, 10, 20, 100)
    """Passages that are looked at."""
    name: str | None = None
    """Of the folder of results. None: that of the file of questions."""


@dataclass(frozen=True)
class Question:
    """One question and what counts as an answer."""

    text: str
    answers: list[str]


def answers(
    config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: AnswersConfig
) -> dict[str, float]:
    """Share of questions for which one of the first passages that are found contains an answer."""
    model = models.model_of(run, checkpoint.path)
    out = run.path / "evaluations"
    return answer_rates(model, settings, run.path / "vectors", out, f"-{checkpoint.step}")


def answer_rates(
    model: Model | Path, settings: AnswersConfig, keep: Path, out: Path, suffix: str = ""
) -> dict[str, float]:
    """Evaluate an encoder, of a run or not; see `evaluate.search_set`.

    For each mode `<mode>.jsonl` has the questions with what was found, as DPR writes it;
    `about.json` says what was asked of which model, and in which passages.

    Raises:
        ConfigError: a path is missing.
        DataError: the questions are malformed; and as `evaluate.engine`.
    """
    if settings.path is None or settings.questions is None:
        raise ConfigError("path, questions: are both needed. Name passages, and questions.")
    if not settings.modes or not settings.cuts:
        raise ConfigError("modes, cuts: there are none. Give at least one.")
    model = models.open_model(model) if isinstance(model, Path) else model
    file = here(settings.questions)
    questions = read_questions(file)
    searcher = engine(model, Path(settings.path), settings, keep)
    weight = indexes.FusionConfig().weight if settings.weight is None else settings.weight
    searcher.fusion = indexes.FusionConfig(weight=weight, kind=settings.fusion)
    if "hybrid" in settings.modes and settings.weight is None:
        warn(f"warning: {file}: the weight of words is {weight:g}; set weight=… to choose it")
    depth = max(settings.cuts)
    sides = ask(searcher, [one.text for one in questions], depth, widest(settings.modes))
    folder = out / f"answers-{settings.name or file.stem}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, float] = {}
    for mode in settings.modes:
        hits = searcher.joined(of_mode(sides, mode), depth)
        found = _written(folder, mode, questions, hits, searcher)
        rates = hit_rates(found.found, settings.cuts)
        metrics |= {f"{mode}/hit@{k}": rate for k, rate in rates.items()}
        metrics |= {
            "answers/unusable": float(found.unusable),
            "answers/unanswerable": float(found.unanswerable),
        }
    metrics["answers/questions"] = float(len(questions))
    about = {
        "passages": str(here(settings.path)),
        "passages_fingerprint": stores.fingerprint(here(settings.path)),
        "questions": str(file),
        "questions_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "model": searcher.index.model,
        "settings": settings.model_dump(),
        "fusion": searcher.fusion.model_dump(),
        "metrics": metrics,
        "versions": installed_versions(),
    }
    atomic_write(folder / "about.json", json.dumps(about, indent=2) + "\n")
    say(f"questions with what was found: {folder}")
    _say_published(file, metrics)
    return metrics


def _say_published(file: Path, metrics: Mapping[str, float]) -> None:
    """Set beside what is published on common questions what vectors alone have found."""
    stem = file.stem.lower()
    is_mkqa = is_titled(file.parent, MKQA_TITLE)
    known = OPEN_QUESTIONS.values["hit@100"]
    name = next((one for one in known if stem.startswith(one.removesuffix("qa"))), stem)
    for table in [MKQA] if is_mkqa else [OPEN_QUESTIONS]:
        for measure, published in table.values.items():
            if name in published and f"dense/{measure}" in metrics:
                say(beside({name: metrics[f"dense/{measure}"]}, measure, table))


def read_questions(file: Path) -> list[Question]:
    """Questions with their answers, from JSON lines or one JSON list.

    Or, in a file called .csv or .tsv, lines of a question, a tab and a list of answers as Python
    writes it, as DPR (arXiv:2004.04906) gives those of NQ and TriviaQA.

    Raises:
        DataError: the file cannot be read or is malformed, or has no question.
    """
    try:
        records = _records(file.read_text(encoding="utf-8"), file.suffix)
    except (OSError, ValueError, SyntaxError, csv.Error) as error:
        raise DataError(
            f"{file}: cannot be read: {error}. Give JSON lines with question and answers."
        ) from error
    if not records:
        raise DataError(f"{file}: has no questions. Give at least one.")
    return [_question(file, number, record) for number, record in enumerate(records, 1)]


def _records(content: str, suffix: str) -> Any:
    if suffix in (".csv", ".tsv"):
        rows = csv.reader(io.StringIO(content, newline=""), delimiter="\t")
        return [
            {"question": row[0], "answers": ast.literal_eval("".join(row[1:2]) or "None")}
            for row in rows
            if row
        ]
    if content.lstrip().startswith("["):
        return json.loads(content)
    return [json.loads(line) for line in content.split("\n") if line.strip()]


def _question(file: Path, number: int, record: Any) -> Question:
    found = record if isinstance(record, dict) else {}
    text = found.get("question")
    given = next((found[key] for key in _ANSWERS if key in found), None)
    given = [given] if isinstance(given, str) else given
    is_list = isinstance(given, list) and all(isinstance(one, str) for one in given)
    if not isinstance(text, str) or not text.strip() or not is_list:
        raise DataError(
            f"{file}, question {number}: is to have a text `question` and a list of texts "
            "`answers`. Correct it."
        )
    assert given is not None
    if half := half_in(text, *given):
        raise DataError(f"{file}, question {number}: has half a character, {half}. Correct it.")
    return Question(text, given)


def _written(
    folder: Path, mode: Mode, questions: Sequence[Question], hits: Hits, searcher: Searcher
) -> Answered:
    """Which passages contain an answer; all of them are written down."""
    lines, parts = [], []
    for begin in range(0, len(questions), _TOGETHER):
        some = questions[begin : begin + _TOGETHER]
        documents = [
            searcher.index.documents(hits.of(number)[1])
            for number in range(begin, begin + len(some))
        ]
        own = answered([one.answers for one in some], [[d.text for d in ds] for ds in documents])
        parts.append(own)
        for place, (one, found) in enumerate(zip(some, documents, strict=True)):
            scores = hits.of(begin + place)[0].tolist()
            passages = [
                {
                    "id": document.id,
                    "title": document.title,
                    "text": document.text,
                    "score": score,
                    "hasanswer": bool(own.found[place, rank]),
                }
                for rank, (document, score) in enumerate(zip(found, scores, strict=True))
            ]
            record = {"question": one.text, "answers": one.answers, "ctxs": passages}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    atomic_write(folder / f"{mode}.jsonl", "".join(lines))
    width = max(part.found.shape[1] for part in parts)
    padded = [np.pad(p.found, ((0, 0), (0, width - p.found.shape[1]))) for p in parts]
    return Answered(
        np.concatenate(padded),
        sum(part.unusable for part in parts),
        sum(part.unanswerable for part in parts),
    )
