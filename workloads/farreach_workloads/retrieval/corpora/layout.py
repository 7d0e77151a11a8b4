"""Writes a corpus as a folder in the BEIR layout, whole or not at all.

```
<out>/
  corpus.jsonl      _id, title, text, and further keys whose values are text
  queries.jsonl     _id, text
  qrels/dev.tsv     to choose settings with      qrels/test.tsv   to report
  qrels/train.tsv   what is left to train on, if anything
  README.md         where it is from, licences, counts
  manifest.json     the same for programs, with hashes; written last
```
The layout is that of BEIR (arXiv:2104.08663).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farreach.data.text import Document
from farreach.disk import sync
from farreach.errors import DataError

MANIFEST = "manifest.json"
SEED = 0
TRAIN, DEV, TEST = "train", "dev", "test"


@dataclass(frozen=True)
class Query:
    """What is searched for, and the documents that answer it.

    Attributes:
        relevant: ids of documents.
        family: queries of one family are all in one part, such as those of sibling packages.
    """

    id: str
    text: str
    relevant: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class Corpus:
    """Documents with distinct ids, and queries whose answers are among them."""

    documents: Sequence[Document]
    queries: Sequence[Query]


@dataclass(frozen=True)
class Facts:
    """What a reader of the folder has to know.

    Attributes:
        title: one line.
        made: how documents and queries were made, in sentences.
        sources: name and version of what it was made of.
        licence: sentences.
    """

    title: str
    made: str
    sources: Mapping[str, str]
    licence: str


@dataclass(frozen=True)
class Shares:
    """How queries are parted.

    Attributes:
        test, dev: shares of the families in [0, 1]; the others are to train on.
        most_test, most_dev: no more queries than these are used; None: all.
    """

    test: float = 0.2
    dev: float = 0.1
    most_test: int | None = None
    most_dev: int | None = None


@dataclass
class File:
    """One file of lines, hashed while it is written."""

    path: Path
    lines: int = 0
    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    def write(self, lines: Iterable[str]) -> None:
        """Write lines, without their ends, and have them on the disk."""
        with open(self.path, "wb") as file:
            for line in lines:
                data = (line + "\n").encode()
                file.write(data)
                self.hash.update(data)
                self.lines += 1
                self.size += len(data)
            file.flush()
            os.fsync(file.fileno())

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"lines": self.lines, "bytes": self.size, "sha256": self.hash.hexdigest()}


def parted(queries: Iterable[Query], shares: Shares) -> dict[str, list[Query]]:
    """Queries by the part they are in: `train`, `dev`, `test`.

    A family's part depends on its name and a fixed seed alone. So a family is in the same part of
    every corpus, in every language, and in a later release as well.
    """
    parts: dict[str, list[Query]] = {TRAIN: [], DEV: [], TEST: []}
    for query in sorted(queries, key=lambda query: _fraction(query.id)):
        parts[part_of(query.family, shares)].append(query)
    parts[TEST] = parts[TEST][: shares.most_test]
    parts[DEV] = parts[DEV][: shares.most_dev]
    return parts


def part_of(family: str, shares: Shares) -> str:
    """The part that a family is in."""
    at = _fraction(family)
    return TEST if at < shares.test else DEV if at < shares.test + shares.dev else TRAIN


def write(out: Path, corpus: Corpus, facts: Facts, shares: Shares) -> dict[str, Any]:
    """Write a corpus as a folder that appears when it is whole; its manifest.

    Raises:
        DataError: there is something else at `out`.
    """
    return written(out, lambda folder: fill(folder, corpus, facts, parted(corpus.queries, shares)))


def written(out: Path, make: Callable[[Path], None]) -> dict[str, Any]:
    """Have `make` fill a folder beside `out` and rename it; nothing where it is done already.

    Raises:
        DataError: there is something else at `out`.
    """
    if not is_done(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        working = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        shutil.rmtree(working, ignore_errors=True)
        try:
            working.mkdir()
            make(working)
            if not is_done(out):
                if out.exists():
                    out.rmdir()
                working.rename(out)
                sync(out.parent)
        finally:
            shutil.rmtree(working, ignore_errors=True)
    return read_manifest(out)


def is_done(out: Path) -> bool:
    """Whether a whole corpus is at `out`.

    Raises:
        DataError: there is something else there.
    """
    if (out / MANIFEST).is_file():
        files = read_manifest(out)["files"]
        wrong = next((name for name, of in files.items() if _size(out / name) != of["bytes"]), None)
        if wrong is None:
            return True
        raise DataError(f"{out / wrong}: is missing or was changed. Remove {out} and try again.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out}: exists and is no corpus made by farreach. Name another folder, or remove it."
        )
    return False


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a corpus.

    Raises:
        DataError: it cannot be read.
    """
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest["files"], dict):
            raise ValueError("it names no files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{out / MANIFEST}: is no manifest of a corpus: {error}. Remove {out} and try again."
        ) from error
    return manifest


