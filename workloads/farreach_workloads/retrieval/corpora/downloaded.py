"""Sets that others publish, out of the files that they publish them in.

```
mr_tydi    mrtydi-v1.1-<language>/ with topic.tsv, qrels.<split>.txt, collection/docs.jsonl(.gz);
           or a folder of such → a folder in the layout of BEIR for each language
mkqa       mkqa.jsonl(.gz) → a file of questions for each of 26 languages, with English answers
```
Sources: Mr. TyDi, arXiv:2108.08787; MKQA, arXiv:2007.15207; both as in Contriever,
arXiv:2112.09118 (§5.3), where documents of Mr. TyDi have no title, and questions of MKQA that
cannot be answered, or by yes, no or a long text alone, are left out.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from farreach.data import text
from farreach.data.text_records import PACKED
from farreach.disk import sync
from farreach.errors import ConfigError, DataError
from farreach.registry import near_match
from farreach_workloads.retrieval.corpora.layout import MANIFEST, File, is_done, written
from farreach_workloads.retrieval.evaluation.beir import CORPUS_FILE, QRELS_FOLDER, QUERIES_FILE

SPLITS = ("train", "dev", "test")
TOPICS, COLLECTION = "topic.tsv", "collection/docs.jsonl"
PREFIX = "mrtydi-v1.1-"
# What their manifests begin with.
MR_TYDI_TITLE, MKQA_TITLE = "Mr. TyDi", "MKQA"
# Of MKQA's English answers, those that no passage can be looked for in.
NO_ANSWERS = ("unanswerable", "binary", "long_answer")


def mr_tydi(source: Path, out: Path) -> list[Path]:
    """Mr. TyDi in the layout of BEIR, one language or all that are in a folder.

    Args:
        source: see the module.
        out: folder to make, or in which one is made for each language, called by its name.

    Raises:
        DataError: a file is missing or malformed, or something else is at `out`.
    """
    if (source / TOPICS).is_file():
        return [_one_of_mr_tydi(source, out)]
    found = sorted(file.parent for file in source.glob(f"*/{TOPICS}"))
    if not found:
        raise DataError(
            f"{source}: holds no {TOPICS}, nor do its folders. Unpack "
            f"{PREFIX}<language>.tar.gz and name its folder."
        )
    return [_one_of_mr_tydi(one, out / one.name.removeprefix(PREFIX)) for one in found]


def mkqa(source: Path, out: Path) -> list[Path]:
    """MKQA's questions, for `farreach evaluate … answers questions=OUT/<language>.jsonl`.

    Args:
        source: mkqa.jsonl or mkqa.jsonl.gz.
        out: folder to make.

    Raises:
        DataError: the file is malformed, or something else is at `out`.
    """
    if not is_done(out):
        asked: dict[str, list[str]] = {}
        for number, line in _lines_of(source):
            for language, question in _questions(source, number, line).items():
                asked.setdefault(language, []).append(question)
        if not asked:
            raise DataError(f"{source}: has no question with a short answer. Download it again.")
        contents = {f"{language}.jsonl": iter(lines) for language, lines in asked.items()}
        _write(out, f"{MKQA_TITLE} with English answers", contents)
    return [out]


Maker = Callable[[Path, Path], list[Path]]
DOWNLOADED: Mapping[str, Maker] = {"mr_tydi": mr_tydi, "mkqa": mkqa}


def converted(name: str, source: Path, out: Path) -> list[Path]:
    """Make a set of what was downloaded; the folders that were made.

    Raises:
        ConfigError: there is no such set, or nothing at the source.
        DataError: as the set's function.
    """
    if name not in DOWNLOADED:
        known = list(DOWNLOADED)
        raise ConfigError(f"there is no set {name!r} to make of files. {near_match(name, known)}")
    if not source.exists():
        raise ConfigError(f"{source}: is not there. Name what was downloaded.")
    try:
        return DOWNLOADED[name](source, out)
    except OSError as error:
        raise DataError(
            f"{error.filename or out}: {error.strerror or error}. Free or mount the disk, fix the "
            "permissions, or name other folders."
        ) from error


def _one_of_mr_tydi(source: Path, out: Path) -> Path:
    if is_done(out):
        return out
    documents = source / COLLECTION
    packed = documents.with_name(documents.name + PACKED)
    if not documents.is_file() and packed.is_file():
        documents = packed
    contents = {CORPUS_FILE: _documents(documents), QUERIES_FILE: _topics(source / TOPICS)}
    for split in SPLITS:
        file = source / f"qrels.{split}.txt"
        if file.is_file():
            contents[f"{QRELS_FOLDER}/{split}.tsv"] = _judgements(file)
    if len(contents) < 2 + 1:
        raise DataError(f"{source}: has no qrels.<split>.txt. Unpack the whole archive.")
    _write(out, f"{MR_TYDI_TITLE}, {source.name.removeprefix(PREFIX)}", contents)
    return out


def _write(out: Path, title: str, contents: Mapping[str, Iterator[str]]) -> None:
    """A folder of files of lines, with a manifest, that appears when it is whole."""

    def fill(folder: Path) -> None:
        files = {}
        for name, lines in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            files[name] = File(folder / name)
            files[name].write(lines)
        facts = {name: file.facts() for name, file in files.items()}
        manifest = {"title": title, "files": facts}
        File(folder / MANIFEST).write([json.dumps(manifest, indent=2, ensure_ascii=False)])
        for parent in {(folder / name).parent for name in contents}:
            sync(parent)

    written(out, fill)


def _documents(file: Path) -> Iterator[str]:
    for one in text.documents(file):
        yield _json({"_id": one.id, "title": "", "text": one.text})


def _topics(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t"), 1):
            if len(row) != 2:
                raise DataError(f"{file}, line {number}: is to be an id and a text, between a tab.")
            yield _json({"_id": row[0], "text": row[1]})


def _judgements(file: Path) -> Iterator[str]:
    yield "query-id\tcorpus-id\tscore"
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 4 or not fields[3].removeprefix("-").isdecimal():
                raise DataError(
                    f"{file}, line {number}: is to be a query, 0, a document and a whole number."
                )
            yield f"{fields[0]}\t{fields[2]}\t{fields[3]}"


def _lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, by number."""
    opened = gzip.open if file.name.endswith(PACKED) else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def _questions(file: Path, number: int, line: str) -> dict[str, str]:
    """By language a line of JSON; none if no passage can be looked for."""
    try:
        record = json.loads(line)
        answers = _answers(record["answers"]["en"])
        own = {"id": record["example_id"], "answers": answers}
        asked = record["queries"] if answers else {}
        return {
            language: _json({"lang": language, "question": question, **own})
            for language, question in asked.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}, line {number}: is no question of MKQA ({error!r}). Download it again."
        ) from error


def _answers(given: list[dict[str, Any]]) -> list[str]:
    """Texts and other names of the answers; none if the last one is of no use, as they did it."""
    if given[-1]["type"] in NO_ANSWERS:
        return []
    useful = [one for one in given if one["type"] not in NO_ANSWERS]
    names = [name for one in useful for name in (*one.get("aliases", ()), one.get("text"))]
    return [name for name in names if name]


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)