def is_titled(folder: Path, beginning: str) -> bool:
    """Whether a folder has a manifest whose title begins so; any other file is none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and str(found.get("title", "")).startswith(beginning)


def fill(folder: Path, corpus: Corpus, facts: Facts, parts: Mapping[str, Sequence[Query]]) -> None:
    """Write all files into a folder that nobody reads yet."""
    (folder / "qrels").mkdir()
    parts = {name: queries for name, queries in parts.items() if queries}
    asked = [query for queries in parts.values() for query in queries]
    content: dict[str, Iterable[str]] = {
        "corpus.jsonl": (_document_line(document) for document in corpus.documents),
        "queries.jsonl": (_line({"_id": query.id, "text": query.text}) for query in asked),
    }
    for name, queries in parts.items():
        content[f"qrels/{name}.tsv"] = _judgements(queries)
    files = {name: File(folder / name) for name in content}
    for name, lines in content.items():
        files[name].write(lines)
    manifest = _manifest(facts, files, corpus, parts)
    readme = File(folder / "README.md")
    readme.write(_readme(facts, manifest))
    manifest["files"]["README.md"] = readme.facts()
    File(folder / MANIFEST).write([json.dumps(manifest, indent=2, ensure_ascii=False)])
    sync(folder / "qrels")
    sync(folder)


def _manifest(
    facts: Facts,
    files: Mapping[str, File],
    corpus: Corpus,
    parts: Mapping[str, Sequence[Query]],
) -> dict[str, Any]:
    hashes = "".join(f"{name} {file.hash.hexdigest()}\n" for name, file in sorted(files.items()))
    return {
        "title": facts.title,
        "sources": dict(facts.sources),
        "licence": facts.licence,
        "documents": len(corpus.documents),
        "words": sum(len(document.text.split()) for document in corpus.documents),
        "queries": {name: len(queries) for name, queries in parts.items()},
        "seed": SEED,
        "content": hashlib.sha256(hashes.encode()).hexdigest(),
        "files": {name: file.facts() for name, file in files.items()},
    }


def _readme(facts: Facts, manifest: Mapping[str, Any]) -> list[str]:
    parts = ", ".join(f"{count:,} {name}" for name, count in manifest["queries"].items())
    sources = [f"- {name}: {version}" for name, version in facts.sources.items()]
    return [
        f"# {facts.title}",
        "",
        f"{manifest['documents']:,} documents of {manifest['words']:,} words; queries: {parts}.",
        "",
        facts.made,
        "",
        "Queries are parted by family with a fixed seed: `dev` to choose settings, `test` to "
        "report, `train` if there is any to train on.",
        "",
        "## Made of",
        "",
        *sources,
        "",
        "## Licence",
        "",
        facts.licence,
        "",
        f"Content: SHA-256 {manifest['content']}",
    ]


def _document_line(document: Document) -> str:
    own = {"_id": document.id, "title": document.title, "text": document.text}
    return _line({**own, **document.meta})


def _line(record: Mapping[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _judgements(queries: Sequence[Query]) -> list[str]:
    lines = (f"{query.id}\t{document}\t1" for query in queries for document in query.relevant)
    return ["query-id\tcorpus-id\tscore", *lines]


def _fraction(name: str) -> float:
    """A number in [0, 1) that is drawn from a name and the seed."""
    digest = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
